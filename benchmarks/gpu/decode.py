"""Decode throughput at growing batch under one budget of KV: the whole cache, or T only.

Every sequence has a prompt of the same length behind it. A step is one CUDA graph: the decoder, and the new rows put
into their pages. What differs between the arms is how many rows are cached.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.micro_compute import half
from benchmarks.gpu.prefill import random_decoder
from benchmarks.gpu.shapes import decoder, length
from benchmarks.gpu.timing import kernel_seconds
from zipvl_compile.cost.decode import decode_step, parameters
from zipvl_compile.cost.hardware import GIB
from zipvl_compile.cost.prediction import predict
from zipvl_compile.cost.work import ITEM
from zipvl_compile.models.decoder import Decode
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.planning.cache import row_bytes
from zipvl_plugins.pages.kernel import append_rows

RATIO = 0.37
PAGE_SIZE = 16
CARD = 80 * GIB
"""The budget is what an 80 GB card has beside the weights, on larger ones too: figures compare across machines."""
IN_USE = 0.9
"""Share of the card's memory that may be in use."""


def entries(machine: Machine) -> list[Entry]:
    cases = (("tiny", 24),) if machine.rehearsal else (("13B", 16384), ("7B", 16384), ("7B", 65536))
    return [Entry(f"{name}/{length(n)}", 40.0, functools.partial(_decode, machine, name, n)) for name, n in cases]


def _decode(machine: Machine, name: str, n: int) -> dict[str, Any]:
    spec = decoder(name)
    machine.use_kernels()
    model = random_decoder(machine, spec)
    budget = _budget(machine, spec)
    page_bytes = 2 * PAGE_SIZE * spec.kv_heads * spec.head_dim * ITEM
    shape = (budget // page_bytes, PAGE_SIZE, spec.kv_heads, spec.head_dim)
    pools = [torch.empty(shape, dtype=half(machine), device=machine.device).normal_() for _ in range(2)]
    figures: dict[str, Any] = {"budget_gib": round(budget / GIB, 2)}
    for mode, rows in (("full", n), (f"evict at {RATIO:g}", max(1, round(RATIO * n)))):
        blocks = -(-(rows + 1) // PAGE_SIZE)
        most = shape[0] // (spec.layers * blocks)
        figures[mode] = {"rows": rows, "batch_at_most": most, "tokens_per_s": {}, "predicted": {}}
        for batch in _batches(most):
            step = _step(machine, Decode(model), pools, batch, rows, blocks)
            seconds = kernel_seconds(machine, {"step": (step, [()])}, target_s=0.1)["step"]
            figures[mode]["tokens_per_s"][str(batch)] = round(batch / seconds, 1)
            figures[mode]["predicted"][str(batch)] = _predicted(machine, spec, batch, rows)
    best = [max(arm["tokens_per_s"].values(), default=0) for arm in figures.values() if isinstance(arm, dict)]
    figures["gain"] = round(best[1] / best[0], 2) if best[0] else None
    return figures


def _predicted(machine: Machine, spec: DecoderSpec, batch: int, rows: int) -> float:
    """Tokens a second."""
    work = decode_step(spec, batch, spec.layers * rows, spec.layers * rows * row_bytes(spec, ITEM, None))
    return round(batch / predict(work, machine.gpu).total, 1)


def _budget(machine: Machine, spec: DecoderSpec) -> int:
    """Bytes of KV."""
    if machine.rehearsal:
        return 2 * 32 * spec.layers * int(row_bytes(spec, ITEM, None))
    return int(min(CARD * IN_USE - ITEM * parameters(spec), machine.free_memory() * IN_USE))


def _batches(most: int) -> Iterator[int]:
    """1, 2, 4, ... and the most."""
    batch = 1
    while batch < most:
        yield batch
        batch *= 2
    if most:
        yield most


def _step(
    machine: Machine, decode: Decode, pools: list[torch.Tensor], batch: int, rows: int, blocks: int
) -> Callable[[], Any]:
    """One step of `batch` sequences whose pages lie scattered over the pool."""
    spec, (key_pages, value_pages) = decode.decoder.spec, pools
    layers, device = spec.layers, machine.device
    tables = torch.randperm(len(pools[0]), device=device)[: layers * batch * blocks].view(layers, batch, blocks).int()
    context = torch.full((layers, batch), rows, dtype=torch.int32, device=device)
    tokens = torch.randint(spec.vocabulary, (batch,), device=device)
    positions = torch.full((batch,), rows, device=device)
    page_ids = tables[:, :, rows // PAGE_SIZE].contiguous()
    slots = torch.full_like(page_ids, rows % PAGE_SIZE)

    def step() -> None:
        with torch.no_grad():
            _, keys, values = decode(tokens, positions, key_pages, value_pages, tables, context)
            append_rows(key_pages, value_pages, keys, values, page_ids, slots)

    return step
