"""T by search (the portable function) and by sort (the reference, ONNX Runtime's function) against the paper's rule."""

from __future__ import annotations

import pytest
import torch
from helpers import oracle
from helpers.faces import run_onnx
from helpers.scores import DISTRIBUTIONS

from zipvl_plugins import ops

LENGTHS = (1, 2, 7, 127, 1000, 4099)


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


def _both(*arguments: torch.Tensor) -> dict[str, list[int]]:
    """T from the reference and from both ONNX functions; the index must ascend and the count must fit it."""
    chosen = {}
    results = {
        "reference": ops.reference("select_tokens")(*arguments),
        "by search": run_onnx("select_tokens", list(arguments), {}, "portable"),
        "by sort": run_onnx("select_tokens", list(arguments), {}, "onnxruntime"),
    }
    for face, (index, count) in results.items():
        assert index.dtype == torch.int32 and count.dtype == torch.int32
        assert index.shape == arguments[0].shape and count.shape == (1,)
        chosen[face] = index[: int(count)].tolist()
        assert chosen[face] == sorted(set(chosen[face]))
    return chosen


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("tau", [0.3, 0.9, 0.975, 0.999])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_threshold_rule(name: str, tau: float, n: int) -> None:
    torch.manual_seed(torch.seed() % 2**31)
    accumulated = DISTRIBUTIONS[name](n)
    if not accumulated.any():
        accumulated[0] = 1.0
    normalised = DISTRIBUTIONS[name](n)
    forced = torch.zeros(n, dtype=torch.bool)
    wanted = oracle.select(accumulated.double(), normalised, forced, tau)
    total = accumulated.double().sum()
    largest = accumulated.double().sort(descending=True).values.cumsum(0)
    for face, chosen in _both(accumulated, normalised, forced, _scalar(tau), _scalar(0), _scalar(1)).items():
        p = len(chosen)
        assert largest[p - 1] >= (tau - 1e-5) * total, face
        assert p == 1 or largest[p - 2] <= (tau + 1e-5) * total, face
        same_p = oracle.select(accumulated.double(), normalised, forced, 0.5, p / n, p / n)
        assert chosen == same_p.important, face
        # fp32 sums may move p only where the mass of the fewer tokens meets the threshold to within rounding.
        assert p == wanted.p or abs(largest[min(p, wanted.p) - 1] - tau * total) <= 1e-5 * total, face


@pytest.mark.parametrize("n", LENGTHS)
def test_forced_tokens_come_on_top(n: int) -> None:
    accumulated, normalised = torch.rand(n), torch.rand(n)
    forced = torch.rand(n) < 0.2
    forced[-1] = True
    for ratio in (0.0, 0.37, 1.0):
        wanted = oracle.select(accumulated.double(), normalised, forced, 0.9, ratio, ratio)
        for face, chosen in _both(
            accumulated, normalised, forced, _scalar(0.9), _scalar(ratio), _scalar(ratio)
        ).items():
            assert chosen == wanted.important, face


@pytest.mark.parametrize(("tau", "least", "most", "count"), [(1.0, 0, 1, 64), (0.2, 1, 1, 64), (1.0, 0, 0.25, 16)])
def test_bounds_of_the_ratio(tau: float, least: float, most: float, count: int) -> None:
    accumulated = torch.rand(64).pow(8)
    forced = torch.zeros(64, dtype=torch.bool)
    for chosen in _both(accumulated, accumulated, forced, _scalar(tau), _scalar(least), _scalar(most)).values():
        assert len(chosen) == count


def test_one_token_can_be_enough_and_all_can_be_needed() -> None:
    forced = torch.zeros(50, dtype=torch.bool)
    peaked, flat = torch.full((50,), 1e-6), torch.ones(50)
    peaked[17] = 1.0
    for chosen in _both(peaked, peaked, forced, _scalar(0.975), _scalar(0), _scalar(1)).values():
        assert chosen == [17]
    for chosen in _both(flat, flat, forced, _scalar(0.999), _scalar(0), _scalar(1)).values():
        assert chosen == list(range(50))
    for chosen in _both(flat, flat, forced, _scalar(0.5), _scalar(0), _scalar(1)).values():
        assert chosen == list(range(25)), "ties go to the lower index"
