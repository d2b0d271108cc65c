"""Stop strings: the text ends before the first of them, in whatever pieces it comes, and nothing waits needlessly."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zipvl_serving.output.stop_strings import StopMatcher

TEXTS = st.text("ab", max_size=24)
STOPS = st.lists(st.text("ab", min_size=1, max_size=6), max_size=4)


def first_stop(text: str, stops: list[str]) -> int | None:
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def longest_beginning(text: str, stops: list[str]) -> int:
    """How many last characters of `text` may be the beginning of a stop string."""
    return max((size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)


def run(stops: list[str], pieces: list[str]) -> list[str]:
    matcher = StopMatcher(stops)
    return [*(matcher.push(piece) for piece in pieces), matcher.flush()]


@given(stops=STOPS, text=TEXTS, cuts=st.lists(st.integers(0, 24), max_size=8))
@example(stops=["aa"], text="aa", cuts=[1, 1])
@example(stops=["abab", "aba"], text="bababb", cuts=[1, 2, 3, 4, 5])
@example(stops=["aabb", "ab"], text="aabab", cuts=[1, 2, 3, 4])
def test_output_is_the_text_before_the_first_stop(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher, out = StopMatcher(stops), ""
    for begin, end in itertools.pairwise(edges):
        out += matcher.push(text[begin:end])
        assert text.startswith(out)
    out += matcher.flush()
    cut = first_stop(text, stops)
    assert out == text[:cut]
    assert matcher.stopped == (cut is not None)
    assert matcher.push("ab") == matcher.flush() == "" or cut is None


@given(stops=STOPS, text=TEXTS)
def test_holds_back_no_more_than_what_may_become_a_stop(stops: list[str], text: str) -> None:
    matcher, out = StopMatcher(stops), ""
    for end, character in enumerate(text, start=1):
        out += matcher.push(character)
        if first_stop(text[:end], stops) is None:
            assert end - len(out) == longest_beginning(text[:end], stops)
            assert not matcher.stopped


def test_a_stop_over_many_pieces_takes_nothing_of_itself_along() -> None:
    assert run(["\n\nUSER:"], ["It is 4", ".\n", "\n", "US", "ER", ": and", " more"]) == ["It is 4", ".", *[""] * 6]


def test_what_turns_out_to_be_no_stop_comes_late_but_whole() -> None:
    assert run(["\n\nUSER:"], ["4.\n", "\nUS", "A", "\n"]) == ["4.", "", "\n\nUSA", "", "\n"]


def test_an_earlier_stop_still_open_outranks_one_that_is_complete() -> None:
    assert run(["abcd", "bc"], ["xabc", "d"]) == ["x", "", ""]
    assert run(["abcd", "bc"], ["xabc", "e"]) == ["x", "a", ""]
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.push("xabc") == "x" and not matcher.stopped
    assert matcher.flush() == "a" and matcher.stopped


def test_the_shortest_of_equal_starts_decides_at_once() -> None:
    matcher = StopMatcher(["<end>", "<"])
    assert matcher.push("yes<") == "yes" and matcher.stopped


@pytest.mark.parametrize("stops", [[], ["stop"]])
def test_other_text_passes_through(stops: list[str]) -> None:
    assert run(stops, ["", "an", "other", " one"]) == ["", "an", "other", " one", ""]


def test_work_is_linear_in_the_text() -> None:
    """A text that is always one character short of a long stop string, one character at a time."""
    looked_at = 0

    class Watched(str):
        def __getitem__(self, at: object) -> str:
            nonlocal looked_at
            looked_at += 1
            return str.__getitem__(self, at)  # type: ignore[index]

    matcher = StopMatcher([Watched("a" * 500 + "b")])
    assert "".join(matcher.push("a") for _ in range(5000)) + matcher.flush() == "a" * 5000
    assert looked_at < 6 * 5000
