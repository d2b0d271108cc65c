"""One request on the tiny bundle: the method's settings, the pages it holds, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.bundles import (
    LAYERS,
    MAX_INPUT_TOKENS,
    MAX_NEW_TOKENS,
    PAGE_SIZE,
    QUESTION,
    build_recipe,
    random_image,
    refusal,
)

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import CachedSequence, KVPool, block_tables, page_bytes
from zipvl_serving.method import MethodParams
from zipvl_serving.output.detokenise import StreamDecoder
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.sessions.base import DecodeInputs, Session, open_session

GREEDY = SamplingParams(max_new_tokens=8)


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> Session:
    return open_session(Bundle.open(tiny_bundle))


def open_generator(session: Session, **method: Any) -> Generator:
    """A generator that never stops early, its bundle's method changed as a recipe would."""
    manifest = session.bundle.manifest
    manifest = manifest.model_copy(update={"method": manifest.method.model_copy(update=method)})
    return endless(Generator(Bundle(session.bundle.path, manifest), session))


def endless(generator: Generator) -> Generator:
    generator.processor.eos_token_ids = frozenset()
    return generator


@pytest.fixture
def generator(session: Session) -> Generator:
    return open_generator(session)


def ask(generator: Generator, images: int = 2) -> EncodedPrompt:
    return generator.prepare(QUESTION, [random_image(seed) for seed in range(images)])


def params(generator: Generator, **changes: Any) -> MethodParams:
    return replace(MethodParams.defaults(generator.bundle.manifest.method), **changes)


def words(generator: Generator, count: int) -> EncodedPrompt:
    """A prompt of exactly so many tokens."""
    return generator.prepare(" ".join(["digit"] * count), [], raw=True)


def pages_used(generator: Generator) -> int:
    return generator._pool.pages_used


# --- answers ---


def test_greedy_answers_are_repeatable(generator: Generator, tiny_bundle: Path) -> None:
    prompt = ask(generator)
    first = generator.answer(prompt, GREEDY)
    assert len(first.token_ids) == 8 and first.finish_reason == "length"
    assert generator.answer(prompt, GREEDY).token_ids == first.token_ids
    assert endless(Generator(Bundle.open(tiny_bundle))).answer(prompt, GREEDY).token_ids == first.token_ids


