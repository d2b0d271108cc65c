"""Sampling: the same filters as Hugging Face's, the right distribution, and no crash on odd logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.sampling import Sampler, SamplingParams

SEEN = [3, 3, 7, 11, 500]


def random_logits(seed: int, vocabulary: int = 200) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)


def reference_distribution(logits: np.ndarray[Any, Any], params: SamplingParams) -> np.ndarray[Any, Any]:
    processors: list[Any] = []
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    scores = torch.tensor(logits)[None]
    for processor in processors:
        scores = processor(torch.tensor([SEEN]), scores)
    return np.asarray(scores.softmax(-1)[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_k": 1000},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.5, "temperature": 2.0},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.2},
    ],
)
def test_filters_equal_hugging_face(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    for seed in range(20):
        logits = random_logits(seed)
        mine, reference = Sampler(params).distribution(logits, SEEN), reference_distribution(logits, params)
        np.testing.assert_array_equal(mine > 0, reference > 0)
        np.testing.assert_allclose(mine, reference, rtol=2e-4, atol=1e-9)
        assert mine.sum() == pytest.approx(1)


def test_top_k_keeps_ties_and_top_p_keeps_the_lowest_ids() -> None:
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    kept = Sampler(SamplingParams(temperature=1.0, top_k=2)).distribution(logits, []) > 0
    assert kept.tolist() == [False, True, True, True, False]
    equal = Sampler(SamplingParams(temperature=1.0, top_p=0.5)).distribution(np.zeros(4, np.float32), []) > 0
    assert equal.tolist() == [True, True, False, False]


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 0.7}])
def test_samples_follow_the_distribution(options: dict[str, Any]) -> None:
    logits = random_logits(1, 12) / 3
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 7, **options}))
    counts = np.bincount([sampler.sample(logits, []) for _ in range(4000)], minlength=12)
    expected = sampler.distribution(logits, []) * counts.sum()
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.01


def test_seed_repeats_a_run() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.sample(np.zeros(1000, np.float32), []) for _ in range(8)]

    assert draw(3) == draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_greedy_takes_the_lowest_of_equals_and_leaves_logits_alone() -> None:
    logits = np.array([-np.inf, 3, 5, 5, 1], np.float32)
    before = logits.copy()
    assert Sampler(SamplingParams()).sample(logits, []) == 2
    assert Sampler(SamplingParams(repetition_penalty=2.0)).sample(logits, [2, -1, 99, 0]) == 3
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1e-300, 1e300])
def test_extreme_logits_do_not_overflow(temperature: float, penalty: float) -> None:
    logits = np.array([-3e38, 3e38, -np.inf, -3e38], np.float32)
    params = SamplingParams(temperature=temperature, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=penalty, seed=0)
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(params).sample(logits, [0]) == 1


def test_last_token_with_probability_is_the_last_drawn() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0))

    class Highest:
        def random(self) -> float:
            return 1.0

    sampler._random = Highest()  # type: ignore[assignment]
    assert sampler.sample(np.array([0, 0, -np.inf], np.float32), []) == 1


@pytest.mark.parametrize("logits", [[0, np.nan], [np.inf, 0], [-np.inf, -np.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_unusable_logits_are_an_error(logits: list[float], temperature: float) -> None:
    with pytest.raises(ZipvlError, match="unusable logits"):
        Sampler(SamplingParams(temperature=temperature)).sample(np.array(logits, np.float32), [])


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, float("nan"), float("inf"), "1", True, None]),
        ("top_p", [0, 1.01, -1.0]),
        ("top_k", [-1, 1.5]),
        ("min_p", [-0.1, 1.0]),
        ("repetition_penalty", [0, -1.0]),
        ("seed", [-1, 0.5]),
        ("max_new_tokens", [0, 2.0]),
    ],
)
def test_refuses_values_out_of_range(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^{field} is .*; valid: .*$"):
            SamplingParams(**{field: value})
