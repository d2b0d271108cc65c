"""Arguments of every op for a shape: fresh random values, NaN wherever nothing may be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

NEVER = 2**31 - 1
"""An index that no kernel may follow."""


@dataclass(frozen=True)
class Shape:
    """Sizes that an op's arguments are made from; an op uses those that it has."""

    n: int
    p: int
    heads: int = 8
    kv_heads: int = 2
    head_dim: int = 64
    probes: int = 128
    hidden: int | None = None
    """Inner width of a projection; the query heads' where None."""
    outer: int | None = None
    """Outer width of a projection; the query heads' where None."""
    bias: bool = False
    batch: int = 3
    page_size: int = 16
    forced_ratio: bool = False
    """Selection at p/n whatever the scores, instead of by tau."""

    def __str__(self) -> str:
        return f"n {self.n}, p {self.p}, heads {self.heads}:{self.kv_heads} x {self.head_dim}"

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def ratio(self) -> float:
        return self.p / self.n


@dataclass(frozen=True)
class Maker:
    """Where and in which type arguments are made."""

    device: torch.device
    dtype: torch.dtype

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device, dtype=torch.float32).to(self.dtype)

    def scalar(self, value: float) -> torch.Tensor:
        return torch.tensor([value], dtype=torch.float32, device=self.device)

    def count(self, p: int) -> torch.Tensor:
        return torch.tensor([p], dtype=torch.int32, device=self.device)

    def index(self, n: int, p: int) -> torch.Tensor:
        """p ascending tokens of n, then entries that nobody may follow."""
        index = torch.full((n,), NEVER, dtype=torch.int32, device=self.device)
        index[:p] = torch.randperm(n, device=self.device)[:p].sort().values.int()
        return index

    def first_rows(self, n: int, p: int, *rest: int) -> torch.Tensor:
        """[n, ...] with values in the first p rows, NaN after."""
        rows = torch.full((n, *rest), float("nan"), dtype=self.dtype, device=self.device)
        rows[:p] = self.normal(p, *rest)
        return rows

    def rows_of(self, index: torch.Tensor, n: int, p: int, *rest: int) -> torch.Tensor:
        """[n, ...] with values in the rows of T, NaN elsewhere."""
        rows = self.first_rows(n, 0, *rest)
        rows[index[:p].long()] = self.normal(p, *rest)
        return rows

    def probe_positions(self, n: int, probes: int) -> torch.Tensor:
        """Half recent, half random and earlier, ascending."""
        m = min(probes, n)
        recent = max(1, m // 2)
        earlier = torch.randperm(n - recent, device=self.device)[: m - recent].sort().values
        return torch.cat([earlier, torch.arange(n - recent, n, device=self.device)])


def _probe_scores(make: Maker, s: Shape) -> dict[str, Any]:
    positions = make.probe_positions(s.n, s.probes)
    return {
        "q": make.normal(len(positions), s.heads, s.head_dim), "k": make.normal(s.n, s.kv_heads, s.head_dim),
        "positions": positions, "ratio_min": make.scalar(0.0), "scale": s.head_dim**-0.5,
    }  # fmt: skip


def _select_tokens(make: Maker, s: Shape) -> dict[str, Any]:
    accumulated = torch.rand(s.n, device=make.device) ** 6
    forced = torch.zeros(s.n, dtype=torch.bool, device=make.device)
    forced[-1] = True
    least, most = (s.ratio, s.ratio) if s.forced_ratio else (0.0, 1.0)
    return {
        "accumulated": accumulated, "normalised": torch.rand(s.n, device=make.device) ** 6, "forced": forced,
        "tau": make.scalar(0.975), "ratio_min": make.scalar(least), "ratio_max": make.scalar(most),
    }  # fmt: skip


def _gather_rows(make: Maker, s: Shape) -> dict[str, Any]:
    index = make.index(s.n, s.p)
    return {"x": make.rows_of(index, s.n, s.p, s.kv_heads, s.head_dim), "index": index, "count": make.count(s.p)}


def _gather_projection(make: Maker, s: Shape) -> dict[str, Any]:
    inner, outer = s.hidden or s.queries, s.outer or s.queries
    index = make.index(s.n, s.p)
    return {
        "x": make.rows_of(index, s.n, s.p, inner), **_weights(make, inner, outer, bias=s.bias),
        "index": index, "count": make.count(s.p),
    }  # fmt: skip


def _projection_scatter(make: Maker, s: Shape) -> dict[str, Any]:
    inner, outer = s.queries, s.hidden or s.queries
    return {
        "o": make.first_rows(s.n, s.p, inner), **_weights(make, inner, outer, bias=s.bias),
        "index": make.index(s.n, s.p), "count": make.count(s.p),
    }  # fmt: skip


def _weights(make: Maker, inner: int, outer: int, *, bias: bool) -> dict[str, Any]:
    return {"weight": make.normal(outer, inner) * inner**-0.5, "bias": make.normal(outer) if bias else None}


def _sparse_attention(make: Maker, s: Shape) -> dict[str, Any]:
    return {
        "q": make.first_rows(s.n, s.p, s.heads, s.head_dim), "k": make.first_rows(s.n, s.p, s.kv_heads, s.head_dim),
        "v": make.first_rows(s.n, s.p, s.kv_heads, s.head_dim), "count": make.count(s.p), "scale": s.head_dim**-0.5,
    }  # fmt: skip


def _paged_attention(make: Maker, s: Shape) -> dict[str, Any]:
    """Sequences of p rows, then fewer, then none; pages in random order, NaN in those that nobody owns."""
    blocks = -(-s.p // s.page_size) + 1
    table = torch.randperm(s.batch * blocks + 2, device=make.device)[: s.batch * blocks].view(s.batch, blocks)
    context = [s.p] if s.batch == 1 else [s.p * (s.batch - 1 - b) // (s.batch - 1) for b in range(s.batch)]
    pages = (s.batch * blocks + 2, s.page_size, s.kv_heads, s.head_dim)
    pools = [torch.full(pages, float("nan"), dtype=make.dtype, device=make.device) for _ in range(2)]
    for pool in pools:
        for b, rows in enumerate(context):
            owned = make.first_rows(blocks * s.page_size, rows, s.kv_heads, s.head_dim)
            pool[table[b]] = owned.view(blocks, *pages[1:])
    return {
        "q": make.normal(s.batch, s.heads, s.head_dim), "k": make.normal(s.batch, s.kv_heads, s.head_dim),
        "v": make.normal(s.batch, s.kv_heads, s.head_dim), "key_pages": pools[0], "value_pages": pools[1],
        "block_table": table.int(), "context": torch.tensor(context, dtype=torch.int32, device=make.device),
        "scale": s.head_dim**-0.5,
    }  # fmt: skip


_ARGUMENTS: dict[str, Callable[[Maker, Shape], dict[str, Any]]] = {
    "probe_scores": _probe_scores,
    "select_tokens": _select_tokens,
    "gather_rows": _gather_rows,
    "gather_projection": _gather_projection,
    "projection_scatter": _projection_scatter,
    "sparse_attention": _sparse_attention,
    "paged_attention": _paged_attention,
}


def arguments(op: str, shape: Shape, make: Maker) -> dict[str, Any]:
    """By the names of the op's inputs and attributes, in the reference's order."""
    return _ARGUMENTS[op](make, shape)


def awkward_shapes(op: str) -> list[Shape]:
    """Small shapes at the edges: one token, all tokens, sizes that no block divides, every head dim, GQA 7:1."""
    shapes = [
        Shape(1, 1, heads=7, kv_heads=1, head_dim=64),
        Shape(127, 1, heads=4, kv_heads=4, head_dim=80, probes=7),
        Shape(1000, 370, heads=14, kv_heads=2, head_dim=96, probes=1),
        Shape(4099, 4099, heads=7, kv_heads=1, head_dim=128, batch=5, page_size=1),
        Shape(4097, 1517, heads=14, kv_heads=2, head_dim=64, probes=300, bias=True, page_size=256),
    ]
    if op in ("gather_projection", "projection_scatter"):
        shapes.append(Shape(301, 111, heads=3, kv_heads=1, head_dim=80, hidden=200, outer=136, bias=True))
    if op == "select_tokens":
        shapes += [replace(shape, forced_ratio=True) for shape in shapes]
    return shapes


def large_shapes(op: str) -> list[Shape]:
    """What a 7B and a 13B layer are called with, to 128K tokens."""
    mistral = Shape(16384, 6062, heads=32, kv_heads=8, head_dim=128, hidden=4096, outer=4096)
    vicuna = replace(mistral, n=131072, p=48497, heads=40, kv_heads=40, hidden=5120, outer=5120)
    if op == "paged_attention":
        return [replace(mistral, batch=16), replace(mistral, p=48497, batch=2)]
    return [mistral, vicuna]
