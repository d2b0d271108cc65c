"""All kernels, and what they are called with in a decoder of a given shape: dtypes and shapes, no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zipvl_plugins import ops
from zipvl_plugins.gpu.ahead_of_time import Compiled, compile_stages
from zipvl_plugins.gpu.launch import Choose, Operand, Stage, best

ALL = (*ops.OPS, "append_rows", "store_rows")
"""Ops of graphs, and what the runtime does with pages."""
TOKENS, PROBES, BATCH, PAGE_SIZE, LAYERS = 16384, 128, 16, 16, 40


@dataclass(frozen=True)
class Decoder:
    """The numbers of a decoder that its kernels are compiled for."""

    heads: int
    kv_heads: int
    d: int
    bias: bool = False
    """Of its linear layers."""

    @property
    def hidden(self) -> int:
        """As in every model of this kind, the heads' width together."""
        return self.heads * self.d

    def __str__(self) -> str:
        return f"h{self.heads}:{self.kv_heads}-d{self.d}{'-bias' if self.bias else ''}"


def stages(op: str) -> Sequence[Stage]:
    """The kernels of an op, or of what the runtime does with pages."""
    if op in ops.OPS:
        return ops.stages(op)
    from zipvl_plugins.pages import kernel

    return (kernel.APPEND_ROWS if op == "append_rows" else kernel.STORE_ROWS,)


def compile_op(op: str, decoder: Decoder, dtype: str, sm: int, choose: Choose = best) -> dict[str, Compiled]:
    """An op's kernels by name, compiled for compute capability sm."""
    attributes = {"scale": decoder.d**-0.5, "count": TOKENS}
    return compile_stages(stages(op), operands(op, decoder, dtype), attributes, sm, choose)


def operands(op: str, decoder: Decoder, dtype: str) -> dict[str, Operand | None]:
    """By the names of the op's inputs."""
    heads, kv_heads, d, hidden = decoder.heads, decoder.kv_heads, decoder.d, decoder.hidden

    def of(*shape: int, dtype: str = dtype) -> Operand:
        return Operand(dtype, shape)

    def one(dtype: str = "float32") -> Operand:
        return Operand(dtype, (1,))

    subset: dict[str, Operand | None] = {"index": of(TOKENS, dtype="int32"), "count": one("int32")}
    query, key = of(TOKENS, heads, d), of(TOKENS, kv_heads, d)
    blocks = TOKENS // PAGE_SIZE
    pages = of(BATCH * blocks, PAGE_SIZE, kv_heads, d)
    pools: dict[str, Operand | None] = {"key_pages": pages, "value_pages": pages}
    scores = of(TOKENS, dtype="float32")
    inputs: dict[str, dict[str, Operand | None]] = {
        "probe_scores": {
            "q": of(PROBES, heads, d), "k": key, "positions": of(PROBES, dtype="int64"), "ratio_min": one(),
        },
        "select_tokens": {
            "accumulated": scores, "normalised": scores, "forced": of(TOKENS, dtype="bool"),
            "tau": one(), "ratio_min": one(), "ratio_max": one(),
        },
        "gather_rows": {"x": key, **subset},
        "gather_projection": {
            "x": of(TOKENS, hidden), "weight": of(kv_heads * d, hidden),
            "bias": of(kv_heads * d) if decoder.bias else None, **subset,
        },
        "projection_scatter": {
            "o": of(TOKENS, heads * d), "weight": of(hidden, heads * d),
            "bias": of(hidden) if decoder.bias else None, **subset,
        },
        "sparse_attention": {"q": query, "k": key, "v": key, "count": one("int32")},
        "paged_attention": {
            "q": of(BATCH, heads, d), "k": of(BATCH, kv_heads, d), "v": of(BATCH, kv_heads, d),
            **pools, "block_table": of(BATCH, blocks, dtype="int32"), "context": of(BATCH, dtype="int32"),
        },
        "append_rows": {
            **pools, "keys": of(LAYERS, BATCH, kv_heads, d), "values": of(LAYERS, BATCH, kv_heads, d),
            "page_ids": of(LAYERS, BATCH, dtype="int32"), "slots": of(LAYERS, BATCH, dtype="int32"),
        },
        "store_rows": {**pools, "keys": key, "values": key, "page_ids": of(blocks, dtype="int32")},
    }  # fmt: skip
    return inputs[op]
