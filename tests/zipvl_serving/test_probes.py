"""Probe tokens: the last ones and a repeatable draw of the earlier ones; forced tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zipvl_serving.probes import forced_tokens, probe_positions

quick = settings(max_examples=100, deadline=None)


@quick
@given(tokens=st.integers(1, 300), recent=st.integers(1, 100), random=st.integers(0, 100), seed=st.integers(0, 2**64))
def test_the_last_tokens_and_as_many_earlier_ones(tokens: int, recent: int, random: int, seed: int) -> None:
    places = probe_positions(tokens, recent, random, seed)
    assert places.dtype == np.int64
    assert (np.diff(places) > 0).all(), "ascending, without repeats"
    assert places[0] >= 0 and places[-1] == tokens - 1
    assert len(places) == min(tokens, recent + random)
    last = min(recent, tokens)
    assert places[-last:].tolist() == list(range(tokens - last, tokens))
    assert np.array_equal(places, probe_positions(tokens, recent, random, seed))


def test_seeds_draw_differently_and_reach_every_token() -> None:
    draws = [tuple(probe_positions(200, 10, 20, seed)[:20]) for seed in range(100)]
    assert len(set(draws)) == 100
    assert set().union(*draws) == set(range(190))


def test_forced_tokens() -> None:
    is_text = np.array([True, True, False, False, True, False])
    before = is_text.copy()
    assert np.flatnonzero(forced_tokens(is_text, 1, text=False)).tolist() == [5]
    assert np.flatnonzero(forced_tokens(is_text, 3, text=False)).tolist() == [3, 4, 5]
    assert np.flatnonzero(forced_tokens(is_text, 1, text=True)).tolist() == [0, 1, 4, 5]
    assert np.array_equal(is_text, before), "the prompt's own array is left alone"


@pytest.mark.parametrize("last", [6, 7, 100])
def test_a_window_longer_than_the_prompt_forces_all(last: int) -> None:
    assert forced_tokens(np.zeros(6, dtype=bool), last, text=False).all()
