"""Rows into pages: the reference and the kernels, in Triton's interpreter, against a row-by-row copy."""

from __future__ import annotations

import pytest
import torch
from helpers.interpreter import interpret_call
from helpers.page_kernels import write_by_every_tuning

from zipvl_plugins.pages import reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OUT_OF_RANGE = 2**30


@pytest.fixture(autouse=True)
def fresh_inputs() -> None:
    """New random numbers in every run; pytest prints the seed of one that fails."""
    print("seed", torch.seed())


def _rows(*shape: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape).to(dtype), torch.randn(*shape).to(dtype)


def _check(op: str, pools: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], *rest: object) -> None:
    """Every element of both pools, by the reference and by each of the kernel's tunings."""
    results = interpret_call(write_by_every_tuning, op, *pools, *rest)
    assert len(results) > 1
    own = tuple(pool.clone() for pool in pools)
    getattr(reference, op)(*own, *rest)
    for written in [own, *results]:
        assert all(torch.equal(got, want) for got, want in zip(written, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("count", "page_size", "kv_heads", "d"),
    [(1, 16, 1, 64), (37, 1, 7, 80), (33, 16, 4, 128), (32, 16, 2, 96), (300, 256, 1, 64), (16, 4, 3, 40)],
)
def test_store_writes_the_rows_of_t_and_nothing_else(
    count: int, page_size: int, kv_heads: int, d: int, dtype: torch.dtype
) -> None:
    blocks = -(-count // page_size)
    pools = _rows(blocks + 3, page_size, kv_heads, d, dtype=dtype)
    news = _rows(count + 5, kv_heads, d, dtype=dtype)
    page_ids = torch.full((blocks + 2,), OUT_OF_RANGE, dtype=torch.int32)
    page_ids[:blocks] = torch.randperm(blocks + 3)[:blocks]
    expected = tuple(pool.clone() for pool in pools)
    for pool, new in zip(expected, news, strict=True):
        new[count:] = float("nan")
        for row in range(count):
            pool[page_ids[row // page_size], row % page_size] = new[row]
    _check("store_rows", pools, expected, *news, page_ids, count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("layers", "batch", "padded", "page_size", "kv_heads", "d"),
    [(1, 1, 1, 1, 1, 64), (3, 5, 8, 16, 7, 80), (2, 1, 2, 256, 9, 128), (4, 3, 3, 4, 5, 96)],
)
def test_append_writes_one_row_per_layer_and_sequence(
    layers: int, batch: int, padded: int, page_size: int, kv_heads: int, d: int, dtype: torch.dtype
) -> None:
    pages = layers * batch + 2
    pools = _rows(pages, page_size, kv_heads, d, dtype=dtype)
    news = _rows(layers, padded, kv_heads, d, dtype=dtype)
    page_ids = torch.randperm(pages)[: layers * batch].reshape(layers, batch)
    slots = torch.randint(page_size, (layers, batch), dtype=torch.int32)
    expected = tuple(pool.clone() for pool in pools)
    for pool, new in zip(expected, news, strict=True):
        new[:, batch:] = float("nan")
        for layer in range(layers):
            for at in range(batch):
                pool[page_ids[layer, at], slots[layer, at]] = new[layer, at]
    _check("append_rows", pools, expected, *news, page_ids, slots)
    _check("append_rows", pools, expected, *news, page_ids.int(), slots)


def test_the_ops_say_what_they_write() -> None:
    pools, news = _rows(3, 4, 2, 8, dtype=torch.float32), _rows(2, 1, 2, 8, dtype=torch.float32)
    page_ids, slots = torch.tensor([[2], [0]]), torch.tensor([[1], [3]], dtype=torch.int32)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(reference.append_rows, (*pools, *news, page_ids, slots), test_utils=checks)
    torch.library.opcheck(
        reference.store_rows, (*pools, *(new[:, 0] for new in news), page_ids[0], 2), test_utils=checks
    )
