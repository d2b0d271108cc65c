"""Counts, indices, places and page tables that no run makes: kernels stay inside their tensors all the same.

TensorRT times a plugin on inputs of its own making. What is computed then means nothing; what is touched must exist.
The interpreter's worker makes sure of that (helpers/bounds.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.interpreter import interpret_call, interpret_every_tuning
from triton.runtime.errors import InterpreterError

from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import launch_on, operand, plan

N, PROBES, D, INNER, OUTER = 70, 16, 16, 24, 40
PAGES, BATCH, BLOCKS, PAGE_SIZE = 5, 2, 3, 16
INT32 = torch.iinfo(torch.int32)


def random(lowest: int, highest: int) -> Callable[[int], torch.Tensor]:
    """Integers of which the last, an op's count, is the highest."""
    return lambda size: torch.cat([torch.randint(lowest, highest, (size - 1,)), torch.tensor([highest])])


MADE_UP = {
    "largest": lambda size: torch.full((size,), INT32.max),
    "smallest": lambda size: torch.full((size,), INT32.min),
    "zero": torch.zeros,
    "random": random(INT32.min, INT32.max // 2),
    "about right": random(-N, 2 * N),
}


@pytest.fixture(autouse=True)
def _fresh_inputs() -> None:
    print("seed", torch.seed())


def arguments(op: str, kind: str, heads: int = 2) -> list[Any]:
    """An op's arguments, of which every integer that a kernel would trust is made up; so are select_tokens' scores."""

    def made_up(*shape: int) -> torch.Tensor:
        return MADE_UP[kind](torch.Size(shape).numel()).int().reshape(shape)

    index, count = made_up(N + 1).split([N, 1])
    rows, weight = torch.randn(N, INNER), torch.randn(OUTER, INNER)
    query, key = torch.randn(N, heads, D), torch.randn(N, 1, D)
    pages, token = torch.randn(PAGES, PAGE_SIZE, 1, D), torch.randn(BATCH, 1, D)
    scores = [made_up(N).view(torch.float32) for _ in range(2)]
    ratios = [made_up(1).view(torch.float32) for _ in range(3)]
    return {
        "probe_scores": [query[:PROBES], key, made_up(PROBES).long(), torch.zeros(1), 0.25],
        "select_tokens": [*scores, made_up(N), *ratios],
        "gather_rows": [rows, index, count],
        "gather_projection": [rows, weight, None, index, count],
        "projection_scatter": [rows, weight, None, index, count],
        "sparse_attention": [query, key, key, count, 0.25],
        "paged_attention": [
            query[:BATCH], token, token, pages, pages, made_up(BATCH, BLOCKS), made_up(BATCH), 0.25,
        ],
    }[op]  # fmt: skip


@pytest.mark.parametrize("kind", MADE_UP)
@pytest.mark.parametrize("op", ops.OPS)
def test_kernels_stay_inside_their_tensors(op: str, kind: str) -> None:
    results = interpret_every_tuning(op, *arguments(op, kind))
    if op == "select_tokens":  # whatever the scores, T is what other ops may trust
        for index, count in results:
            chosen = index[: int(count)].tolist()
            assert 0 <= int(count) == len(chosen) <= N
            assert chosen == sorted(set(chosen) & set(range(N)))


def test_no_count_is_so_small_that_it_comes_out_large() -> None:
    """Its blocks of rows times heads pass -2^31."""
    interpret_every_tuning("sparse_attention", *arguments("sparse_attention", "smallest", heads=40))


def gather(tokens: int, written: int) -> None:
    """gather_rows of `tokens` tokens where there are 8, into `written` rows."""
    (stage,) = ops.stages("gather_rows")
    inputs = [torch.randn(8, 3), torch.arange(8, dtype=torch.int32), torch.tensor([tokens], dtype=torch.int32)]
    launch = plan(stage, [operand(tensor) for tensor in inputs], {}, 80)
    launch_on(replace(launch, scalars=(tokens,)), inputs, [torch.empty(written, 3)])


def test_an_access_outside_is_seen() -> None:
    interpret_call(gather, 8, 8)
    with pytest.raises(InterpreterError, match=r"the kernel reads .* which no tensor of its launch holds"):
        interpret_call(gather, 9, 9)
    with pytest.raises(InterpreterError, match=r"the kernel writes .* which no tensor of its launch holds"):
        interpret_call(gather, 8, 7)
