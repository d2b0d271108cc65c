"""Times of one request."""

from __future__ import annotations

import pytest
from helpers.load import exchange

from zipvl_compile.bench.serving.exchange import ErrorKind
from zipvl_compile.bench.workload import SLO
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError


def test_times_of_a_plain_stream() -> None:
    one = exchange(10.0, 10.5, 10.75, 11.5)
    assert (one.ttft_s, one.itl_s, one.e2e_s) == (0.5, 0.5, 1.5)
    assert one.gaps() == [0.25, 0.75]
    assert not one.coalesced


def test_a_gap_is_divided_over_the_tokens_of_the_piece_that_ends_it() -> None:
    one = exchange(0.0, 1.0, 2.0, 5.0, counts=[2, 1, 3])
    assert one.gaps() == [1.0, 1.0, 1.0, 1.0]
    assert one.itl_s == 4.0 / 5 and one.coalesced


def test_where_no_piece_tells_its_tokens_they_count_as_spread_evenly() -> None:
    one = exchange(0.0, 1.0, 2.0, 5.0, tokens=5)
    assert one.gaps() == [0.5, 1.5]  # four later tokens in two pieces
    assert one.itl_s == 1.0 and one.coalesced


def test_tokens_without_text_at_the_end_count_until_the_end() -> None:
    one = exchange(0.0, 1.0, 2.0, tokens=4, finished_at=4.0)
    assert (one.ttft_s, one.itl_s, one.e2e_s) == (1.0, 1.0, 4.0)


def test_an_answer_of_one_token_has_no_latency_between_tokens() -> None:
    one = exchange(0.0, 1.0)
    assert one.itl_s is None and one.gaps() == []
    assert one.meets(SLO(itl_s=1e-9))


def test_an_answer_without_any_text_counts_its_end() -> None:
    one = exchange(2.0, tokens=3, finished_at=5.0)
    assert (one.ttft_s, one.itl_s, one.gaps()) == (3.0, None, [])


@pytest.mark.parametrize(
    ("seconds", "told", "delayed"),
    [
        (0.1, {"ttft_s": 0.5, "total_s": 1.5}, True),  # made in a second, here in a tenth
        (0.9, {"ttft_s": 0.5, "total_s": 1.5}, False),
        (0.0, {"ttft_s": 0.5, "total_s": 0.504}, False),  # made at once
        (0.0, {}, False),  # nobody knows
    ],
)
def test_an_answer_that_waited_on_its_way_is_noticed(seconds: float, told: dict[str, float], delayed: bool) -> None:
    assert exchange(0.0, 2.0, 2.0 + seconds, statistics=told).delayed == delayed


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ({}, True),
        ({"ttft_s": 0.5, "itl_s": 0.5, "e2e_s": 1.5}, True),
        ({"ttft_s": 0.49}, False),
        ({"itl_s": 0.49}, False),
        ({"e2e_s": 1.49}, False),
    ],
)
def test_all_limits_that_are_set_must_be_kept(limits: dict[str, float], met: bool) -> None:
    assert exchange(0.0, 0.5, 0.75, 1.5).meets(SLO(**limits)) == met


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (InputError("too\nlong"), "refused"),
        (OverloadedError("full"), "overloaded"),
        (DeadlineError("late"), "deadline"),
        (UnavailableError("gone"), "unavailable"),
        (TimeoutError("slow"), "timeout"),
        (ZipvlError("broken"), "failed"),
    ],
)
def test_errors_have_a_kind_and_one_line_and_keep_no_limit(error: BaseException, kind: ErrorKind) -> None:
    one = exchange(0.0, error=error)
    assert one.error == kind and "\n" not in one.message
    assert not one.meets(SLO())
