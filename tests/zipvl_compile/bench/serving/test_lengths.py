"""Distributions of frames and answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipvl_compile.bench.serving.lengths import draw
from zipvl_compile.bench.workload import Lengths


def lengths(distribution: str, low: int, high: int | None = None, sigma: float = 0.5) -> Lengths:
    return Lengths.model_validate({"distribution": distribution, "low": low, "high": high, "sigma": sigma})


@given(
    distribution=st.sampled_from(["constant", "uniform", "lognormal"]),
    low=st.integers(1, 10_000),
    more=st.integers(0, 10_000),
    sigma=st.floats(0.01, 5),
    seed=st.integers(0, 2**32),
)
def test_whole_numbers_within_the_bounds_and_repeatable(
    distribution: str, low: int, more: int, sigma: float, seed: int
) -> None:
    asked = lengths(distribution, low, low + more, sigma)
    drawn = draw(asked, 20, np.random.default_rng(seed))
    assert len(drawn) == 20 and all(isinstance(value, int) and low <= value <= low + more for value in drawn)
    assert drawn == draw(asked, 20, np.random.default_rng(seed))


def test_each_distribution_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    assert set(draw(lengths("constant", 5, 9), 10, rng)) == {5}
    uniform = np.array(draw(lengths("uniform", 1, 4), 8000, rng))
    assert np.bincount(uniform)[1:] == pytest.approx([2000] * 4, rel=0.1)
    lognormal = np.array(draw(lengths("lognormal", 4, 400, 0.5), 8000, rng))
    assert np.median(lognormal) == pytest.approx(40, rel=0.05)  # the geometric mean of the bounds
    assert np.log(lognormal).std() == pytest.approx(0.5, rel=0.05)
