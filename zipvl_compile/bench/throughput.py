"""The most sequences that one KV budget holds, found by admission, and how fast they decode together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zipvl_compile.bench.inputs import frames_of, make_prompt
from zipvl_compile.bench.interleave import interleave
from zipvl_compile.bench.memory import free_bytes
from zipvl_compile.bench.results import Cell
from zipvl_compile.bench.sessions import PrefillOnce
from zipvl_compile.bench.target import Opened, check_modes
from zipvl_compile.bench.ttft import Clock, Report, kept
from zipvl_compile.bench.workload import Mode, Throughput
from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import KVPool, page_bytes_of
from zipvl_serving.machine import memory_bytes
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.runner import Runner
from zipvl_serving.scheduler import Scheduler
from zipvl_serving.sequence import Request, Sequence
from zipvl_serving.vision.features import embed_images
from zipvl_serving.wire import Chunk

_ALL_AT_ONCE = 1 << 62
"""Prompt tokens of a step: admission is bounded by pages alone."""


@dataclass(frozen=True)
class _Asked:
    """One request, of which every mode gets as many as it can hold."""

    prompt: EncodedPrompt
    features: Array | None
    sampling: SamplingParams


def measure(
    opened: Opened, workload: Throughput, report: Report, *, clock: Clock = time.perf_counter
) -> Iterator[list[Cell]]:
    """The cells of each length as they are finished, one for each mode.

    Every mode has a scheduler over a pool of its own. Identical requests are added until admission takes no more; then
    all of them decode, modes taking turns, and none ends before the last sample. max_batch is bounded by the bundle's
    limits.max_batch too. ttft_s (of prompts with images) and prefill_s are those of one prompt, as `bench ttft` has
    them; decode_step_s is a step of the scheduler with the whole batch, sampling included; tokens_per_s is the whole
    job's, see `job_rates`. Raises InputError for what does not fit the bundle or this machine: before anything runs,
    and before a length for which others have taken the memory meanwhile.
    """
    check_modes(opened, workload.modes)
    manifest = opened.manifest
    budget = _budget_bytes(workload)
    pages = budget // page_bytes_of(manifest)
    generator = opened.generator(lambda session: session)
    runner = Runner(opened.session, manifest, batch_invariant=manifest.serving.batch_invariant)
    sampling = SamplingParams(max_new_tokens=workload.new_tokens, ignore_eos=True)
    prompts = [make_prompt(generator, workload.input, tokens, workload.seed) for tokens in workload.lengths]
    for prompt in prompts:
        for mode in workload.modes:
            _check_fits(opened, runner, workload, mode, prompt, pages)
    for tokens, prompt in zip(workload.lengths, prompts, strict=True):
        _check_memory(workload, budget)
        asked = _Asked(prompt, embed_images(opened.session, prompt.pixel_values), sampling)
        facts = {}
        if workload.input == "scenes":
            facts = {"frames": frames_of(tokens, manifest), "visual_tokens": int((~prompt.is_text).sum())}
        yield _at(opened, workload, generator, runner, asked, pages, facts, report, clock)


def _at(
    opened: Opened,
    workload: Throughput,
    generator: Generator,
    runner: Runner,
    asked: _Asked,
    pages: int,
    facts: dict[str, Any],
    report: Report,
    clock: Clock,
) -> list[Cell]:
    tokens = len(asked.prompt.input_ids)
    batches = {}
    for number, mode in enumerate(workload.modes):
        report(f"{tokens} tokens, admission", number, len(workload.modes), mode.name)
        batches[mode.name] = _Batch(opened, generator, workload, mode, asked, pages)
        report(f"{tokens} tokens, admission", number + 1, len(workload.modes), f"{batches[mode.name].size} sequences")
    learnt: dict[str, dict[str, Any]] = {}

    def prefill(mode: Mode) -> dict[str, float]:
        begun = clock()
        features = embed_images(opened.session, asked.prompt.pixel_values)
        ready = clock()
        result, outputs = runner.prefill(asked.prompt, features, opened.params(mode))
        ended = clock()
        learnt[mode.name] = kept(result, outputs, opened.manifest)
        prefill_s = {"prefill_s": ended - ready}
        return prefill_s if features is None else {"ttft_s": ended - begun, **prefill_s}

    def decode(batch: _Batch) -> dict[str, float]:
        begun = clock()
        for _ in range(workload.steps):
            batch.step()
        return {"decode_step_s": (clock() - begun) / workload.steps}

    prefills = interleave(
        {mode.name: (lambda mode=mode: prefill(mode)) for mode in workload.modes},  # type: ignore[misc]
        rounds=workload.prefills,
        warm_up=workload.warm_up,
        on_round=lambda done: report(f"{tokens} tokens, prefill", done, workload.warm_up + workload.prefills, ""),
    )
    decodes = interleave(
        {name: (lambda batch=batch: decode(batch)) for name, batch in batches.items()},  # type: ignore[misc]
        rounds=workload.rounds,
        warm_up=workload.warm_up,
        on_round=lambda done: report(f"{tokens} tokens, decode", done, workload.warm_up + workload.rounds, ""),
    )
    cells = []
    for mode in workload.modes:
        batch = batches[mode.name]
        prompts, steps = prefills[mode.name], decodes[mode.name]["decode_step_s"]
        whole_prompts = prompts.get("ttft_s", prompts["prefill_s"])
        samples = {
            "max_batch": [float(batch.size)],
            **prompts,
            "decode_step_s": steps,
            "decode_tokens_per_s": [batch.size / step for step in steps],
            "tokens_per_s": job_rates(batch.size, workload.new_tokens, whole_prompts, steps),
        }
        found = {**facts, **learnt[mode.name], **batch.facts()}
        cells.append(Cell.of(mode.name, {"tokens": tokens}, samples, **found))
    return cells


def job_rates(batch: int, new_tokens: int, prompt_s: list[float], step_s: list[float]) -> list[float]:
    """Tokens a second of whole jobs: every sequence's prompt, vision included, then new_tokens - 1 steps of them all.

    One for each sample of prompt_s with the sample of step_s of the same round: as many as the shorter has, so that
    no sample counts twice.
    """
    return [
        batch * new_tokens / (batch * prompt + (new_tokens - 1) * step)
        for prompt, step in zip(prompt_s, step_s, strict=False)
    ]


class _Batch:
    """A scheduler that is full: as many of one request as its pool admits."""

    def __init__(
        self, opened: Opened, generator: Generator, workload: Throughput, mode: Mode, asked: _Asked, pages: int
    ) -> None:
        manifest, once = opened.manifest, PrefillOnce(opened.session)
        most = min(workload.max_batch, manifest.limits.max_batch)
        errors: list[Exception] = []

        def emit(sequence: Sequence, event: Chunk | Exception) -> None:
            if isinstance(event, Exception):
                errors.append(event)

        # A method of this object would close a circle of references, and the pool would outlive its length.
        self._errors = errors
        self._pool = KVPool(opened.session.page_storage(pages))
        self._scheduler = Scheduler(
            Runner(once, manifest, batch_invariant=manifest.serving.batch_invariant),
            self._pool,
            generator.processor,
            emit,
            max_batch=most,
            max_prefill_tokens=_ALL_AT_ONCE,
        )
        for number in range(most):
            request = Request(number, asked.prompt, asked.features, asked.sampling, opened.params(mode), arrived=0.0)
            self._scheduler.add(request)
        self._scheduler.step()
        self._raise()
        once.forget()
        self.size = self._scheduler.running
        self._stopped_by = "pages" if self._scheduler.waiting else "max_batch"
        for number in range(self.size, most):
            self._scheduler.cancel(number)

    def step(self) -> None:
        """One decode step of every sequence."""
        self._scheduler.step()
        self._raise()
        if self._scheduler.running != self.size:
            raise ZipvlError(f"{self.size - self._scheduler.running} sequences ended during the measurement")

    def facts(self) -> dict[str, Any]:
        return {
            "pages": self._pool.pages,
            "pages_reserved": self._scheduler.pages_reserved,
            "page_high_water": self._pool.high_water,
            "stopped_by": self._stopped_by,
        }

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]


def _budget_bytes(workload: Throughput) -> int:
    """Of one mode's pool."""
    budget = workload.kv_budget
    return budget if isinstance(budget, int) else int(budget * memory_bytes())


def _check_memory(workload: Throughput, budget: int) -> None:
    """InputError where the pools of all modes do not fit in free memory."""
    wanted, free = budget * len(workload.modes), free_bytes()
    if wanted > free:
        raise InputError(
            f"kv_budget: {len(workload.modes)} modes x {budget} bytes is {wanted}, {free} bytes are free here; "
            "lower kv_budget or compare fewer modes"
        )


def _check_fits(
    opened: Opened, runner: Runner, workload: Throughput, mode: Mode, prompt: EncodedPrompt, pages: int
) -> None:
    """InputError where not even one request fits."""
    limits, rows = opened.manifest.limits, runner.most_rows(prompt, opened.params(mode))
    if workload.new_tokens > limits.max_new_tokens:
        raise InputError(
            f"new_tokens: {workload.new_tokens} is out of range; {opened.manifest.name} gives {limits.max_new_tokens} "
            "at most"
        )
    bound = sum(-(-(count + workload.new_tokens - 1) // limits.page_size) for count in rows)
    if bound > pages:
        raise InputError(
            f"kv_budget: holds {pages} pages of {limits.page_size} tokens; one request of {len(prompt.input_ids)} "
            f"tokens in mode {mode.name} may need {bound}; raise kv_budget or lower lengths"
        )
