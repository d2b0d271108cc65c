"""Figures from exchanges made by hand."""

from __future__ import annotations

import pytest
from helpers.load import exchange

from zipvl_compile.bench.serving.figures import cell, medians, rates
from zipvl_compile.bench.serving.load import Batch
from zipvl_compile.bench.workload import SLO
from zipvl_serving.errors import OverloadedError

GOOD = exchange(0.0, 0.5, 1.0, 1.5)
SLOW = exchange(0.0, 2.0, 3.0, 4.0)
FAILED = exchange(1.0, error=OverloadedError("the queue is full"))
LIMITS = SLO(ttft_s=1.0)


def test_rates_are_of_the_whole_round_and_of_answers_that_ended_well() -> None:
    batch = Batch([GOOD, SLOW, FAILED])
    assert batch.seconds == 4.0
    assert rates(batch, LIMITS) == {"tokens_per_s": 6 / 4, "requests_per_s": 2 / 4, "goodput_per_s": 1 / 4}
    assert "goodput_per_s" not in rates(batch, SLO())


def test_a_round_is_one_sample_and_percentiles_are_of_all_requests() -> None:
    made = cell("dense", {"concurrency": 2}, [Batch([GOOD, SLOW]), Batch([GOOD, FAILED])], LIMITS)
    assert made.samples == {
        "ttft_s": [1.25, 0.5], "itl_s": [0.75, 0.5], "e2e_s": [2.75, 1.5],
        "tokens_per_s": [6 / 4, 3 / 1.5], "requests_per_s": [2 / 4, 1 / 1.5], "goodput_per_s": [1 / 4, 1 / 1.5],
    }  # fmt: skip
    assert made.figures["ttft_s"].model_dump() == {"median": 0.875, "low": 0.5, "high": 1.25}
    assert made.facts["percentiles"]["ttft_s"]["p50"] == 0.5
    assert made.facts["percentiles"]["ttft_s"]["p90"] == pytest.approx(1.7)
    assert set(made.facts["percentiles"]) == {"ttft_s", "itl_s", "e2e_s", "itl_gap_s"}
    assert made.facts["errors"] == {"overloaded": 1} and made.facts["first_error"] == "the queue is full"
    assert (made.facts["requests"], made.facts["requests_ended"]) == (4, 3)
    assert made.facts["slo_attainment"] == 2 / 4  # a failed request kept nothing
    assert made.facts["ratio_per_layer"] == [0.5, 0.25] and made.facts["kv_bytes"] == 4096


def test_answers_shorter_than_asked_and_coalesced_ones_are_counted() -> None:
    made = cell("m", {"rate": 1.0}, [Batch([exchange(0.25, 1.0, tokens=2, asked=3, due_at=0.0)])], SLO())
    assert (made.facts["requests_short"], made.facts["requests_coalesced"]) == (1, 1)
    assert made.facts["client_lag_s"]["p99"] == 0.25
    assert "slo_attainment" not in made.facts


def test_a_server_that_says_nothing_of_the_method_leaves_no_facts_of_it() -> None:
    made = cell("m", {"rate": 1.0}, [Batch([exchange(0.0, 1.0, statistics={})])], SLO())
    assert "kv_bytes" not in made.facts and made.facts["prompt_tokens"] == 7


def test_where_everything_failed_there_is_no_latency_and_no_division() -> None:
    made = cell("m", {"rate": 1.0}, [Batch([exchange(0.0, error=OverloadedError("full"), ended_at=1.0)])], SLO())
    assert set(made.figures) == {"tokens_per_s", "requests_per_s"}
    assert made.figures["tokens_per_s"].median == 0
    assert made.facts["percentiles"] == {}


def test_a_latency_that_some_round_lacks_is_no_figure_for_rounds_are_pairs() -> None:
    nothing = Batch([exchange(0.0, error=OverloadedError("full"), ended_at=1.0)])
    made = cell("m", {"concurrency": 1}, [Batch([GOOD]), nothing], SLO())
    assert set(made.samples) == {"tokens_per_s", "requests_per_s"}
    assert made.facts["percentiles"]["ttft_s"]["p50"] == 0.5


def test_medians_are_of_one_round() -> None:
    assert medians(Batch([GOOD, SLOW, FAILED])) == {"ttft_s": 1.25, "itl_s": 0.75, "e2e_s": 2.75}
    assert medians(Batch([FAILED])) == {}
