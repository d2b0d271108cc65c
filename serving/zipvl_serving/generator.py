"""One request from prompt to tokens on an open session: prefill, compacted KV into pages, decode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.detokenise import StreamDecoder
from zipvl_serving.errors import InputError
from zipvl_serving.kv_pool import KVPool, block_tables, page_bytes
from zipvl_serving.manifest import Method
from zipvl_serving.probes import forced_tokens, probe_positions
from zipvl_serving.prompt import EncodedPrompt, PromptProcessor
from zipvl_serving.sampling import Sampler, SamplingParams
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session, open_session


@dataclass(frozen=True)
class MethodParams:
    """What a request may say of the method; the bundle's defaults fill the rest.

    Raises InputError for a value outside its range.
    """

    tau: float
    ratio_min: float
    ratio_max: float
    seed: int
    dense: bool = False

    def __post_init__(self) -> None:
        for name, value, valid, holds in (
            ("tau", self.tau, "> 0 and <= 1", 0 < self.tau <= 1),
            ("ratio_min", self.ratio_min, ">= 0 and <= 1", 0 <= self.ratio_min <= 1),
            ("ratio_max", self.ratio_max, ">= 0 and <= 1", 0 <= self.ratio_max <= 1),
            ("probe seed", self.seed, ">= 0", self.seed >= 0),
        ):
            if not holds:
                raise InputError(f"{name}: {value} is out of range; must be {valid}")
        if self.ratio_min > self.ratio_max:
            raise InputError(f"ratio_min: {self.ratio_min} is above ratio_max, {self.ratio_max}")

    @classmethod
    def defaults(cls, method: Method) -> MethodParams:
        return cls(method.tau, method.ratio_min, method.ratio_max, method.seed)


@dataclass(frozen=True)
class PromptResult:
    """What prefill learnt of one prompt."""

    tokens: int
    dense: bool
    """Whether selection was skipped, by request or because the prompt is below the break-even length."""
    counts: list[int]
    """Per layer, tokens in T."""
    index: list[Array]
    """Per layer, int32 [count], the tokens of T."""
    logits: Array
    """float32 [vocabulary]."""

    @property
    def ratios(self) -> list[float]:
        return [count / self.tokens for count in self.counts]


@dataclass
class Generation:
    """A finished or running answer; `Generator.stream` fills it as tokens come."""

    prompt: PromptResult
    ttft_s: float
    """Seconds from the request to its first token: vision, prefill and sampling."""
    kv_bytes: int
    """Bytes of KV pages held after prefill."""
    token_ids: list[int]
    text: str = ""
    finish_reason: str | None = None
    """`stop` at an end token, `length` at max_new_tokens."""
    decode_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Decode throughput; None until a second token came."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s > 0 else None


class Generator:
    """Answers one prompt at a time from a bundle."""

    def __init__(self, bundle: Bundle, session: Session | None = None) -> None:
        self.bundle = bundle
        self.session = session or open_session(bundle)
        self.processor = PromptProcessor(bundle.processor_folder)
        shape, limits = bundle.manifest.model.shape, bundle.manifest.limits
        self._page_bytes = page_bytes(limits.page_size, shape.kv_heads, shape.head_dim)
        self._pool = KVPool.create(limits.kv_bytes, limits.page_size, shape.kv_heads, shape.head_dim)

    def prepare(self, text: str, images: Sequence[Image.Image], *, raw: bool = False) -> EncodedPrompt:
        """Encode a prompt; InputError where it is too long for the bundle."""
        prompt = self.processor.prepare(text, images, raw)
        limit = self.bundle.manifest.limits.max_input_tokens
        if len(prompt.input_ids) > limit:
            raise InputError(
                f"the prompt has {len(prompt.input_ids)} tokens, this bundle takes {limit} at most; shorten it or "
                "raise target.limits.max_input_tokens in the recipe"
            )
        return prompt

    def prefill(self, prompt: EncodedPrompt, params: MethodParams | None = None) -> tuple[PromptResult, PrefillOutputs]:
        """Run vision and prefill."""
        method = self.bundle.manifest.method
        params = params or MethodParams.defaults(method)
        tokens = len(prompt.input_ids)
        dense = params.dense or tokens < method.dense_below
        if dense:
            params = replace(params, ratio_min=1.0, ratio_max=1.0)
        features = self.session.vision(prompt.pixel_values) if len(prompt.pixel_values) else None
        inputs = PrefillInputs(
            input_ids=prompt.input_ids,
            position_ids=prompt.position_ids,
            probe_positions=probe_positions(tokens, method.probe_recent, method.probe_random, params.seed),
            forced=forced_tokens(prompt.is_text, method.force_last, text=method.force_text),
            tau=params.tau,
            ratio_min=params.ratio_min,
            ratio_max=params.ratio_max,
        )
        outputs = self.session.prefill(inputs, features)
        result = PromptResult(tokens, dense, outputs.counts.tolist(), outputs.index, outputs.logits)
        return result, outputs

    def stream(
        self, prompt: EncodedPrompt, sampling: SamplingParams, params: MethodParams | None = None
    ) -> Iterator[tuple[str, Generation]]:
        """Generate; yields (text delta, the answer so far) for every token, the last with a finish_reason.

        The prompt's pages go back to the pool however the iteration ends.
        """
        limits = self.bundle.manifest.limits
        most = limits.default_new_tokens if sampling.max_new_tokens is None else sampling.max_new_tokens
        if most > limits.max_new_tokens:
            raise InputError(f"max_new_tokens: {most} is out of range; this bundle takes 1 to {limits.max_new_tokens}")
        started = time.perf_counter()
        sampler, decoder = Sampler(sampling), StreamDecoder(self.processor.tokenizer)
        result, outputs = self.prefill(prompt, params)
        cached = self._pool.store(outputs.cache)
        try:
            seen = prompt.input_ids.tolist()
            token = sampler.sample(result.logits, seen)
            ttft = time.perf_counter() - started
            held = sum(len(blocks) for blocks in cached.blocks) * self._page_bytes
            answer = Generation(result, ttft, held, [])
            decoding = time.perf_counter()
            while True:
                answer.token_ids.append(token)
                seen.append(token)
                answer.decode_s = time.perf_counter() - decoding if len(answer.token_ids) > 1 else 0.0
                stopped = token in self.processor.eos_token_ids
                delta = "" if stopped else decoder.push(token)
                if stopped or len(answer.token_ids) >= most:
                    delta += decoder.flush()
                    answer.finish_reason = "stop" if stopped else "length"
                answer.text += delta
                yield delta, answer
                if answer.finish_reason:
                    return
                position = result.tokens + len(answer.token_ids) - 1
                tables, context = block_tables([cached])
                ids, places = np.array([token], dtype=np.int64), np.array([position], dtype=np.int64)
                inputs = DecodeInputs(ids, places, self._pool.keys, self._pool.values, tables, context)
                logits, keys, values = self.session.decode(inputs)
                self._pool.append(cached, keys[:, 0], values[:, 0])
                token = sampler.sample(logits[0], seen)
        finally:
            self._pool.release(cached)

    def answer(self, prompt: EncodedPrompt, sampling: SamplingParams, params: MethodParams | None = None) -> Generation:
        """Generate to the end."""
        *_, (_, last) = self.stream(prompt, sampling, params)
        return last