def test_a_seed_repeats_a_sampled_answer(generator: Generator) -> None:
    prompt = ask(generator)
    drawn = [
        generator.answer(prompt, SamplingParams(temperature=5.0, seed=seed, max_new_tokens=8)).token_ids
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_streamed_pieces_are_the_text(generator: Generator) -> None:
    prompt, pieces, counts = ask(generator), [], []
    for delta, answer in generator.stream(prompt, GREEDY):
        pieces.append(delta)
        counts.append(len(answer.token_ids))
        assert answer.text == "".join(pieces)
        assert (answer.finish_reason is None) == (len(answer.token_ids) < 8)
    assert counts == list(range(1, 9))
    assert answer.text == generator.answer(prompt, GREEDY).text
    assert answer.text == generator.processor.tokenizer.decode(answer.token_ids)
    assert answer.ttft_s > 0 and answer.tokens_per_s is not None


def test_what_the_decoder_held_back_ends_the_text(generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ask(generator)
    text = generator.answer(prompt, GREEDY).text
    monkeypatch.setattr(StreamDecoder, "flush", lambda self: "!")
    assert generator.answer(prompt, GREEDY).text == text + "!"


def test_an_end_token_stops_and_is_not_spoken(generator: Generator) -> None:
    prompt = ask(generator)
    full = generator.answer(prompt, SamplingParams(temperature=5.0, seed=1, max_new_tokens=8))
    end = next(token for token in full.token_ids[1:] if token != full.token_ids[0])
    generator.processor.eos_token_ids = frozenset({end})
    stopped = generator.answer(prompt, SamplingParams(temperature=5.0, seed=1, max_new_tokens=8))
    assert stopped.token_ids == full.token_ids[: full.token_ids.index(end) + 1]
    assert stopped.finish_reason == "stop"
    assert stopped.text == generator.processor.tokenizer.decode(stopped.token_ids[:-1])
    assert pages_used(generator) == 0


def test_images_count_and_so_does_their_order(generator: Generator) -> None:
    one, other = random_image(1), random_image(2)
    logits = [
        generator.prefill(generator.prepare(QUESTION, images), params(generator, dense=True))[0].logits
        for images in ([], [one], [other], [one, other], [other, one])
    ]
    for at, mine in enumerate(logits):
        assert all(np.abs(mine - theirs).max() > 1e-3 for theirs in logits[:at])


# --- the method ---


def test_dense_is_tau_one(generator: Generator) -> None:
    prompt = ask(generator)
    dense, complete = params(generator, dense=True), params(generator, tau=1.0)
    results = [generator.prefill(prompt, which)[0] for which in (dense, complete)]
    assert [result.dense for result in results] == [True, False]
    for result in results:
        assert result.counts == [len(prompt.input_ids)] * LAYERS
        assert result.ratios == [1.0] * LAYERS
    np.testing.assert_allclose(results[0].logits, results[1].logits, atol=1e-5)
    assert generator.answer(prompt, GREEDY, dense).token_ids == generator.answer(prompt, GREEDY, complete).token_ids


def test_tau_drops_tokens(generator: Generator) -> None:
    prompt = ask(generator)
    counts = [sum(generator.prefill(prompt, params(generator, tau=tau))[0].counts) for tau in (0.3, 0.6, 0.9, 1.0)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == LAYERS * len(prompt.input_ids)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.1, 0.3, 0.62, 1.0])
@pytest.mark.parametrize("tau", [0.1, 1.0])
def test_equal_bounds_force_the_ratio(generator: Generator, ratio: float, tau: float) -> None:
    prompt = ask(generator)
    result, _ = generator.prefill(prompt, params(generator, tau=tau, ratio_min=ratio, ratio_max=ratio))
    wanted = max(1, round(ratio * len(prompt.input_ids)))
    for count, index in zip(result.counts, result.index, strict=True):
        assert wanted <= count <= wanted + 1, "one more where the forced last token is not among the best"
        assert len(index) == count and (np.diff(index) > 0).all()
        assert index[0] >= 0 and index[-1] == len(prompt.input_ids) - 1


def test_bounds_hold_whatever_tau_says(generator: Generator) -> None:
    prompt = ask(generator)
    tokens = len(prompt.input_ids)
    floor, _ = generator.prefill(prompt, params(generator, tau=0.01, ratio_min=0.5))
    ceiling, _ = generator.prefill(prompt, params(generator, tau=0.99, ratio_max=0.2))
    assert all(count >= round(0.5 * tokens) for count in floor.counts)
    assert all(count <= round(0.2 * tokens) + 1 for count in ceiling.counts)


def test_forced_text_is_kept_on_top(session: Session) -> None:
    generator = open_generator(session, force_text=True, force_last=3)
    prompt = ask(generator)
    text = set(np.flatnonzero(prompt.is_text))
    result, _ = generator.prefill(prompt, params(generator, ratio_min=0.1, ratio_max=0.1))
    for index in result.index:
        assert text <= set(index.tolist())
        assert len(index) <= round(0.1 * len(prompt.input_ids)) + len(text)


def test_the_seed_chooses_the_probes(generator: Generator) -> None:
    prompt = ask(generator, images=3)

    def kept(seed: int) -> list[list[int]]:
        result, _ = generator.prefill(prompt, params(generator, seed=seed))
        return [index.tolist() for index in result.index]

    assert kept(5) == kept(5)
    assert any(kept(seed) != kept(5) for seed in range(4))


def test_prompts_below_the_break_even_run_dense(session: Session) -> None:
    tokens = len(ask(open_generator(session)).input_ids)
    for dense_below, dense in ((tokens + 1, True), (tokens, False)):
        generator = open_generator(session, dense_below=dense_below)
        result, _ = generator.prefill(ask(generator))
        assert result.dense == dense
        assert (result.ratios == [1.0] * LAYERS) == dense


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": 0.0}, "tau: 0.0 is out of range; must be > 0 and <= 1"),
        ({"tau": 1.5}, "tau: 1.5 is out of range"),
        ({"tau": float("nan")}, "tau: nan is out of range"),
        ({"ratio_min": -0.1}, "ratio_min: -0.1 is out of range"),
        ({"ratio_min": 1.1}, "ratio_min: 1.1 is out of range"),
        ({"ratio_max": -0.1}, "ratio_max: -0.1 is out of range; must be >= 0 and <= 1"),
        ({"ratio_max": 2.0}, "ratio_max: 2.0 is out of range"),
        ({"ratio_min": 0.6, "ratio_max": 0.5}, "ratio_min: 0.6 is above ratio_max, 0.5"),
        ({"seed": -1}, "probe seed: -1 is out of range"),
    ],
)
def test_values_out_of_range_are_refused(generator: Generator, changes: dict[str, Any], message: str) -> None:
    with refusal(InputError, message):
        params(generator, **changes)


