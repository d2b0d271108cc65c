"""projection_scatter by its kernel, in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.faces import relative_error
from helpers.guarded import PROJECTIONS, guarded, random_rows, subset
from helpers.interpreter import interpret, interpret_every_tuning
from helpers.tolerances import TOLERANCE

from zipvl_plugins import ops


def assert_scattered(
    scattered: torch.Tensor, chosen: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype = torch.float32
) -> None:
    outside = torch.ones(len(scattered), dtype=torch.bool)
    outside[chosen] = False
    assert scattered.shape == expected.shape and scattered.dtype == dtype
    assert (scattered[outside] == 0).all()
    assert relative_error(scattered[chosen], expected[chosen]) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("n", "p", "inner", "outer", "biased"),
    PROJECTIONS,
)
def test_kernel_equals_the_reference(n: int, p: int, inner: int, outer: int, biased: bool, dtype: torch.dtype) -> None:
    chosen = torch.randperm(n)[:p].sort().values
    o, weight = guarded(random_rows(n, p, inner).to(dtype)), guarded(torch.randn(outer, inner).to(dtype))
    bias = guarded(torch.randn(outer).to(dtype))
    index, count = subset(n, chosen)
    in_double = o.double(), weight.double(), bias.double() if biased else None
    expected = ops.reference("projection_scatter")(*in_double, index, count)
    results = interpret_every_tuning("projection_scatter", o, weight, bias if biased else None, index, count)
    assert len(results) > 1
    for scattered in results:
        assert_scattered(scattered, chosen, expected, dtype)


TOKENS = 700
SETS: dict[str, Callable[[], torch.Tensor]] = {
    "first token": lambda: torch.tensor([0]),
    "last token": lambda: torch.tensor([TOKENS - 1]),
    "both ends": lambda: torch.cat([torch.arange(64), torch.arange(TOKENS - 64, TOKENS)]),
    "a block's worth in the middle": lambda: torch.arange(300, 428),
    "every second token": lambda: torch.arange(1, TOKENS, 2),
    "all but few": lambda: torch.randperm(TOKENS)[: TOKENS - 30].sort().values,
    "none": lambda: torch.arange(0),
}


@pytest.mark.parametrize("name", SETS)
def test_zeros_wherever_the_gaps_are(name: str) -> None:
    chosen = SETS[name]()
    o, weight = random_rows(TOKENS, len(chosen), 16), torch.randn(200, 16)
    index, count = subset(TOKENS, chosen)
    expected = ops.reference("projection_scatter")(o.double(), weight.double(), None, index, count)
    assert_scattered(interpret("projection_scatter", o, weight, None, index, count), chosen, expected)
