"""When a ratio of times is a regression, when it is none, and when the samples cannot tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zipvl_compile.bench.statistics import CONFIDENCE, RESAMPLES, Estimate
from zipvl_compile.gate.report import Outcome
from zipvl_serving.arrays import Array


def judge(ratio: Estimate, tolerance: float) -> Outcome:
    """The outcome of a ratio of times, new over old.

    Regressed: the median lies above 1 + tolerance, and the interval's lower bound above 1. Inconclusive: it did not
    regress, yet the interval's upper bound lies above 1 + tolerance, so a slowdown of the tolerance is not excluded.
    Passed: such a slowdown is excluded.
    """
    if ratio.median > 1 + tolerance and ratio.low > 1:
        return Outcome.REGRESSED
    return Outcome.INCONCLUSIVE if ratio.high > 1 + tolerance else Outcome.PASSED


def ratio_of_medians(samples: Sequence[float], over: Sequence[float]) -> Estimate:
    """median(samples) / median(over) of samples taken apart, with a 95 % bootstrap interval; seeded, so repeatable."""
    median = float(np.median(samples) / np.median(over))
    if len(set(samples)) == len(set(over)) == 1:
        return Estimate(median=median, low=median, high=median)
    from scipy import stats

    def statistic(new: Array, old: Array, axis: int) -> Array:
        return np.asarray(np.median(new, axis=axis) / np.median(old, axis=axis))

    interval = stats.bootstrap(
        (np.asarray(samples, dtype=np.float64), np.asarray(over, dtype=np.float64)),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(median=median, low=float(interval.low), high=float(interval.high))


def describe(ratio: Estimate, tolerance: float) -> str:
    """`1.093 of the base [1.071, 1.117], tolerance 1.050`."""
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], tolerance {1 + tolerance:.3f}"
