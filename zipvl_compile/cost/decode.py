"""A decode step op by op: linear layers, which read all weights once, and attention, which reads every cache."""

from __future__ import annotations

from zipvl_compile.cost.work import ITEM, Work
from zipvl_compile.models.spec import DecoderSpec

LINEAR_KERNELS, ATTENTION_KERNELS = 10, 2
"""Of a layer: two norms, RoPE, four projections, three of the MLP; the attention of splits and their combination."""


def parameters(spec: DecoderSpec) -> int:
    """Numbers in the decoder's matrices, the embedding and the output head included."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden * (2 * queries + 2 * keys + 3 * spec.intermediate)
    return spec.layers * layer + _vocabulary(spec) * (1 if spec.tied_embeddings else 2)


def weights_read(spec: DecoderSpec) -> int:
    """Numbers that every step multiplies by: all but an embedding table that is not the output head too."""
    return parameters(spec) - (0 if spec.tied_embeddings else _vocabulary(spec))


def decode_step(
    spec: DecoderSpec, batch: int, rows: float, cache_bytes: float, *, item: int = ITEM, traffic: float = 1
) -> list[Work]:
    """One new token for each of `batch` sequences.

    A sequence attends to `rows` rows, summed over its layers, which are `cache_bytes` bytes; these move through memory
    `traffic` times. Numbers of weights have `item` bytes. Two products per row and head, two operations each.
    """
    weights = weights_read(spec)
    attention = 4 * spec.heads * spec.head_dim * rows
    return [
        Work("linear layers", "gemm", 2 * weights * batch, item * weights, LINEAR_KERNELS * spec.layers),
        Work(
            "attention", "dense_attention", batch * attention, traffic * batch * cache_bytes,
            ATTENTION_KERNELS * spec.layers,
        ),
    ]  # fmt: skip


def _vocabulary(spec: DecoderSpec) -> int:
    return spec.vocabulary * spec.hidden
