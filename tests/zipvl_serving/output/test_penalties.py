"""Penalties and bias: their definitions at every token of an answer, and nothing counted twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from zipvl_serving.arrays import Array
from zipvl_serving.output.penalties import Penalties

NO_BIAS: dict[int, float] = {}


def random_logits(seed: int) -> Array:
    """float32 [8], one of them a ban."""
    logits = np.random.default_rng(seed).normal(0, 3, 8).astype(np.float32)
    logits[3] = -np.inf
    return logits


@given(
    prompt=st.lists(st.integers(-1, 9), max_size=6),
    generated=st.lists(st.integers(-1, 9), max_size=12),
    repetition=st.sampled_from([1.0, 1.3, 0.6]),
    presence=st.sampled_from([0.0, 0.7, -2.0]),
    frequency=st.sampled_from([0.0, 0.4, -1.0]),
    bias=st.dictionaries(st.integers(0, 10), st.sampled_from([-100.0, -0.5, 3.0]), max_size=3),
)
@settings(deadline=None)
def test_they_follow_their_definitions_at_every_token(
    prompt: list[int],
    generated: list[int],
    repetition: float,
    presence: float,
    frequency: float,
    bias: dict[int, float],
) -> None:
    penalties, prompt_ids = Penalties(repetition, presence, frequency, bias), np.array(prompt, np.int64)
    assert penalties.active == (repetition != 1 or presence != 0 or frequency != 0 or bias != {})
    for step in range(len(generated) + 1):
        answer, logits = generated[:step], random_logits(step)
        expected = logits.astype(np.float64)
        for token, logit in enumerate(expected):
            if token in prompt or token in answer:
                expected[token] = logit * repetition if logit < 0 else logit / repetition
            count = answer.count(token)
            expected[token] += bias.get(token, 0) - presence * (count > 0) - frequency * count
        found = penalties.apply(logits, prompt_ids, answer)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert found.dtype == np.float64


def test_a_shorter_answer_or_another_prompt_is_counted_anew() -> None:
    penalties, logits = Penalties(2.0, 0.0, 1.0, NO_BIAS), random_logits(0)
    one, other = np.array([1]), np.array([4, 5])
    for prompt, generated in ((one, [2, 2, 6]), (one, [2]), (other, [2]), (other, [])):
        fresh = Penalties(2.0, 0.0, 1.0, NO_BIAS).apply(logits, prompt, generated)
        np.testing.assert_array_equal(penalties.apply(logits, prompt, generated), fresh)


def test_each_token_of_the_answer_is_counted_once() -> None:
    counted = 0

    class Watched(list[int]):
        def __getitem__(self, at: Any) -> Any:
            nonlocal counted
            found = super().__getitem__(at)
            counted += len(found)
            return found

    penalties, prompt, generated = Penalties(1.1, 0.1, 0.0, NO_BIAS), np.arange(100), Watched()
    for step in range(50):
        penalties.apply(random_logits(step), prompt, generated)
        generated.append(step % 8)
    assert counted == 49


def test_the_strongest_penalties_stay_finite() -> None:
    logits = np.array([-3e38, 3e38, -np.inf, 1e-45, 0], np.float32)
    with np.errstate(all="raise", under="ignore"):
        for repetition in (1e300, 1e-300):
            scores = Penalties(repetition, 2.0, 2.0, {0: 100.0}).apply(logits, np.arange(5), [1])
            assert np.isfinite(scores[[0, 1, 3, 4]]).all() and scores[2] == -np.inf
            assert np.isfinite(scores.max() - scores[[0, 1, 3, 4]]).all()
