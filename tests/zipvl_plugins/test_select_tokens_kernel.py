"""select_tokens by its kernel, in Triton's interpreter, against the paper's rule."""

from __future__ import annotations

import pytest
import torch
from helpers import oracle
from helpers.interpreter import interpret, interpret_every_tuning
from helpers.scores import DISTRIBUTIONS

from zipvl_plugins.select_tokens.kernel import STAGES

LENGTHS = (1, 2, 7, 127, 129, 1000, 4099)
TUNINGS = len(STAGES[0].tunings(80))
UNWRITTEN = torch.iinfo(torch.int32).max


@pytest.fixture(autouse=True)
def _fresh_inputs() -> None:
    print("seed", torch.seed())


def _one(value: float) -> torch.Tensor:
    return torch.tensor([value], dtype=torch.float32)


def _before_poison(values: torch.Tensor, poison: float) -> torch.Tensor:
    """The values, with something behind them in memory that would change T."""
    return torch.cat([values, torch.full((4096,), poison, dtype=values.dtype)])[: len(values)]


def _arguments(
    accumulated: torch.Tensor,
    normalised: torch.Tensor,
    forced: torch.Tensor | None,
    tau: float,
    least: float = 0,
    most: float = 1,
) -> list[torch.Tensor]:
    forced = torch.zeros(len(accumulated), dtype=torch.bool) if forced is None else forced
    scores = [_before_poison(values, float("inf")) for values in (accumulated, normalised)]
    return [*scores, _before_poison(forced, 1), _one(tau), _one(least), _one(most)]


def _important(result: tuple[torch.Tensor, torch.Tensor], n: int) -> list[int]:
    """T; nothing is written after it."""
    index, count = result
    assert index.dtype == count.dtype == torch.int32
    assert index.shape == (n,) and count.shape == (1,)
    chosen: list[int] = index[: int(count)].tolist()
    assert chosen == sorted(set(chosen))
    assert (index[int(count) :] == UNWRITTEN).all()
    return chosen


def _select(*arguments: torch.Tensor, tuning: int = 0) -> list[int]:
    return _important(interpret("select_tokens", *arguments, tuning=tuning), len(arguments[0]))


def _assert_threshold_rule(chosen: list[int], accumulated: torch.Tensor, normalised: torch.Tensor, tau: float) -> None:
    p, total = len(chosen), accumulated.double().sum()
    largest = accumulated.double().sort(descending=True).values.cumsum(0)
    assert largest[p - 1] >= (tau - 1e-5) * total
    assert p == 1 or largest[p - 2] <= (tau + 1e-5) * total
    best = normalised.sort(descending=True, stable=True).indices[:p]
    assert chosen == best.sort().values.tolist()


def _scores(name: str, n: int) -> torch.Tensor:
    scores = DISTRIBUTIONS[name](n)
    if not scores.any():
        scores[0] = 1.0
    return scores


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_threshold_rule(name: str, n: int) -> None:
    accumulated, normalised, tau = _scores(name, n), DISTRIBUTIONS[name](n), float(torch.rand(1).clamp(0.2, 0.9995))
    chosen = _select(*_arguments(accumulated, normalised, None, tau), tuning=n % TUNINGS)
    _assert_threshold_rule(chosen, accumulated, normalised, tau)


@pytest.mark.parametrize("name", ["random", "ties"])
def test_every_tuning(name: str) -> None:
    accumulated, normalised, forced = _scores(name, 4099), _scores(name, 4099), torch.rand(4099) < 0.1
    results = interpret_every_tuning("select_tokens", *_arguments(accumulated, normalised, forced, 0.875))
    assert len(results) == TUNINGS > 1
    expected = oracle.select(accumulated.double(), normalised, forced, 0.875)
    for result in results:
        differing = set(_important(result, 4099)) ^ set(expected.important)
        assert len(differing) <= 1  # rounding of the sums may move p by one


@pytest.mark.parametrize("name", ["flat", "heavy tail"])
def test_mass_of_a_long_prompt(name: str) -> None:
    accumulated, normalised = _scores(name, 131073), torch.rand(131073)
    chosen = _select(*_arguments(accumulated, normalised, None, 0.975), tuning=1)
    _assert_threshold_rule(chosen, accumulated, normalised, float(_one(0.975)))


@pytest.mark.parametrize("n", LENGTHS)
def test_forced_tokens_come_on_top(n: int) -> None:
    accumulated, normalised, forced = torch.rand(n), torch.rand(n), torch.rand(n) < 0.2
    forced[-1] = True
    for ratio in (0.0, 0.37):
        expected = oracle.select(accumulated.double(), normalised, forced, 0.9, *(float(_one(ratio)),) * 2)
        arguments = _arguments(accumulated, normalised, forced, 0.9, ratio, ratio)
        assert _select(*arguments) == expected.important
    arguments[2] = arguments[2].int()  # as TensorRT, whose plugins take no bool, hands them over
    assert _select(*arguments) == expected.important


@pytest.mark.parametrize(
    ("tau", "least", "most", "count"),
    [(1.0, 0, 1, 64), (1.0, 0, 0.25, 16), (1e-6, 0.5, 1, 32), (0.999, 0, 0.001, 1), (0.5, 0.25, 0.25, 16)],
)
def test_bounds_of_the_ratio(tau: float, least: float, most: float, count: int) -> None:
    scores = torch.rand(64).pow(8)
    assert len(_select(*_arguments(scores, scores, None, tau, least, most))) == count


@pytest.mark.parametrize(("n", "ratio"), [(2, 0.25), (6, 0.25), (10, 0.25), (14, 0.25), (50, 0.37), (150, 0.37)])
def test_halves_round_to_even(n: int, ratio: float) -> None:
    scores = torch.rand(n)
    assert len(_select(*_arguments(scores, scores, None, 0.9, ratio, ratio))) == max(1, int((_one(ratio) * n).round()))


@pytest.mark.parametrize("n", [1, 70, 4099])
def test_a_floor_of_one_keeps_every_token_and_reads_no_score(n: int) -> None:
    scores = torch.full((n,), float("nan"))
    assert _select(*_arguments(scores, scores, None, 0.5, 1, 1)) == list(range(n))


def test_one_token_can_be_enough_and_all_can_be_needed() -> None:
    peaked, flat, nothing = torch.full((50,), 1e-6), torch.ones(50), torch.zeros(50)
    peaked[17] = 1.0
    assert _select(*_arguments(peaked, peaked, None, 0.975)) == [17]
    assert _select(*_arguments(flat, flat, None, 0.999)) == list(range(50))
    assert _select(*_arguments(flat, flat, None, 0.5)) == list(range(25)), "ties go to the lower index"
    assert _select(*_arguments(nothing, nothing, None, 0.5)) == [0]


def test_rounding_adds_no_token_where_the_mass_is_met_exactly() -> None:
    for score in torch.rand(8):  # a third of them has a sum that float32 rounds up
        flat = score.repeat(1002)
        assert len(_select(*_arguments(flat, flat, None, 0.5))) == 501
