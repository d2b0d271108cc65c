"""When samples say regression, when none, when nothing; and how often they are wrong on simulated machines."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate_noise import outcomes
from zipvl_compile.bench.statistics import Estimate, ratio_of_medians
from zipvl_compile.gate.report import Outcome
from zipvl_compile.gate.verdict import judge, judge_guard

TRIALS = 60


@pytest.mark.parametrize(
    ("low", "median", "high", "outcome"),
    [
        (0.99, 1.00, 1.01, Outcome.PASSED),
        (0.80, 0.82, 0.84, Outcome.PASSED),
        (1.01, 1.03, 1.05, Outcome.PASSED),  # slower for sure, but not by the tolerance
        (1.04, 1.10, 1.20, Outcome.REGRESSED),
        (1.06, 1.07, 1.08, Outcome.REGRESSED),
        (0.99, 1.10, 1.20, Outcome.INCONCLUSIVE),  # may be no slowdown at all
        (0.90, 1.00, 1.10, Outcome.INCONCLUSIVE),  # may be one of the tolerance
        (1.01, 1.05, 1.06, Outcome.INCONCLUSIVE),
        (0.00, 0.50, 1.06, Outcome.INCONCLUSIVE),
    ],
)
def test_verdict(low: float, median: float, high: float, outcome: Outcome) -> None:
    assert judge(Estimate(median=median, low=low, high=high), 0.05) is outcome


@pytest.mark.parametrize(("low", "outcome"), [(0.9, Outcome.PASSED), (1.2, Outcome.PASSED), (1.26, Outcome.REGRESSED)])
def test_a_guard_speaks_where_there_is_no_doubt(low: float, outcome: Outcome) -> None:
    assert judge_guard(Estimate(median=1.5, low=low, high=2.0), 0.25) is outcome


def test_noise_that_falls_on_both_halves_of_a_pair() -> None:
    """CV 20 % that drifts, 5 % of a sample's own, one sample in twenty twice as long: what shared machines do."""
    noise = {"drift": 0.2, "jitter": 0.05, "spikes": 0.05}
    assert outcomes(0.0, TRIALS, **noise) == {Outcome.PASSED: TRIALS}
    assert outcomes(0.1, TRIALS, **noise) == {Outcome.REGRESSED: TRIALS}


def test_noise_that_pairing_cannot_cancel() -> None:
    """CV 20 % of each sample's own: no verdict more often, a wrong one hardly ever."""
    noise = {"drift": 0.0, "jitter": 0.2}
    same, slower = outcomes(0.0, TRIALS, **noise), outcomes(0.1, TRIALS, **noise)
    assert same[Outcome.REGRESSED] <= 0.02 * TRIALS
    assert same[Outcome.PASSED] >= 0.6 * TRIALS
    assert slower[Outcome.REGRESSED] >= 0.9 * TRIALS
    assert slower[Outcome.PASSED] <= 0.02 * TRIALS


def test_ratio_of_medians_covers_the_ratio() -> None:
    rng = np.random.default_rng(0)
    old, new = rng.normal(1.0, 0.05, 60), rng.normal(1.2, 0.05, 40)
    ratio = ratio_of_medians(new.tolist(), old.tolist())
    assert ratio.low < 1.2 < ratio.high
    assert ratio.high - ratio.low < 0.08
    assert ratio == ratio_of_medians(new.tolist(), old.tolist())


def test_ratio_of_medians_without_spread() -> None:
    assert ratio_of_medians([2.0, 2.0], [1.0]) == Estimate(median=2.0, low=2.0, high=2.0)
