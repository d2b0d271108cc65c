"""TTFT of one request alone, by input length: every mode at every length, interleaved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from zipvl_compile.bench.inputs import embed, frames_of, make_prompt
from zipvl_compile.bench.interleave import Run, interleave
from zipvl_compile.bench.results import Cell
from zipvl_compile.bench.sessions import Watched
from zipvl_compile.bench.target import Opened, check_modes
from zipvl_compile.bench.workload import TTFT, Accuracy, Mode
from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import page_bytes
from zipvl_serving.manifest import Manifest
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.runner import PromptResult
from zipvl_serving.sessions.base import PrefillInputs, PrefillOutputs

Clock = Callable[[], float]
Report = Callable[[str, int, int, str], None]
"""report(stage, done, of, figures)"""
Profile = Callable[[PrefillInputs, Array | None], dict[str, float]]
"""Seconds of one prefill by part."""


def measure(
    opened: Opened,
    workload: TTFT,
    report: Report,
    *,
    profile: Profile | None = None,
    clock: Clock = time.perf_counter,
) -> Iterator[list[Cell]]:
    """The cells of each length as they are finished, one for each mode.

    A sample of ttft_s is vision (of a prompt with images), prefill and the last token's logits, from an encoded prompt
    on: no tokenising, no queue, no sampling. prefill_s, of prompts with images, is its part after vision.
    Raises InputError, before anything runs, for modes and lengths that do not fit the bundle.
    """
    check_modes(opened, workload.modes)
    if workload.accuracy is not None and opened.weights == "random":
        raise InputError(f"accuracy: {opened.manifest.name} has random weights; remove it")
    watched = Watched(opened.session, clock)
    generator = opened.generator(lambda _: watched, workload.dense_below)
    prompts = [make_prompt(generator, workload.input, tokens, workload.seed) for tokens in workload.lengths]
    bench = _Bench(opened, workload, watched, generator, report, profile, clock)
    for tokens, prompt in zip(workload.lengths, prompts, strict=True):
        yield bench.at(tokens, prompt)


class _Bench:
    """What the lengths of one measurement share."""

    def __init__(
        self,
        opened: Opened,
        workload: TTFT,
        watched: Watched,
        generator: Generator,
        report: Report,
        profile: Profile | None,
        clock: Clock,
    ) -> None:
        self.opened, self.workload, self.watched, self.generator = opened, workload, watched, generator
        self.report, self.profile, self.clock = report, profile, clock
        self.transformers: Any = None
        if any(mode.kind == "transformers" for mode in workload.modes):
            from zipvl_compile.bench.transformers_model import TransformersDecoder

            self.transformers = TransformersDecoder(opened.bundle, opened.threads)

    def at(self, tokens: int, prompt: EncodedPrompt) -> list[Cell]:
        """The cells of one length."""
        workload, stage = self.workload, f"{len(prompt.input_ids)} tokens"
        facts: dict[str, dict[str, Any]] = {}
        runs = {mode.name: self._run(mode, prompt, facts) for mode in workload.modes}
        rounds = workload.warm_up + workload.rounds
        samples = interleave(
            runs,
            rounds=workload.rounds,
            warm_up=workload.warm_up,
            on_round=lambda done: self.report(stage, done, rounds, ""),
        )
        cells = []
        for mode in workload.modes:
            found = facts[mode.name]
            if workload.input == "scenes":
                found["frames"] = frames_of(tokens, self.opened.manifest)
                found["visual_tokens"] = int((~prompt.is_text).sum())
            if mode.kind != "transformers":
                found |= self._more(mode, tokens, prompt)
            cells.append(Cell.of(mode.name, {"tokens": len(prompt.input_ids)}, samples[mode.name], **found))
        return cells

    def _run(self, mode: Mode, prompt: EncodedPrompt, facts: dict[str, dict[str, Any]]) -> Run:
        params = self.opened.params(mode)

        def sample(ttft_s: float, prefill_s: float) -> dict[str, float]:
            return {"ttft_s": ttft_s, "prefill_s": prefill_s} if len(prompt.pixel_values) else {"ttft_s": ttft_s}

        def transformers() -> dict[str, float]:
            begun = self.clock()
            features = embed(self.opened.session, prompt)
            ready = self.clock()
            self.transformers.prefill(prompt, features)
            ended = self.clock()
            facts[mode.name] = {}
            return sample(ended - begun, ended - ready)

        def compiled() -> dict[str, float]:
            begun = self.clock()
            result, outputs = self.generator.prefill(prompt, params)
            seconds = self.clock() - begun
            facts[mode.name] = kept(result, outputs, self.opened.manifest)
            return sample(seconds, self.watched.prefill_s)

        return transformers if mode.kind == "transformers" else compiled

    def _more(self, mode: Mode, tokens: int, prompt: EncodedPrompt) -> dict[str, Any]:
        """What is measured once: the breakdown and accuracy."""
        found: dict[str, Any] = {}
        if self.profile is not None:
            self.generator.prefill(prompt, self.opened.params(mode))
            found["breakdown"] = self.profile(self.watched.inputs, self.watched.features)
        if self.workload.accuracy is not None:
            found["accuracy"] = self._accuracy(mode, tokens, prompt, self.workload.accuracy)
        return found

    def _accuracy(self, mode: Mode, tokens: int, prompt: EncodedPrompt, asked: Accuracy) -> dict[str, Any]:
        from zipvl_compile.demo.score import Column, score

        frames = frames_of(tokens, self.opened.manifest)
        found: dict[str, Any] = {}
        for task in asked.tasks:
            stage, done = f"{len(prompt.input_ids)} tokens, {mode.name}: {task}", 0

            def on_question(stage: str = stage) -> None:
                nonlocal done
                done += 1
                self.report(stage, done, asked.questions, "")

            column, params = Column(task, frames, easy=task == "color"), self.opened.params(mode)
            scored = score(self.generator, column, params, asked.questions, self.workload.seed, on_question)
            found[task] = {name: getattr(scored, name) for name in ("content", "exact", "ratio", "questions")}
        return found


def kept(result: PromptResult, outputs: PrefillOutputs, manifest: Manifest) -> dict[str, Any]:
    """What a prefill leaves: tokens and ratio of each layer, and the bytes of the pages that the cache takes."""
    limits, shape = manifest.limits, manifest.model.shape
    pages = sum(-(-len(keys) // limits.page_size) for keys, _ in outputs.cache)
    return {
        "dense": result.dense,
        "kept_tokens_per_layer": result.counts,
        "ratio_per_layer": [round(ratio, 4) for ratio in result.ratios],
        "kv_pages": pages,
        "kv_bytes": pages * page_bytes(limits.page_size, shape.kv_heads, shape.head_dim, manifest.model.dtype),
    }
