"""gather_rows by its kernel, in Triton's interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
from helpers.interpreter import interpret_every_tuning

from zipvl_plugins import ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("n", "p", "inner"),
    [(1, 1, (8, 64)), (127, 1, (7, 80)), (127, 127, (1, 96)), (301, 111, (3, 128)), (40, 39, (5120,))],
)
def test_kernel_copies_the_rows_of_t(n: int, p: int, inner: tuple[int, ...], dtype: torch.dtype) -> None:
    chosen = torch.randperm(n)[:p].sort().values
    x = torch.full((n, *inner), float("nan"), dtype=dtype)
    x[chosen] = torch.randn(p, *inner).to(dtype)
    index = torch.full((n,), 2**31 - 1, dtype=torch.int32)
    index[:p] = chosen.int()
    count = torch.tensor([p], dtype=torch.int32)
    expected = ops.reference("gather_rows")(x, index, count)
    results = interpret_every_tuning("gather_rows", x, index, count)
    assert len(results) > 1
    for rows in results:
        assert rows.shape == x.shape and rows.dtype == dtype
        assert torch.equal(rows[:p], expected[:p])
        assert rows[p:].isnan().all()  # nothing is spent on rows past the count
