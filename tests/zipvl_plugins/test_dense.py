"""The dense bodies of the ops against the references, where T is every token."""

from __future__ import annotations

import inspect

import pytest
import torch
from helpers.faces import relative_error

from zipvl_plugins import dense, ops

N = 37


@pytest.fixture
def values() -> dict[str, torch.Tensor | float | None]:
    """Arguments of all ops by name."""
    print("seed", torch.seed())
    one = torch.ones(1)
    return {
        "accumulated": torch.rand(N), "normalised": torch.rand(N), "forced": torch.rand(N) < 0.1,
        "tau": one * 0.5, "ratio_min": one, "ratio_max": one, "scale": 0.3,
        "x": torch.randn(N, 24), "o": torch.randn(N, 24), "weight": torch.randn(10, 24), "bias": torch.randn(10),
        "index": torch.arange(N).int(), "count": torch.full((1,), N).int(),
        "q": torch.randn(N, 14, 8), "k": torch.randn(N, 2, 8), "v": torch.randn(N, 2, 8),
    }  # fmt: skip


@pytest.mark.parametrize("op", dense.BODIES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_body_is_its_op_on_every_token(op: str, bias: bool, values: dict[str, torch.Tensor | float | None]) -> None:
    if not bias:
        values["bias"] = None
    reference = ops.reference(op)
    got, wanted = (
        function(*(values[name] for name in inspect.signature(function).parameters))
        for function in (dense.BODIES[op], reference._init_fn)
    )
    for ours, theirs in zip(*([o] if isinstance(o, torch.Tensor) else o for o in (got, wanted)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert relative_error(ours, theirs) <= 1e-5


def test_bodies_take_their_ops_arguments_by_name() -> None:
    for op, body in dense.BODIES.items():
        taken = set(inspect.signature(body).parameters)
        assert taken <= set(inspect.signature(ops.reference(op)._init_fn).parameters)
