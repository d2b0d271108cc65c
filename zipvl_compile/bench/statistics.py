"""What samples say: medians with bootstrap intervals, and ratios of runs that were made in pairs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from zipvl_serving.arrays import Array

RESAMPLES = 2000
CONFIDENCE = 0.95
FEWEST_FOR_INTERVAL = 6
"""Of n samples the range holds the median with a confidence of 1 - 2^(1 - n): that of 5 stays below 95 %."""


class Estimate(BaseModel):
    """A median and its 95 % bootstrap interval; of fewer than FEWEST_FOR_INTERVAL samples, their range instead."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    low: float
    high: float


def estimate(samples: Sequence[float]) -> Estimate:
    """Median of samples of one thing, with the percentile bootstrap's interval; seeded, so repeatable."""
    median = statistics.median(samples)
    if len(samples) < FEWEST_FOR_INTERVAL or len(set(samples)) == 1:
        return Estimate(median=median, low=min(samples), high=max(samples))
    return _bootstrap(median, lambda values, axis: np.median(values, axis=axis), samples)


def ratio_of_medians(samples: Sequence[float], over: Sequence[float]) -> Estimate:
    """median(samples) / median(over) of samples taken apart, each resampled on its own."""
    median = statistics.median(samples) / statistics.median(over)
    if len(set(samples)) == len(set(over)) == 1:
        return Estimate(median=median, low=median, high=median)

    def ratio(new: Array, old: Array, axis: int) -> Array:
        return np.asarray(np.median(new, axis=axis) / np.median(old, axis=axis))

    return _bootstrap(median, ratio, samples, over)


def paired_ratio(samples: Sequence[float], over: Sequence[float]) -> Estimate:
    """Median of samples[i] / over[i], runs that stood side by side: what both suffered alike cancels."""
    return estimate([one / other for one, other in zip(samples, over, strict=True)])


def percentiles(samples: Sequence[float], points: Sequence[int] = (50, 90, 99)) -> dict[str, float]:
    """p50, p90 and p99 of samples, interpolated linearly."""
    found = np.percentile(np.asarray(samples, dtype=np.float64), points)
    return {f"p{point}": float(value) for point, value in zip(points, found, strict=True)}


def _bootstrap(median: float, statistic: Callable[..., Any], *samples: Sequence[float]) -> Estimate:
    """The percentile bootstrap's interval around `median`."""
    from scipy import stats

    interval = stats.bootstrap(
        [np.asarray(values, dtype=np.float64) for values in samples],
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Estimate(median=median, low=float(interval.low), high=float(interval.high))
