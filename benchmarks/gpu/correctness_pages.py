"""append_rows and store_rows against their references: rows land where they belong and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.cases import Maker, Shape
from zipvl_plugins.gpu.launch import Choose
from zipvl_plugins.pages import kernel, reference


def check(name: str, shape: Shape, make: Maker, choose: Choose) -> dict[str, Any]:
    """Bit for bit: a copy has no rounding."""
    by_kernel, by_reference, rows = _CALLS[name](shape, make)
    blocks = shape.batch * (-(-shape.p // shape.page_size) + 1)
    pools = [make.normal(blocks, shape.page_size, shape.kv_heads, shape.head_dim) for _ in range(2)]
    wanted = [pool.clone() for pool in pools]
    by_kernel(*pools, *rows, choose=choose)
    by_reference(*wanted, *rows)
    same = all(torch.equal(pool, other) for pool, other in zip(pools, wanted, strict=True))
    return {"passed": same, "relative_error": 0.0 if same else float("inf"), "same_bits": same}


def _append(shape: Shape, make: Maker) -> tuple[Callable[..., None], Callable[..., None], tuple[Any, ...]]:
    """As many layers as the pages hold rows of, each sequence in a page of its own."""
    keys, values = (make.normal(1, shape.batch, shape.kv_heads, shape.head_dim) for _ in range(2))
    page_ids = torch.randperm(shape.batch * 2, device=make.device)[: shape.batch].int()[None]
    slots = torch.randint(shape.page_size, (1, shape.batch), device=make.device).int()
    return kernel.append_rows, reference.append_rows, (keys, values, page_ids, slots)


def _store(shape: Shape, make: Maker) -> tuple[Callable[..., None], Callable[..., None], tuple[Any, ...]]:
    keys, values = (make.first_rows(shape.n, shape.p, shape.kv_heads, shape.head_dim) for _ in range(2))
    page_ids = torch.randperm(-(-shape.p // shape.page_size), device=make.device).int()
    return kernel.store_rows, reference.store_rows, (keys, values, page_ids, shape.p)


_CALLS = {"append_rows": _append, "store_rows": _store}
OPS = tuple(_CALLS)
