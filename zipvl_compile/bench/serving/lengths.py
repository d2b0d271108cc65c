"""How many frames a request has, and how many tokens it asks for."""

from __future__ import annotations

import math

import numpy as np

from zipvl_compile.bench.workload import Lengths


def draw(lengths: Lengths, count: int, rng: np.random.Generator) -> list[int]:
    """`count` whole numbers within [low, high].

    constant: all `low`. uniform: all equally likely. lognormal: of sigma `sigma` around the geometric mean of low and
    high, rounded, and clipped to them.
    """
    low, high = lengths.low, lengths.high
    if lengths.distribution == "constant":
        return [low] * count
    assert high is not None  # Lengths has checked it
    if lengths.distribution == "uniform":
        return [int(value) for value in rng.integers(low, high, count, endpoint=True)]
    drawn = rng.lognormal(math.log(low * high) / 2, lengths.sigma, count)
    return [int(value) for value in np.clip(np.rint(drawn), low, high)]
