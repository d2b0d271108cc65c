"""gather_projection by its kernel, in Triton's interpreter, against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.faces import relative_error
from helpers.guarded import PROJECTIONS, guarded, random_rows, subset
from helpers.interpreter import interpret, interpret_every_tuning
from helpers.tolerances import TOLERANCE

from zipvl_plugins import ops


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("n", "p", "inner", "outer", "biased"),
    PROJECTIONS,
)
def test_kernel_equals_the_reference(n: int, p: int, inner: int, outer: int, biased: bool, dtype: torch.dtype) -> None:
    chosen = torch.randperm(n)[:p].sort().values
    x = torch.full((n, inner), float("nan"), dtype=dtype)
    x[chosen] = torch.randn(p, inner).to(dtype)
    weight, bias = guarded(torch.randn(outer, inner).to(dtype)), guarded(torch.randn(outer).to(dtype))
    x, (index, count) = guarded(x), subset(n, chosen)
    expected = torch.nn.functional.linear(x[chosen].double(), weight.double(), bias.double() if biased else None)
    results = interpret_every_tuning("gather_projection", x, weight, bias if biased else None, index, count)
    assert len(results) > 1
    for rows in results:
        assert rows.shape == (n, outer) and rows.dtype == dtype
        assert relative_error(rows[:p], expected) <= TOLERANCE[dtype]
        assert rows[p:].isnan().all()  # nothing is spent on rows past the count


def test_more_row_blocks_than_go_together() -> None:
    n, p = 700, 641
    chosen = torch.randperm(n)[:p].sort().values
    x, weight = random_rows(n, n, 16), torch.randn(200, 16)
    index, count = subset(n, chosen)
    expected = ops.reference("gather_projection")(x.double(), weight.double(), None, index, count)
    rows = interpret("gather_projection", x, weight, None, index, count)
    assert relative_error(rows[:p], expected[:p]) <= TOLERANCE[torch.float32]


def test_an_empty_set_is_no_work() -> None:
    index, count = subset(40, torch.arange(0))
    assert interpret("gather_projection", torch.randn(40, 16), torch.randn(8, 16), None, index, count).isnan().all()
