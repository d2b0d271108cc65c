"""sparse_attention by its kernel, in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers.attention_kernel import attend_as_on, attend_in_sections
from helpers.faces import relative_error
from helpers.guarded import guarded, random_rows
from helpers.interpreter import interpret, interpret_call, interpret_every_tuning
from helpers.tolerances import TOLERANCE

from zipvl_plugins import ops


@dataclass(frozen=True)
class Shape:
    n: int
    p: int
    heads: int
    kv_heads: int
    d: int

    def __str__(self) -> str:
        return f"n{self.n}-p{self.p}-h{self.heads}:{self.kv_heads}-d{self.d}"


SHAPES = (
    Shape(1, 1, 2, 2, 64),
    Shape(150, 131, 2, 1, 64),
    Shape(41, 39, 7, 1, 128),
    Shape(127, 1, 7, 1, 80),
    Shape(129, 129, 1, 1, 80),
    Shape(131, 131, 1, 1, 96),
    Shape(300, 259, 1, 1, 128),
    Shape(257, 256, 2, 1, 16),
    Shape(40, 39, 4, 2, 24),
    Shape(40, 39, 2, 1, 72),
)


def inputs_of(s: Shape, dtype: torch.dtype) -> list[torch.Tensor]:
    """q, k, v and count; rows at or after count are NaN, and so is the memory around."""
    rows = [random_rows(s.n, s.p, heads, s.d).to(dtype) for heads in (s.heads, s.kv_heads, s.kv_heads)]
    return [*map(guarded, rows), torch.tensor([s.p], dtype=torch.int32)]


def expected_of(inputs: list[torch.Tensor], scale: float) -> torch.Tensor:
    *rows, count = inputs
    return ops.reference("sparse_attention")(*(x.double() for x in rows), count, scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_equals_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    inputs, scale = inputs_of(shape, dtype), shape.d**-0.5
    expected = expected_of(inputs, scale)
    results = interpret_every_tuning("sparse_attention", *inputs, scale)
    assert len(results) > 1
    for out in results:
        assert out.shape == expected.shape and out.dtype == dtype
        assert relative_error(out[: shape.p], expected[: shape.p]) <= TOLERANCE[dtype]
        assert out[shape.p :].isnan().all()  # nothing is spent on rows past the count


@pytest.mark.parametrize("sm", [89, 90])
@pytest.mark.parametrize("d", [64, 96, 128])
def test_as_launched_on_other_gpus(sm: int, d: int) -> None:
    inputs = inputs_of(Shape(150, 131, 1, 1, d), torch.float16)
    expected = expected_of(inputs, d**-0.5)
    for out in interpret_call(attend_as_on, sm, *inputs, d**-0.5):
        assert relative_error(out[:131], expected[:131]) <= TOLERANCE[torch.float16]


def test_rows_attend_to_themselves_and_before() -> None:
    shape = Shape(150, 150, 1, 1, 16)
    q, k, v, count = inputs_of(shape, torch.float32)
    before = interpret("sparse_attention", q, k, v, count, 0.25)
    k[100:] = k[100:].flip(0)
    v[100:] += 7
    after = interpret("sparse_attention", q, k, v, count, 0.25)
    assert torch.equal(before[:100], after[:100])
    assert (before[100:] != after[100:]).all()


def test_scores_far_apart_do_not_overflow() -> None:
    inputs = inputs_of(Shape(140, 133, 2, 1, 64), torch.float32)
    inputs[0] *= 100
    out = interpret("sparse_attention", *inputs, 1.0)
    assert relative_error(out[:133], expected_of(inputs, 1.0)[:133]) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("kv_heads_a_section", [1, 2, 5])
def test_heads_in_sections(kv_heads_a_section: int) -> None:
    """Where the cache does not hold K and V of all 5 kv heads together, every head still has its turn."""
    shape = Shape(100, 77, 10, 5, 16)
    inputs = inputs_of(shape, torch.float32)
    section_bytes = kv_heads_a_section * shape.p * 2 * shape.d * 4
    out = interpret_call(attend_in_sections, section_bytes, *inputs, 0.25)
    assert relative_error(out[:77], expected_of(inputs, 0.25)[:77]) <= TOLERANCE[torch.float32]


def test_an_empty_set_is_no_work() -> None:
    q, k, v, count = inputs_of(Shape(130, 0, 2, 1, 64), torch.float16)
    assert interpret("sparse_attention", q, k, v, count, 0.125).isnan().all()
