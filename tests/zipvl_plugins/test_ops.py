"""Every face of every op against the reference: fresh random inputs, awkward shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from helpers.faces import relative_error, run_onnx

from zipvl_plugins import ops

TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3}
EXECUTORS: tuple[ops.Executor, ...] = ("portable", "onnxruntime")


@dataclass(frozen=True)
class Shape:
    """n tokens, m probes, p tokens kept, heads, kv_heads, head dim."""

    n: int
    m: int
    p: int
    heads: int
    kv_heads: int
    d: int

    def __str__(self) -> str:
        return f"n{self.n}-m{self.m}-p{self.p}-h{self.heads}:{self.kv_heads}-d{self.d}"


SHAPES = (
    Shape(1, 1, 1, 4, 4, 8),
    Shape(127, 60, 1, 4, 2, 32),
    Shape(127, 127, 127, 7, 1, 16),
    Shape(300, 128, 111, 14, 2, 64),
    Shape(1001, 128, 369, 8, 8, 40),
)


@dataclass
class Call:
    """Inputs of an op, as the reference takes them; `compacted` inputs carry `count` rows for ONNX executors."""

    inputs: list[torch.Tensor | None]
    attributes: dict[str, float | int] = field(default_factory=dict)
    compacted: tuple[int, ...] = ()
    rows: int | None = None
    """How many leading rows of the outputs are defined; None means all."""
    onnx_only: dict[str, int] = field(default_factory=dict)
    always_float32: tuple[int, ...] = ()
    """Inputs that are float32 in a graph of any dtype."""

    def rounded(self, dtype: torch.dtype) -> list[torch.Tensor | None]:
        """The inputs of a graph whose weights and activations are of `dtype`."""
        return [
            value.to(dtype)
            if value is not None and value.is_floating_point() and i not in self.always_float32
            else value
            for i, value in enumerate(self.inputs)
        ]


def _subset(shape: Shape, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """index int32 [n] with a poisoned tail, and count int32 [1]."""
    chosen = torch.randperm(shape.n, generator=rng)[: shape.p].sort().values
    index = torch.full((shape.n,), 2**30, dtype=torch.int32)
    index[: shape.p] = chosen.int()
    return index, torch.tensor([shape.p], dtype=torch.int32)


def _poisoned(shape: Shape, rng: torch.Generator, *inner: int) -> torch.Tensor:
    """Random [n, *inner] whose rows at or after p are NaN: a face that reads them is found out."""
    x = torch.randn(shape.n, *inner, generator=rng)
    x[shape.p :] = float("nan")
    return x


def probe_scores(s: Shape, rng: torch.Generator) -> Call:
    recent = torch.arange(s.n - s.m // 2 - 1, s.n).clamp(min=0)
    earlier = torch.randperm(s.n, generator=rng)[: s.m - len(recent)]
    positions = torch.cat([earlier, recent]).unique()
    q = torch.randn(len(positions), s.heads, s.d, generator=rng) * 2
    k = torch.randn(s.n, s.kv_heads, s.d, generator=rng)
    return Call([q, k, positions, torch.zeros(1)], {"scale": s.d**-0.5}, always_float32=(3,))


def probe_scores_all_kept(s: Shape, rng: torch.Generator) -> Call:
    call = probe_scores(s, rng)
    call.inputs[3] = torch.ones(1)
    return call


def gather_rows(s: Shape, rng: torch.Generator) -> Call:
    return Call([torch.randn(s.n, s.kv_heads, s.d, generator=rng), *_subset(s, rng)], rows=s.p)


def gather_projection(s: Shape, rng: torch.Generator) -> Call:
    x, weight, bias = (torch.randn(*size, generator=rng) for size in ((s.n, 48), (s.heads * s.d, 48), (s.heads * s.d,)))
    return Call([x, weight, bias, *_subset(s, rng)], rows=s.p)


def gather_projection_no_bias(s: Shape, rng: torch.Generator) -> Call:
    call = gather_projection(s, rng)
    call.inputs[2] = None
    return call


def projection_scatter(s: Shape, rng: torch.Generator) -> Call:
    o = _poisoned(s, rng, s.heads * s.d)
    weight, bias = torch.randn(48, s.heads * s.d, generator=rng), torch.randn(48, generator=rng)
    return Call([o, weight, bias, *_subset(s, rng)], compacted=(0,))


def projection_scatter_no_bias(s: Shape, rng: torch.Generator) -> Call:
    call = projection_scatter(s, rng)
    call.inputs[2] = None
    return call


def sparse_attention(s: Shape, rng: torch.Generator) -> Call:
    q, k, v = (_poisoned(s, rng, heads, s.d) for heads in (s.heads, s.kv_heads, s.kv_heads))
    heads = {"heads": s.heads, "kv_heads": s.kv_heads}
    return Call(
        [q, k, v, torch.tensor([s.p], dtype=torch.int32)],
        {"scale": s.d**-0.5},
        compacted=(0, 1, 2),
        rows=s.p,
        onnx_only=heads,
    )


def paged_attention(s: Shape, rng: torch.Generator) -> Call:
    batch, page = 3, 16
    context = torch.tensor([s.n, s.p, max(1, s.n // 3)], dtype=torch.int32)
    blocks = -(-s.n // page)
    pages = torch.randn(3 * blocks + 2, page, s.kv_heads, s.d, generator=rng)
    values = torch.randn(3 * blocks + 2, page, s.kv_heads, s.d, generator=rng)
    table = torch.randperm(3 * blocks + 2, generator=rng)[: batch * blocks].reshape(batch, blocks).int()
    q, k, v = (torch.randn(batch, heads, s.d, generator=rng) for heads in (s.heads, s.kv_heads, s.kv_heads))
    return Call([q, k, v, pages, values, table, context], {"scale": s.d**-0.5})


CALLS: dict[str, tuple[str, Callable[[Shape, torch.Generator], Call]]] = {
    "probe_scores": ("probe_scores", probe_scores),
    "probe_scores_all_kept": ("probe_scores", probe_scores_all_kept),
    "gather_rows": ("gather_rows", gather_rows),
    "gather_projection": ("gather_projection", gather_projection),
    "gather_projection_no_bias": ("gather_projection", gather_projection_no_bias),
    "projection_scatter": ("projection_scatter", projection_scatter),
    "projection_scatter_no_bias": ("projection_scatter", projection_scatter_no_bias),
    "sparse_attention": ("sparse_attention", sparse_attention),
    "paged_attention": ("paged_attention", paged_attention),
}
"""select_tokens has a test of its own: its definition is a rule, and its tolerance is on the retained mass."""


def _faces() -> list[tuple[str, ops.Executor]]:
    """Every call by the portable body of its op, and by each body that the op has for one executor."""
    own = {
        (op, executor)
        for op in ops.OPS
        for executor in EXECUTORS
        if executor == "portable" or ops.onnx_function(op, executor) != ops.onnx_function(op)
    }
    return [(name, executor) for name, (op, _) in CALLS.items() for executor in EXECUTORS if (op, executor) in own]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("name", "executor"), _faces())
def test_onnx_face_equals_the_reference(name: str, executor: ops.Executor, dtype: torch.dtype, shape: Shape) -> None:
    op, build = CALLS[name]
    rng = torch.Generator().manual_seed(torch.seed() % 2**31)
    call = build(shape, rng)
    inputs = call.rounded(dtype)
    exact = [None if value is None else value.float() if value.dtype == dtype else value for value in inputs]
    expected = ops.reference(op)(*exact, **call.attributes)
    expected = expected if isinstance(expected, tuple) else (expected,)
    given = [value[: shape.p] if i in call.compacted and value is not None else value for i, value in enumerate(inputs)]
    got = run_onnx(op, given, {**call.attributes, **call.onnx_only}, executor)
    for out, reference in zip(got, expected, strict=True):
        assert not reference[: call.rows].isnan().any()
        assert out[: call.rows].shape == reference[: call.rows].shape
        assert out.dtype == (torch.float32 if op == "probe_scores" else dtype)
        assert relative_error(out[: call.rows], reference[: call.rows]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("op", ops.OPS)
def test_every_op_has_its_faces(op: str) -> None:
    definition = ops.reference(op)
    function = ops.onnx_function(op)
    assert function.name == op and function.domain == "zipvl"
    assert definition is not None
    assert op in {called for called, _ in CALLS.values()} | {"select_tokens"}
