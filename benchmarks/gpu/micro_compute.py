"""Kernels bound by arithmetic: sparse attention and the lazy projections, in TFLOP/s and shares of the GPU's peak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.baselines import Attend, dense_attentions
from benchmarks.gpu.cases import Maker, Shape, arguments
from benchmarks.gpu.entry import Entry, by_size
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.timing import copies, kernel_seconds
from zipvl_plugins import ops

KEPT = (1024, 2048, 4096, 8192, 16384, 24249, 32768, 48497)
"""Tokens of T; 24249 and 48497 are 64K and 128K at ratio 0.37."""
HEADS = ((40, 40, 128), (32, 8, 128), (32, 32, 64), (28, 4, 64))
"""heads, kv_heads, head_dim: 13B, 7B, and both kinds at head dim 64."""
PROJECTIONS = ((5120, 5120), (4096, 4096), (4096, 1024))
"""inner, outer: Q, V and O of 13B; Q of 7B; V of 7B."""
RATIO = 0.37


def attention(machine: Machine) -> list[Entry]:
    kept, heads = ((14,), ((2, 1, 16),)) if machine.rehearsal else (KEPT, HEADS)

    def entry(shape: tuple[int, int, int]) -> Entry:
        key = "sparse_attention/{}:{}x{}".format(*shape)
        return Entry(key, 40.0, lambda: by_size(machine, kept, lambda p: _attention(machine, p, shape)))

    return [entry(shape) for shape in heads]


def gather_projection(machine: Machine) -> list[Entry]:
    return _projections(machine, "gather_projection")


def projection_scatter(machine: Machine) -> list[Entry]:
    return _projections(machine, "projection_scatter")


def half(machine: Machine) -> torch.dtype:
    """The type that is timed; the interpreter gets float32."""
    return torch.float32 if machine.rehearsal else torch.bfloat16


def _attention(machine: Machine, p: int, heads: tuple[int, int, int]) -> dict[str, Any]:
    """Our grid is made for the n of this p, and exits early; the others get exactly p rows."""
    shape = Shape(round(p / RATIO), p, *heads)
    make = Maker(machine.device, half(machine))
    ours = copies(lambda: tuple(arguments("sparse_attention", shape, make).values()))
    theirs: Sequence[Sequence[Any]] = [tuple(t[:p] for t in values[:3]) for values in ours]
    arms: dict[str, Any] = {"ours": (lambda *values: ops.run_kernels("sparse_attention", *values), ours)}
    for name, attend in dense_attentions(machine, grouped=heads[0] != heads[1]).items():
        arms[name] = (_without_grad(attend), theirs)
    seconds = kernel_seconds(machine, arms)
    flops = 2 * p**2 * shape.queries
    rates = {name: flops / taken / 1e12 for name, taken in seconds.items()}
    return {
        "us": {name: round(taken * 1e6, 1) for name, taken in seconds.items()},
        "tflops": {name: round(rate, 1) for name, rate in rates.items()},
        "of_peak": {name: round(rate * 1e12 / machine.gpu.flops, 3) for name, rate in rates.items()},
    }


def _projections(machine: Machine, op: str) -> list[Entry]:
    sizes = ((32, 48),) if machine.rehearsal else PROJECTIONS
    lengths = (40,) if machine.rehearsal else (4096, 16384, 65536)

    def entry(inner: int, outer: int) -> Entry:
        key = f"{op}/{inner}->{outer}"
        return Entry(key, 15.0, lambda: by_size(machine, lengths, lambda n: _projection(machine, op, n, inner, outer)))

    return [entry(*size) for size in sizes]


def _projection(machine: Machine, op: str, n: int, inner: int, outer: int) -> dict[str, Any]:
    """Against F.linear on rows that are already gathered, and on all rows: what the lazy projection saves."""
    p = max(1, round(RATIO * n))
    head_dim = 16 if machine.rehearsal else 128
    # The op's attention side is as wide as its heads; the other side is `hidden`, or `outer` where Q and V differ.
    if op == "gather_projection":
        shape = Shape(n, p, heads=inner // head_dim, head_dim=head_dim, hidden=inner, outer=outer)
    else:
        shape = Shape(n, p, heads=inner // head_dim, head_dim=head_dim, hidden=outer)
    make = Maker(machine.device, half(machine))
    ours = copies(lambda: tuple(arguments(op, shape, make).values()))
    weights = [values[1] for values in ours]
    gathered = [(make.normal(p, inner), weight) for weight in weights]
    whole = [(make.normal(n, inner), weight) for weight in weights]
    seconds = kernel_seconds(
        machine,
        {
            "ours": (lambda *values: ops.run_kernels(op, *values), ours),
            "linear of p rows": (F.linear, gathered),
            "linear of n rows": (F.linear, whole),
        },
    )
    flops = 2 * inner * outer
    rows = {"ours": p, "linear of p rows": p, "linear of n rows": n}
    return {
        "us": {name: round(taken * 1e6, 1) for name, taken in seconds.items()},
        "tflops": {name: round(flops * rows[name] / taken / 1e12, 1) for name, taken in seconds.items()},
        "saves": round(seconds["linear of n rows"] / seconds["ours"], 2),
    }


def _without_grad(attend: Attend) -> Attend:
    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return attend(q, k, v)

    return run
