"""Open arrival processes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zipvl_compile.bench.serving.arrivals import due_times
from zipvl_compile.bench.workload import Arrivals

PROCESSES = ("constant", "poisson", "gamma")


@given(
    process=st.sampled_from(PROCESSES),
    rate=st.floats(0.01, 1000),
    burstiness=st.floats(0.1, 10),
    count=st.integers(1, 50),
    seed=st.integers(0, 2**32),
)
def test_one_time_per_request_ascending_from_now_and_repeatable(
    process: str, rate: float, burstiness: float, count: int, seed: int
) -> None:
    arrivals = Arrivals.model_validate({"process": process, "burstiness": burstiness})
    due = due_times(arrivals, rate, count, np.random.default_rng(seed))
    assert len(due) == count and due[0] == 0
    assert due == sorted(due) and np.isfinite(due).all()
    assert due == due_times(arrivals, rate, count, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("process", "burstiness", "variation"),
    [("constant", 1.0, 0.0), ("poisson", 1.0, 1.0), ("gamma", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5)],
)
def test_gaps_have_the_rate_and_the_variation_of_the_process(process: str, burstiness: float, variation: float) -> None:
    arrivals = Arrivals.model_validate({"process": process, "burstiness": burstiness})
    gaps = np.diff(due_times(arrivals, 8.0, 40_000, np.random.default_rng(0)))
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03, abs=1e-9)
