"""Kernels bound by memory: gather_rows, paged attention and the page pool, in GB/s beside a plain copy."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.cases import Maker, Shape, arguments
from benchmarks.gpu.entry import Entry, by_size
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.micro_compute import RATIO, half
from benchmarks.gpu.shapes import length
from benchmarks.gpu.timing import copies, kernel_seconds
from zipvl_plugins import ops
from zipvl_plugins.pages.kernel import append_rows, store_rows

HEADS = ((40, 40, 128), (32, 8, 128))
PAGE_SIZE = 16


def gather_rows(machine: Machine) -> list[Entry]:
    lengths, heads = ((40,), ((2, 1, 16),)) if machine.rehearsal else ((4096, 16384, 131072), HEADS)

    def entry(shape: tuple[int, int, int]) -> Entry:
        key = "gather_rows/{}:{}x{}".format(*shape)
        return Entry(key, 10.0, lambda: by_size(machine, lengths, lambda n: _gather(machine, n, shape)))

    return [entry(shape) for shape in heads]


def paged_attention(machine: Machine) -> list[Entry]:
    heads = ((2, 1, 16),) if machine.rehearsal else HEADS
    cases = ((2, 9),) if machine.rehearsal else ((1, 1517), (16, 1517), (1, 16384), (8, 6062), (32, 6062), (1, 48497))

    def entry(shape: tuple[int, int, int]) -> Entry:
        def run(case: tuple[int, int]) -> dict[str, Any]:
            return _paged(machine, *case, shape)

        key = "paged_attention/{}:{}x{}".format(*shape)
        return Entry(key, 15.0, lambda: by_size(machine, cases, run, lambda case: "batch {}, {} rows".format(*case)))

    return [entry(shape) for shape in heads]


def pages(machine: Machine) -> list[Entry]:
    return [Entry("pages/append_rows, store_rows", 10.0, lambda: _pages(machine))]


def _gather(machine: Machine, n: int, heads: tuple[int, int, int]) -> dict[str, Any]:
    shape = Shape(n, max(1, round(RATIO * n)), *heads)
    make = Maker(machine.device, half(machine))
    ours = copies(lambda: tuple(arguments("gather_rows", shape, make).values()))
    theirs = [(x, index[: shape.p].long()) for x, index, _ in ours]
    rows = [(torch.empty_like(x[: shape.p]), x[: shape.p].clone()) for x, _, _ in ours]
    seconds = kernel_seconds(
        machine,
        {
            "ours": (lambda *values: ops.run_kernels("gather_rows", *values), ours),
            "index_select": (lambda x, index: x.index_select(0, index), theirs),
            "copy": (lambda target, source: target.copy_(source), rows),
        },
    )
    return _rates(seconds, 2 * rows[0][1].nbytes)


def _paged(machine: Machine, batch: int, rows: int, heads: tuple[int, int, int]) -> dict[str, Any]:
    """All sequences of one length; bytes are the cached rows', beside which the rest is nothing."""
    make = Maker(machine.device, half(machine))
    shape = Shape(rows, rows, *heads, batch=batch, page_size=PAGE_SIZE)

    def values() -> tuple[Any, ...]:
        made = arguments("paged_attention", shape, make)
        for pool in ("key_pages", "value_pages"):
            made[pool].normal_()
        made["context"] = torch.full_like(made["context"], rows)
        return tuple(made.values())

    ours = copies(values)
    moved = 2 * batch * rows * shape.kv_heads * shape.head_dim * ours[0][3].element_size()
    contiguous = [(torch.empty(moved // 2, dtype=torch.uint8, device=machine.device),) for _ in ours]
    seconds = kernel_seconds(
        machine,
        {
            "ours": (lambda *a: ops.run_kernels("paged_attention", *a), ours),
            "copy": (torch.clone, contiguous),
        },
    )
    return _rates(seconds, moved)


def _pages(machine: Machine) -> dict[str, Any]:
    """One decode step's rows of all layers of 13B appended, and one layer's T of a 16K prompt stored."""
    layers, batch, kv_heads, d, rows = (2, 2, 1, 16, 9) if machine.rehearsal else (40, 16, 40, 128, 6062)
    blocks = -(-rows // PAGE_SIZE)
    make = Maker(machine.device, half(machine))
    pools = [make.normal(max(blocks, layers * batch), PAGE_SIZE, kv_heads, d) for _ in range(2)]
    new = [make.normal(layers, batch, kv_heads, d) for _ in range(2)]
    page_ids = torch.arange(layers * batch, device=machine.device, dtype=torch.int32).view(layers, batch)
    slots = torch.full_like(page_ids, PAGE_SIZE - 1)
    kept = [make.normal(rows, kv_heads, d) for _ in range(2)]
    owned = torch.arange(blocks, device=machine.device, dtype=torch.int32)
    seconds = kernel_seconds(
        machine,
        {
            "append_rows": (append_rows, [(*pools, *new, page_ids, slots)]),
            "store_rows": (store_rows, [(*pools, *kept, owned, rows)]),
        },
    )
    moved = {"append_rows": 4 * new[0].nbytes, "store_rows": 4 * kept[0].nbytes}
    return {
        "shape": f"{layers} layers, batch {batch}; {length(rows)} rows",
        **{name: _rates({"ours": taken}, moved[name]) for name, taken in seconds.items()},
    }


def _rates(seconds: dict[str, float], moved: int) -> dict[str, Any]:
    return {
        "us": {name: round(taken * 1e6, 1) for name, taken in seconds.items()},
        "gb_per_s": {name: round(moved / taken / 1e9, 1) for name, taken in seconds.items()},
    }
