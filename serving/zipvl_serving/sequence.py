"""One request on its way: from what was asked to the pieces of its answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenizers import Tokenizer

from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError
from zipvl_serving.kv_pool import CachedSequence
from zipvl_serving.manifest import Limits
from zipvl_serving.method import MethodParams
from zipvl_serving.output.detokenise import StreamDecoder
from zipvl_serving.output.sampling import Sampler, SamplingParams, TokenLogprob
from zipvl_serving.output.stop_strings import StopMatcher
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.runner import PromptResult
from zipvl_serving.wire import Chunk, FinishReason, Statistics


@dataclass(frozen=True)
class Request:
    """An encoded prompt and what to do with it.

    number: unique; within one batch of arrivals the lower one goes first.
    features: image features float32 [visual, hidden], None without images.
    arrived, deadline: seconds by the scheduler's clock; None is no deadline.
    """

    number: int
    prompt: EncodedPrompt
    features: Array | None
    sampling: SamplingParams
    method: MethodParams
    arrived: float
    deadline: float | None = None
    priority: int = 0
    stream_interval: int = 1
    cached_images: int = 0


def check_prompt(prompt: EncodedPrompt, limits: Limits) -> None:
    """InputError where the prompt is too long for the bundle."""
    if len(prompt.input_ids) > limits.max_input_tokens:
        raise InputError(
            f"the prompt has {len(prompt.input_ids)} tokens, this bundle takes {limits.max_input_tokens} at most; "
            "shorten it or raise target.limits.max_input_tokens in the recipe"
        )


def new_tokens(sampling: SamplingParams, limits: Limits) -> int:
    """How many tokens an answer may have; InputError where the request asks for more than the bundle gives."""
    most = limits.default_new_tokens if sampling.max_new_tokens is None else sampling.max_new_tokens
    if most > limits.max_new_tokens:
        raise InputError(f"max_new_tokens: {most} is out of range; this bundle takes 1 to {limits.max_new_tokens}")
    return most


@dataclass
class Generation:
    """A finished or running answer, filled as tokens come."""

    prompt: PromptResult
    ttft_s: float
    """Seconds from the request to its first token: vision, prefill and sampling."""
    kv_bytes: int
    """Bytes of KV pages held after prefill."""
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    decode_s: float = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        """Decode throughput; None until a second token came."""
        return (len(self.token_ids) - 1) / self.decode_s if self.decode_s > 0 else None


class Sequence:
    """A request that is in the batch: its pages, its sampler, and the text that waits to go out."""

    def __init__(
        self,
        request: Request,
        most_tokens: int,
        bound: int,
        tokenizer: Tokenizer,
        eos: frozenset[int],
    ) -> None:
        self.request = request
        self.bound = bound
        """Pages that it may need at most."""
        self.started = 0.0
        """When prefill began, by the scheduler's clock."""
        self.most_tokens = most_tokens
        self.cached = CachedSequence.empty()
        self.answer: Generation
        self._eos = frozenset() if request.sampling.ignore_eos else eos
        self._sampler = Sampler(request.sampling)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopMatcher(request.sampling.stop)
        self._first_at = self._last_at = 0.0
        self._text, self._tokens = "", 0
        self._logprobs: list[TokenLogprob] = []

    @property
    def position(self) -> int:
        """Where the last token stands in the uncompressed sequence."""
        return self.answer.prompt.tokens + len(self.answer.token_ids) - 1

    @property
    def last_token(self) -> int:
        return self.answer.token_ids[-1]

    def begin(self, cached: CachedSequence, prompt: PromptResult, kv_bytes: int) -> None:
        """Take over what prefill left."""
        self.cached, self.answer = cached, Generation(prompt, 0.0, kv_bytes)

    def sample(self, logits: Array) -> int:
        """Choose the next token from logits float32 [vocabulary]; ZipvlError where they are unusable."""
        generated = self.answer.token_ids
        token = self._sampler.sample(logits, self.request.prompt.input_ids, generated)
        if self.request.sampling.logprobs is not None:
            logprob = self._sampler.logprob(logits, token)
            if logprob is not None:
                self._logprobs.append(logprob)
        generated.append(token)
        self._tokens += 1
        return token

    def settle(self, now: float) -> tuple[Chunk | None, float | None]:
        """Turn the token just sampled into text.

        Returns the chunk to send, None while fewer tokens wait than the stream's interval, and the seconds since the
        token before, None for the first.
        """
        answer, token = self.answer, self.last_token
        since = now - self._last_at if len(answer.token_ids) > 1 else None
        if since is None:
            self._first_at, answer.ttft_s = now, now - self.request.arrived
        self._last_at, answer.decode_s = now, now - self._first_at
        ended = token in self._eos
        if not ended:
            self._text += self._stops.push(self._decoder.push(token))
        if ended or self._stops.stopped:
            return self.finish("stop", now), since
        if len(answer.token_ids) >= self.most_tokens:
            return self.finish("length", now), since
        if len(answer.token_ids) == 1 or self._tokens >= self.request.stream_interval:
            return self._take(), since
        return None, since

    def finish(self, reason: FinishReason, now: float) -> Chunk:
        """The last chunk, with everything that waited."""
        if not self._stops.stopped:
            self._text += self._stops.push(self._decoder.flush())
            self._text += self._stops.flush()
            if self._stops.stopped and reason == "length":
                reason = "stop"
        self.answer.finish_reason = reason
        return self._take(self._statistics(now))

    def _take(self, statistics: Statistics | None = None) -> Chunk:
        answer = self.answer
        chunk = Chunk(
            text=self._text,
            token_ids=answer.token_ids[len(answer.token_ids) - self._tokens :],
            logprobs=self._logprobs if self.request.sampling.logprobs is not None else None,
            finish_reason=answer.finish_reason,
            statistics=statistics,
        )
        answer.text += self._text
        self._text, self._tokens, self._logprobs = "", 0, []
        return chunk

    def _statistics(self, now: float) -> Statistics:
        answer, arrived = self.answer, self.request.arrived
        return Statistics(
            prompt_tokens=answer.prompt.tokens,
            completion_tokens=len(answer.token_ids),
            cached_images=self.request.cached_images,
            dense=answer.prompt.dense,
            ratio_per_layer=answer.prompt.ratios,
            kept_tokens_per_layer=answer.prompt.counts,
            kv_bytes=answer.kv_bytes,
            queue_s=self.started - arrived,
            ttft_s=answer.ttft_s,
            total_s=now - arrived,
        )
