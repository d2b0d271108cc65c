"""In-flight batching: which requests are in the batch, and one step of all of them.

A step decodes one token for every running stream and then prefills waiting prompts, as many as fit a budget of tokens,
so no stream waits longer for its next token than that budget (or one longer prompt) takes. A request enters when the
pages that it may need at most are free of other requests' claims: none ever runs out of pages or has to be evicted.

Nothing here depends on time but deadlines: the same requests added before the same steps give the same tokens in the
same number of steps, in whatever order those of one batch of arrivals were added.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable
from dataclasses import replace

from zipvl_serving.errors import DeadlineError, InputError, ZipvlError
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.metrics import Metrics
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.runner import Runner
from zipvl_serving.sequence import Request, Sequence, check_prompt, new_tokens
from zipvl_serving.wire import Chunk, FinishReason

Emit = Callable[[Sequence, Chunk | Exception], None]
"""Takes the pieces of every answer in order: the last has a finish_reason, or is the error that ended it."""

_Turn = tuple[int, int, int]
"""Order of entry: higher priority, then earlier step of arrival, then lower number."""


class Scheduler:
    """Requests over one runner and one pool. Not safe for several threads: one thread adds, cancels and steps."""

    def __init__(
        self,
        runner: Runner,
        pool: KVPool,
        processor: PromptProcessor,
        emit: Emit,
        *,
        max_batch: int,
        max_prefill_tokens: int = 2048,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.pool = pool
        self.steps = 0
        """Steps made that had something to do."""
        self._runner = runner
        self._processor = processor
        self._emit = emit
        self._max_batch = max_batch
        self._max_prefill_tokens = max_prefill_tokens
        self._metrics = metrics or Metrics()
        self._clock = clock
        self._waiting: list[tuple[_Turn, Sequence]] = []
        self._running: list[Sequence] = []
        self._reserved = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    @property
    def pages_reserved(self) -> int:
        """Pages that the running requests may need at most, those they have included."""
        return self._reserved

    def add(self, request: Request) -> None:
        """Let a request wait for its place. Raises InputError, with the numbers, for one that can never have one."""
        limits = self._runner.manifest.limits
        check_prompt(request.prompt, limits)
        most_tokens = new_tokens(request.sampling, limits)
        most_rows = self._runner.most_rows(request.prompt, request.method)
        bound = self._pages(most_rows, most_tokens)
        if bound > self.pool.pages:
            raise InputError(
                f"the request may need {bound} pages of {self.pool.page_size} tokens ({len(most_rows)} layers x up to "
                f"{max(most_rows)} rows of the prompt and {most_tokens} new tokens), the KV cache has "
                f"{self.pool.pages}; shorten it, lower max_tokens or ratio_max, or raise target.limits.kv_bytes"
            )
        tokenizer, eos = self._processor.tokenizer, self._processor.eos_token_ids
        sequence = Sequence(request, most_tokens, bound, tokenizer, eos)
        bisect.insort(self._waiting, ((-request.priority, self.steps, request.number), sequence), key=_turn)

    def cancel(self, number: int) -> bool:
        """End a request; False where it has ended already."""
        for at, (_, sequence) in enumerate(self._waiting):
            if sequence.request.number == number:
                del self._waiting[at]
                self._end(sequence, Chunk("", [], finish_reason="cancelled"), "cancelled")
                return True
        for sequence in self._running:
            if sequence.request.number == number:
                self._leave(sequence, "cancelled", self._clock())
                return True
        return False

    def step(self) -> None:
        """One token for every running stream, then room for those that wait."""
        if not self.busy:
            return
        begun, engine_s = time.perf_counter(), self._runner.engine_s
        self.steps += 1
        self._expire()
        self._decode()
        self._admit()
        spent = time.perf_counter() - begun - (self._runner.engine_s - engine_s)
        self._metrics.observe("step_overhead_seconds", spent)
        self._metrics.count("steps_total")

    def fail_all(self, error: Exception) -> None:
        """End every request with an error; all pages come back."""
        for _, sequence in self._waiting:
            self._end(sequence, error, "failed")
        self._waiting.clear()
        for sequence in list(self._running):
            self._fail(sequence, error)

    def _pages(self, rows: list[int], most_tokens: int) -> int:
        """The last token of an answer is never fed, so its rows are not cached."""
        return sum(self.pool.pages_for(count + most_tokens - 1) for count in rows)

    def _expire(self) -> None:
        now = self._clock()
        for late in [entry for entry in self._waiting if _is_late(entry[1], now)]:
            self._waiting.remove(late)
            waited = now - late[1].request.arrived
            error = DeadlineError(f"no place came free within {waited:.1f} s, the request's limit")
            self._end(late[1], error, "deadline")
        for sequence in [sequence for sequence in self._running if _is_late(sequence, now)]:
            self._leave(sequence, "deadline", now)

    def _admit(self) -> None:
        budget = self._max_prefill_tokens
        while self._waiting and len(self._running) < self._max_batch:
            sequence = self._waiting[0][1]
            tokens = len(sequence.request.prompt.input_ids)
            if budget < min(tokens, self._max_prefill_tokens) or self._reserved + sequence.bound > self.pool.pages:
                return
            budget -= tokens
            del self._waiting[0]
            self._prefill(sequence)

    def _prefill(self, sequence: Sequence) -> None:
        request, sequence.started = sequence.request, self._clock()
        self._running.append(sequence)
        self._reserved += sequence.bound
        try:
            result, outputs = self._runner.prefill(request.prompt, request.features, request.method)
            sequence.request = replace(request, features=None)  # they are large, and have been read
            cached = self.pool.store(outputs.cache)
            sequence.begin(cached, result, cached.pages * self.pool.page_bytes)
            # What the layers kept is known now: the rest of the claim is free for others.
            claim = self._pages(cached.rows.tolist(), sequence.most_tokens)
            self._reserved += claim - sequence.bound
            sequence.bound = claim
            sequence.sample(result.logits)
        except Exception as error:
            self._fail(sequence, error)
            return
        self._metrics.count("prompt_tokens_total", result.tokens)
        self._metrics.observe("queue_seconds", sequence.started - request.arrived)
        for layer, ratio in enumerate(result.ratios):
            self._metrics.observe("kept_ratio", ratio, label=str(layer))
        self._settle([sequence])

    def _decode(self) -> None:
        batch = list(self._running)
        if not batch:
            return
        try:
            logits = self._runner.decode(
                self.pool,
                [sequence.cached for sequence in batch],
                [sequence.last_token for sequence in batch],
                [sequence.position for sequence in batch],
            )
        except Exception as error:
            for sequence in batch:
                self._fail(sequence, error)
            return
        sampled = []
        for sequence, row in zip(batch, logits, strict=True):
            try:
                sequence.sample(row)
            except ZipvlError as error:
                self._fail(sequence, error)
            else:
                sampled.append(sequence)
        self._settle(sampled)

    def _settle(self, sequences: list[Sequence]) -> None:
        now, gaps = self._clock(), []
        for sequence in sequences:
            chunk, gap = sequence.settle(now)
            if gap is None:
                self._metrics.observe("ttft_seconds", sequence.answer.ttft_s)
            else:
                gaps.append(gap)
            if chunk and chunk.finish_reason:
                self._release(sequence)
                self._metrics.observe("request_seconds", now - sequence.request.arrived)
                self._end(sequence, chunk, chunk.finish_reason)
            elif chunk:
                self._emit(sequence, chunk)
        self._metrics.count("generated_tokens_total", len(sequences))
        self._metrics.observe("itl_seconds", *gaps)

    def _leave(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        chunk = sequence.finish(reason, now)
        self._release(sequence)
        self._end(sequence, chunk, reason)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._release(sequence)
        self._end(sequence, error, "failed")

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._reserved -= sequence.bound
        self.pool.release(sequence.cached)

    def _end(self, sequence: Sequence, event: Chunk | Exception, outcome: str) -> None:
        self._metrics.count("requests_total", label=outcome)
        self._emit(sequence, event)


def _turn(entry: tuple[_Turn, Sequence]) -> _Turn:
    return entry[0]


def _is_late(sequence: Sequence, now: float) -> bool:
    return sequence.request.deadline is not None and now >= sequence.request.deadline