# --- limits ---


def test_the_longest_prompt_fits_and_one_more_does_not(generator: Generator) -> None:
    answer = generator.answer(words(generator, MAX_INPUT_TOKENS), GREEDY)
    assert answer.prompt.tokens == MAX_INPUT_TOKENS and len(answer.token_ids) == 8
    with refusal(InputError, f"the prompt has {MAX_INPUT_TOKENS + 1} tokens, this bundle takes {MAX_INPUT_TOKENS}"):
        words(generator, MAX_INPUT_TOKENS + 1)


def test_a_prompt_of_one_token_is_answered(generator: Generator) -> None:
    answer = generator.answer(words(generator, 1), GREEDY)
    assert answer.prompt.counts == [1] * LAYERS and len(answer.token_ids) == 8


def test_the_longest_answer_fits_and_one_more_does_not(generator: Generator) -> None:
    prompt = words(generator, 3)
    assert len(generator.answer(prompt, SamplingParams(max_new_tokens=MAX_NEW_TOKENS)).token_ids) == MAX_NEW_TOKENS
    assert len(generator.answer(prompt, SamplingParams(max_new_tokens=1)).token_ids) == 1
    with refusal(InputError, f"max_new_tokens: {MAX_NEW_TOKENS + 1}", f"takes 1 to {MAX_NEW_TOKENS}"):
        generator.answer(prompt, SamplingParams(max_new_tokens=MAX_NEW_TOKENS + 1))


# --- pages ---


