"""When the requests of an open process are due: they come by a rate, whatever has ended."""

from __future__ import annotations

import numpy as np

from zipvl_compile.bench.workload import Arrivals


def due_times(arrivals: Arrivals, rate: float, count: int, rng: np.random.Generator) -> list[float]:
    """Seconds after the start at which each of `count` requests is due, ascending; the first is due at once.

    rate: requests a second. The gaps have the mean 1 / rate; they are equal (constant), exponential (poisson), or gamma
    distributed with the shape `burstiness`, whose coefficient of variation is 1 / sqrt(burstiness).
    """
    gaps = np.full(count - 1, 1 / rate)
    if arrivals.process == "poisson":
        gaps = rng.exponential(1 / rate, count - 1)
    elif arrivals.process == "gamma":
        gaps = rng.gamma(arrivals.burstiness, 1 / (rate * arrivals.burstiness), count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]
