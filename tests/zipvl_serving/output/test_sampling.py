"""Sampling: the same filters as Hugging Face's, the right distribution, seeds that last, no crash on odd logits."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.output.sampling import Sampler, SamplingParams, TokenLogprob, nucleus

PROMPT, GENERATED = np.array([3, 3, 7], np.int64), [11, 500]
NO_PROMPT = np.array([], np.int64)


def random_logits(seed: int, vocabulary: int = 200) -> Array:
    return np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)


def sample(sampler: Sampler, logits: Any) -> int:
    """Choose the first token after an empty prompt."""
    return sampler.sample(np.asarray(logits, np.float32), NO_PROMPT, [])


def distribution(sampler: Sampler, logits: Array, prompt_ids: Array = NO_PROMPT, generated: Any = ()) -> Array:
    """The probability of each token [vocab]."""
    ids, weights = sampler.candidates(logits, prompt_ids, generated)
    assert (np.diff(ids) > 0).all() and weights.max() == 1
    probabilities = np.zeros(len(logits))
    probabilities[ids] = weights / weights.sum()
    return probabilities


# --- the filters ---


def hugging_face(logits: Array, params: SamplingParams, seen: list[int]) -> Array:
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
        scores = processor(torch.tensor([seen]), scores)
    return np.asarray(scores.softmax(-1)[0])


def full_computation(logits: Array, params: SamplingParams) -> Array:
    """The filters written down plainly: every step on the whole vocabulary, which it sorts."""
    scores = logits.astype(np.float64)
    with np.errstate(over="ignore"):
        exponents = (scores - scores.max()) / params.temperature
    probabilities = np.exp(exponents)
    if 0 < params.top_k < len(probabilities):
        probabilities[exponents < np.sort(exponents)[-params.top_k]] = 0
    if params.top_p < 1:
        ascending = np.argsort(-probabilities, kind="stable")[::-1]  # among equals the lowest id is kept longest
        tail = probabilities[ascending].cumsum()
        outside = int(np.count_nonzero(tail <= (1 - params.top_p) * tail[-1]))
        probabilities[ascending[: min(outside, len(ascending) - 1)]] = 0
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    return np.asarray(probabilities / probabilities.sum())


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
        mine = distribution(Sampler(params), logits, PROMPT, GENERATED)
        reference = hugging_face(logits, params, [*PROMPT.tolist(), *GENERATED])
        np.testing.assert_array_equal(mine > 0, reference > 0)
        np.testing.assert_allclose(mine, reference, rtol=2e-4, atol=1e-9)
        assert mine.sum() == pytest.approx(1)


@given(
    vocabulary=st.sampled_from([1, 2, 51, 256, 257, 5000]),
    kind=st.sampled_from(["normal", "ties", "equal", "decades", "banned"]),
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([1e-3, 0.3, 0.7, 1.0, 5.0, 1e30]),
    top_k=st.sampled_from([0, 1, 7, 50, 300]),
    top_p=st.sampled_from([1e-20, 1e-12, 0.1, 0.5, 0.9, 0.99, 1 - 1e-6, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
)
@settings(deadline=None, max_examples=300)
def test_filters_equal_the_full_computation(
    vocabulary: int, kind: str, seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    random = np.random.default_rng(seed)
    logits = {
        "normal": random.normal(0, 3, vocabulary),
        "ties": random.integers(-3, 4, vocabulary),
        "equal": np.zeros(vocabulary),
        "decades": -random.permutation(vocabulary) / 3,
        "banned": np.where(random.random(vocabulary) < 0.8, -np.inf, random.normal(0, 3, vocabulary)),
    }[kind].astype(np.float32)
    logits[0] = max(logits[0], 0)
    params = SamplingParams(temperature, top_p, top_k, min_p, seed=seed)
    sampler, expected = Sampler(params), full_computation(logits, params)
    found = distribution(sampler, logits)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    cumulative, random = expected.cumsum(), np.random.Generator(np.random.PCG64(seed))
    for _ in range(3):
        assert sample(sampler, logits) == cumulative.searchsorted(random.random() * cumulative[-1], side="right")


def test_top_k_keeps_ties_and_top_p_keeps_the_lowest_ids() -> None:
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    kept = distribution(Sampler(SamplingParams(temperature=1.0, top_k=2)), logits) > 0
    assert kept.tolist() == [False, True, True, True, False]
    equal = distribution(Sampler(SamplingParams(temperature=1.0, top_p=0.5)), np.zeros(4, np.float32)) > 0
    assert equal.tolist() == [True, True, False, False]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_the_nucleus_is_found_without_sorting_the_vocabulary(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, sort = [], np.sort
    monkeypatch.setattr(np, "sort", lambda values: sizes.append(len(values)) or sort(values))
    weights = np.exp(random_logits(0, 32_000).astype(np.float64) / temperature)
    inside = nucleus(weights, 0.9)
    assert weights[inside].sum() >= 0.9 * weights.sum() > weights[inside].sum() - weights[inside].min()
    assert max(sizes) <= 256


# --- draws ---


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2, "temperature": 0.7}])
def test_samples_follow_the_distribution(options: dict[str, Any]) -> None:
    logits = random_logits(1, 12) / 3
    sampler = Sampler(SamplingParams(**{"temperature": 1.0, "seed": 7, **options}))
    counts = np.bincount([sample(sampler, logits) for _ in range(4000)], minlength=12)
    expected = distribution(sampler, logits) * counts.sum()
    assert counts[expected == 0].sum() == 0
    assert chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 0.01


def test_seed_repeats_a_run() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sample(sampler, np.zeros(1000)) for _ in range(8)]

    assert draw(3) == draw(3) != draw(4)
    assert draw(None) != draw(None)


def test_a_seed_means_the_same_tokens_in_every_version() -> None:
    sampler = Sampler(SamplingParams(temperature=0.7, top_p=0.9, seed=5))
    assert [sample(sampler, random_logits(step)) for step in range(8)] == [133, 183, 105, 9, 15, 185, 170, 49]


def test_greedy_takes_the_lowest_of_equals_and_leaves_logits_alone() -> None:
    logits = np.array([-np.inf, 3, 5, 5, 1], np.float32)
    before = logits.copy()
    assert Sampler(SamplingParams()).sample(logits, NO_PROMPT, []) == 2
    assert Sampler(SamplingParams(repetition_penalty=2.0)).sample(logits, np.array([2, -1, 99, 0]), [-7, 1000]) == 3
    assert Sampler(SamplingParams(temperature=1.0, top_p=0.5, seed=0)).sample(logits, NO_PROMPT, []) in (2, 3)
    np.testing.assert_array_equal(logits, before)


def test_a_greedy_row_is_not_copied() -> None:
    logits, sampler = random_logits(0, 32_000), Sampler(SamplingParams())
    tracemalloc.start()
    try:
        assert sample(sampler, logits) == logits.argmax()
        assert tracemalloc.get_traced_memory()[1] < 4096
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-30, 1.0])
@pytest.mark.parametrize("penalty", [1.0, 1e-300, 1e300])
def test_extreme_logits_do_not_overflow(temperature: float, penalty: float) -> None:
    logits = np.array([-3e38, 3e38, -np.inf, -3e38], np.float32)
    params = SamplingParams(temperature=temperature, top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=penalty, seed=0)
    with np.errstate(all="raise", under="ignore"):
        assert Sampler(params).sample(logits, np.array([0]), []) == 1
        assert Sampler(params).sample(logits, np.array([0, 2]), [2]) == 1


def test_last_token_with_probability_is_the_last_drawn() -> None:
    sampler = Sampler(SamplingParams(temperature=1.0))

    class Highest:
        def random(self) -> float:
            return 1.0

    sampler._random = Highest()  # type: ignore[assignment]
    assert sample(sampler, [0, 0, -np.inf]) == 1


@pytest.mark.parametrize("logits", [[0, np.nan], [np.nan, 0], [np.inf, 0], [-np.inf, -np.inf], [0] * 4999 + [np.nan]])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"logit_bias": {0: 1.0}}])
def test_unusable_logits_are_an_error(logits: list[float], options: dict[str, Any]) -> None:
    with pytest.raises(ZipvlError, match=r"unusable logits: the highest is (nan|inf|-inf)$"):
        sample(Sampler(SamplingParams(**options)), logits)


def test_penalties_and_bias_come_before_the_choice() -> None:
    logits, prompt = np.array([5, 4, 3, 2], np.float32), np.array([0])
    for options, generated, expected in (
        ({"repetition_penalty": 2.0}, [], 1),
        ({"presence_penalty": 1.5}, [], 0),
        ({"presence_penalty": 1.5}, [0], 1),
        ({"frequency_penalty": 1.5}, [0, 0, 1], 2),
        ({"logit_bias": {3: 3.5}}, [], 3),
    ):
        assert Sampler(SamplingParams(**options)).sample(logits, prompt, generated) == expected
        drawn = Sampler(SamplingParams(temperature=1e-3, seed=0, **options)).sample(logits, prompt, generated)
        assert drawn == expected


# --- log-probabilities ---


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(3)
    sampler = Sampler(
        SamplingParams(temperature=0.5, top_k=3, frequency_penalty=2.0, logit_bias={4: 100.0}, logprobs=5)
    )
    token = sampler.sample(logits, PROMPT, GENERATED)
    found = sampler.logprob(logits, token)
    reference = torch.tensor(logits, dtype=torch.float64).log_softmax(-1)
    values, ids = reference.topk(5)
    assert found is not None and token == found.token_id == 4
    assert found.logprob == pytest.approx(reference[4].item(), rel=1e-12)
    assert [token for token, _ in found.top] == ids.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(values.tolist(), rel=1e-12)


@pytest.mark.parametrize("vocabulary", [6, 5000])
def test_the_likeliest_come_first_and_the_lower_id_among_equals(vocabulary: int) -> None:
    logits = np.full(vocabulary, -50, np.float32)
    logits[[1, 2, 3, 5]] = [0, 7, 0, 0]
    found = Sampler(SamplingParams(logprobs=3)).logprob(logits, 5)
    assert found is not None
    assert [token for token, _ in found.top] == [2, 1, 3]
    assert found.top[1][1] == found.logprob


def test_ruled_out_tokens_are_not_among_the_likeliest() -> None:
    logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
    with np.errstate(all="raise"):
        found = Sampler(SamplingParams(logprobs=20)).logprob(logits, 1)
    half = pytest.approx(np.log(0.5))
    assert found == TokenLogprob(1, half, [(1, half), (3, half)])


def test_logprobs_only_where_asked_for() -> None:
    logits = random_logits(0)
    assert Sampler(SamplingParams()).logprob(logits, 0) is None
    found = Sampler(SamplingParams(logprobs=0)).logprob(logits, 0)
    assert found is not None and found.top == [] and found.logprob < 0


# --- what may be asked for ---


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [-0.1, float("nan"), float("inf"), "1", True, None]),
        ("top_p", [0, 1.01, -1.0]),
        ("top_k", [-1, 1.5]),
        ("min_p", [-0.1, 1.0]),
        ("repetition_penalty", [0, -1.0]),
        ("presence_penalty", [-2.01, 2.01, float("nan"), True, "0"]),
        ("frequency_penalty", [-2.01, 2.01, float("nan"), True, "0"]),
        ("logit_bias", [{1: 100.5}, {1: float("nan")}, {-1: 0}, {"1": 0}, {1.0: 0}, {1: None}, [1], None]),
        ("seed", [-1, 0.5]),
        ("max_new_tokens", [0, 2.0]),
        ("stop", ["word", ["word"], ("",), ("a", 1), ("a",) * 17, None]),
        ("ignore_eos", [1, None, "true"]),
        ("logprobs", [-1, 21, 1.0, True]),
    ],
)
def test_refuses_values_out_of_range(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InputError, match=f"^{field} is .*; valid: .*$"):
            SamplingParams(**{field: value})


def test_a_refusal_shows_the_wrong_entry_and_stays_short() -> None:
    with pytest.raises(InputError, match=r"^logit_bias is \{700: 101\}; valid: token ids"):
        SamplingParams(logit_bias={**dict.fromkeys(range(500), 1.0), 700: 101})
    with pytest.raises(InputError) as refusal:
        SamplingParams(stop=tuple("word\n" * 1000 for _ in range(1000)))
    assert len(str(refusal.value)) < 400 and "\n" not in str(refusal.value)


def test_takes_the_ends_of_every_range() -> None:
    params = SamplingParams(
        presence_penalty=-2,
        frequency_penalty=2.0,
        logit_bias={0: -100, 7: 100.0},
        stop=("x",) * 16,
        ignore_eos=True,
        logprobs=20,
    )
    assert json.loads(json.dumps(asdict(params)))["logit_bias"] == {"0": -100, "7": 100.0}
    assert hash(params) == hash(SamplingParams(**asdict(params)))