def test_pages_follow_the_tokens_kept(generator: Generator) -> None:
    prompt = ask(generator)
    shape = generator.bundle.manifest.model.shape
    stream = generator.stream(prompt, GREEDY)
    _, answer = next(stream)
    needed = sum(-(-count // PAGE_SIZE) for count in answer.prompt.counts)
    assert max(answer.prompt.ratios) < 1
    assert pages_used(generator) == needed
    assert answer.kv_bytes == needed * page_bytes(PAGE_SIZE, shape.kv_heads, shape.head_dim)
    for _, answer in stream:
        grown = [count + len(answer.token_ids) - 1 for count in answer.prompt.counts]
        wanted = 0 if answer.finish_reason else sum(-(-rows // PAGE_SIZE) for rows in grown)
        assert pages_used(generator) == wanted
    assert pages_used(generator) == 0


def test_pages_come_back_when_a_stream_is_closed_early(generator: Generator) -> None:
    stream = generator.stream(ask(generator), GREEDY)
    next(stream)
    next(stream)
    assert pages_used(generator) > 0
    stream.close()
    assert pages_used(generator) == 0


@pytest.mark.parametrize("method", ["vision", "prefill", "decode"])
def test_pages_come_back_after_an_exception(generator: Generator, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    prompt = ask(generator)
    real, calls = getattr(generator.session, method), []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if method != "decode" or len(calls) == 2:
            raise RuntimeError("the engine broke")
        return real(*arguments)

    monkeypatch.setattr(generator.session, method, fail)
    with pytest.raises(RuntimeError, match="the engine broke"):
        generator.answer(prompt, GREEDY)
    assert pages_used(generator) == 0
    monkeypatch.undo()
    assert len(generator.answer(prompt, GREEDY).token_ids) == 8


@pytest.mark.parametrize("spare", [-1, 0])
def test_an_answer_that_may_not_fit_is_refused_before_it_starts(session: Session, spare: int) -> None:
    """A pool that lacks one page of what a dense prompt and its whole answer take, and one that just holds them."""
    manifest = session.bundle.manifest
    tokens, new = 8 * PAGE_SIZE, 1 + PAGE_SIZE  # the last token of an answer is not cached
    page = page_bytes(PAGE_SIZE, manifest.model.shape.kv_heads, manifest.model.shape.head_dim)
    limits = manifest.limits.model_copy(update={"kv_bytes": (LAYERS * 9 + spare) * page})
    small = Bundle(session.bundle.path, manifest.model_copy(update={"limits": limits}))
    generator, dense = endless(Generator(small, session)), params(open_generator(session), dense=True)
    prompt, sampling = words(generator, tokens), SamplingParams(max_new_tokens=new)
    if spare < 0:
        with refusal(InputError, f"may need {LAYERS * 9} pages", "the KV cache has", "target.limits.kv_bytes"):
            generator.answer(prompt, sampling, dense)
    else:
        assert len(generator.answer(prompt, sampling, dense).token_ids) == new
    assert pages_used(generator) == 0


# --- decode ---


class Steps:
    """Sequences decoded by hand over a pool of their own."""

    def __init__(self, session: Session) -> None:
        self.session = session
        shape = session.bundle.manifest.model.shape
        self.pool = KVPool.create(1 << 20, PAGE_SIZE, shape.kv_heads, shape.head_dim)

    def begin(self, generator: Generator, prompt: EncodedPrompt, which: MethodParams) -> CachedSequence:
        return self.pool.store(generator.prefill(prompt, which)[1].cache)

    def step(self, batch: list[CachedSequence], tokens: list[int], positions: list[int]) -> np.ndarray:
        """Feed one token to each sequence: logits [batch, vocabulary]."""
        tables, context = block_tables(batch)
        ids, places = np.array(tokens, dtype=np.int64), np.array(positions, dtype=np.int64)
        logits, keys, values = self.session.decode(
            DecodeInputs(ids, places, self.pool.keys, self.pool.values, tables, context)
        )
        self.pool.append(batch, keys, values)
        return logits


def lengthened(prompt: EncodedPrompt, tokens: list[int]) -> EncodedPrompt:
    ids = np.concatenate([prompt.input_ids, np.array(tokens, dtype=np.int64)])
    is_text = np.concatenate([prompt.is_text, np.ones(len(tokens), dtype=bool)])
    return replace(prompt, input_ids=ids, is_text=is_text, position_ids=np.arange(len(ids), dtype=np.int64))


@pytest.mark.parametrize("images", [0, 2])
def test_decoding_step_by_step_equals_a_longer_prefill(generator: Generator, images: int) -> None:
    prompt, dense = ask(generator, images), params(generator, dense=True)
    steps, tokens = Steps(generator.session), [10, 27, 8, 33, 12, 12, 40]
    sequence, length = steps.begin(generator, prompt, dense), len(prompt.input_ids)
    for done, token in enumerate(tokens, start=1):
        (logits,) = steps.step([sequence], [token], [length + done - 1])
        expected, _ = generator.prefill(lengthened(prompt, tokens[:done]), dense)
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)


def test_a_dense_answer_is_what_ever_longer_prefills_say(generator: Generator) -> None:
    prompt, dense = ask(generator), params(generator, dense=True)
    answer = generator.answer(prompt, GREEDY, dense)
    for done, token in enumerate(answer.token_ids):
        result, _ = generator.prefill(lengthened(prompt, answer.token_ids[:done]), dense)
        assert result.logits.argmax() == token


def test_a_batch_decodes_as_its_sequences_do_alone(generator: Generator) -> None:
    prompts = [words(generator, 5), ask(generator, 2), ask(generator, 0)]
    together, alone = Steps(generator.session), Steps(generator.session)
    batch, single = ([steps.begin(generator, p, params(generator)) for p in prompts] for steps in (together, alone))
    for done, tokens in enumerate(([10, 20, 30], [11, 21, 31])):
        positions = [len(prompt.input_ids) + done for prompt in prompts]
        logits = together.step(batch, tokens, positions)
        for at, sequence in enumerate(single):
            (expected,) = alone.step([sequence], [tokens[at]], [positions[at]])
            np.testing.assert_allclose(logits[at], expected, atol=1e-4)


# --- what a recipe fixes in the graphs ---


def test_a_full_cache_and_a_dense_layer(generator: Generator, tiny_recipe: Path, tmp_path: Path) -> None:
    built = build_recipe(tiny_recipe, tmp_path / "full", "zipvl.cache=full", "zipvl.dense_layers=1", use_cache=False)
    full = endless(Generator(Bundle.open(built.bundle)))
    prompt = ask(generator)
    tokens, shape = len(prompt.input_ids), full.bundle.manifest.model.shape
    answer = full.answer(prompt, GREEDY)
    assert answer.prompt.counts[0] == tokens > answer.prompt.counts[1]
    page = page_bytes(PAGE_SIZE, shape.kv_heads, shape.head_dim)
    assert answer.kv_bytes == LAYERS * -(-tokens // PAGE_SIZE) * page, "every token is cached, kept or not"
    answers = [which.answer(prompt, GREEDY, params(which, dense=True)) for which in (generator, full)]
    assert answers[0].token_ids == answers[1].token_ids
