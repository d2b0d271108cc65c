"""paged_attention by its kernels, in Triton's interpreter, against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers.faces import relative_error
from helpers.interpreter import interpret, interpret_every_tuning
from helpers.tolerances import TOLERANCE

from zipvl_plugins import ops
from zipvl_plugins.paged_attention.kernel import SPLIT_ROWS, STAGES


@pytest.fixture(autouse=True)
def fresh_inputs() -> None:
    """New random numbers in every run; pytest prints the seed of one that fails."""
    print("seed", torch.seed())


@dataclass(frozen=True)
class Shape:
    heads: int
    kv_heads: int
    d: int
    page_size: int
    contexts: tuple[int, ...]

    def __str__(self) -> str:
        lengths = "-".join(map(str, self.contexts))
        return f"h{self.heads}:{self.kv_heads}-d{self.d}-page{self.page_size}-rows{lengths}"


SHAPES = (
    Shape(1, 1, 64, 16, (0,)),
    Shape(7, 1, 64, 16, (0, 15, 16, SPLIT_ROWS + 18, 33)),
    Shape(8, 1, 128, 256, (256, SPLIT_ROWS + 1)),
    Shape(1, 1, 96, 16, (SPLIT_ROWS, 1)),
    Shape(14, 2, 64, 16, (17,)),
    Shape(3, 3, 80, 1, (5, 0, 64, 1)),
    Shape(17, 1, 24, 4, (35,)),
)


def _inputs(shape: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """Rows in pages picked at random. Every row that is nobody's is NaN, and so is what the table's tail points to."""
    batch, blocks = len(shape.contexts), max(1, -(-max(shape.contexts) // shape.page_size))
    pools = torch.full((2, batch * blocks + 2, shape.page_size, shape.kv_heads, shape.d), float("nan"), dtype=dtype)
    table = torch.randperm(batch * blocks + 2)[: batch * blocks].reshape(batch, blocks).int()
    for own, rows in zip(table, shape.contexts, strict=True):
        for row in range(rows):
            pools[:, own[row // shape.page_size], row % shape.page_size] = torch.randn(2, *pools.shape[3:]).to(dtype)
    q, k, v = (torch.randn(batch, heads, shape.d).to(dtype) for heads in (shape.heads, shape.kv_heads, shape.kv_heads))
    return [q * 2, k, v, pools[0], pools[1], table, torch.tensor(shape.contexts, dtype=torch.int32)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    inputs = _inputs(shape, dtype)
    scale = shape.d**-0.5
    in_float = [x.float() if x.is_floating_point() else x for x in inputs]
    expected = ops.reference("paged_attention")(*in_float, scale)
    results = interpret_every_tuning("paged_attention", *inputs, scale)
    assert len(results) > 1
    for out in results:
        assert out.shape == expected.shape and out.dtype == dtype
        for own, wanted in zip(out, expected, strict=True):  # a long context's small values hide behind a short one's
            assert relative_error(own, wanted) <= TOLERANCE[dtype]


def test_more_splits_than_the_combining_kernel_takes_at_once() -> None:
    at_once = STAGES[1].tunings(80)[0].blocks["BLOCK_SPLITS"]
    shape = Shape(1, 1, 16, 256, (at_once * SPLIT_ROWS + 1,))
    inputs = _inputs(shape, torch.float32)
    expected = ops.reference("paged_attention")(*inputs, 0.25)
    assert relative_error(interpret("paged_attention", *inputs, 0.25), expected) <= TOLERANCE[torch.float32]


def test_neighbours_change_no_bit() -> None:
    shape = Shape(4, 2, 32, 16, (SPLIT_ROWS + 40, 3, 0, 48))
    q, k, v, key_pages, value_pages, table, context = _inputs(shape, torch.float16)
    together = interpret("paged_attention", q, k, v, key_pages, value_pages, table, context, 0.2)
    for at, rows in enumerate(shape.contexts):
        narrow = table[at : at + 1, : max(1, -(-rows // shape.page_size))]
        own = [x[at : at + 1] for x in (q, k, v)]
        alone = interpret("paged_attention", *own, key_pages, value_pages, narrow, context[at : at + 1], 0.2)
        assert torch.equal(alone[0], together[at])


def test_scores_far_apart_do_not_overflow() -> None:
    inputs = _inputs(Shape(4, 1, 64, 16, (SPLIT_ROWS + 100, 20)), torch.float32)
    inputs[0] *= 100
    expected = ops.reference("paged_attention")(*inputs, 1.0)
    assert relative_error(interpret("paged_attention", *inputs, 1.0), expected) <= TOLERANCE[torch.float32]
