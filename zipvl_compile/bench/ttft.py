"""TTFT of one request alone, by input length: every mode at every length, interleaved."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from zipvl_compile.bench.breakdown import SELECTION, Profiled
from zipvl_compile.bench.inputs import frames_of, make_prompt
from zipvl_compile.bench.interleave import Run, interleave
from zipvl_compile.bench.results import Cell
from zipvl_compile.bench.sessions import Watched
from zipvl_compile.bench.statistics import paired_ratio
from zipvl_compile.bench.target import Opened, check_modes
from zipvl_compile.bench.workload import TTFT, Accuracy, Mode
from zipvl_serving.arrays import Array
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import page_bytes_of
from zipvl_serving.manifest import Manifest
from zipvl_serving.prompts.prompt import EncodedPrompt
from zipvl_serving.runner import PromptResult
from zipvl_serving.sessions.base import PrefillInputs, PrefillOutputs
from zipvl_serving.vision.features import embed_images

Clock = Callable[[], float]
Report = Callable[[str, int, int, str], None]
"""report(stage, done, of, figures)"""
Profile = Callable[[PrefillInputs, Array | None], Profiled]
"""Makes a prefill whose runs are profiled."""


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
        self.seen: dict[str, tuple[PrefillInputs, Array | None]] = {}
        """What the last prefill of each mode took."""
        self.transformers: Any = None
        if any(mode.kind == "transformers" for mode in workload.modes):
            from zipvl_compile.bench.transformers_model import TransformersDecoder

            self.transformers = TransformersDecoder(opened.bundle, opened.threads)

    def at(self, tokens: int, prompt: EncodedPrompt) -> list[Cell]:
        """The cells of one length."""
        workload, stage = self.workload, f"{len(prompt.input_ids)} tokens"
        facts: dict[str, dict[str, Any]] = {}
        self.seen.clear()
        runs = {mode.name: self._run(mode, prompt, facts) for mode in workload.modes}
        rounds = workload.warm_up + workload.rounds
        samples = interleave(
            runs,
            rounds=workload.rounds,
            warm_up=workload.warm_up,
            on_round=lambda done: self.report(stage, done, rounds, ""),
        )
        broken_down = self._breakdowns(stage)
        cells = []
        for mode in workload.modes:
            found = facts[mode.name] | broken_down.get(mode.name, {})
            if workload.input == "scenes":
                found["frames"] = frames_of(tokens, self.opened.manifest)
                found["visual_tokens"] = int((~prompt.is_text).sum())
            if workload.accuracy is not None and mode.kind != "transformers":
                found["accuracy"] = self._accuracy(mode, tokens, prompt, workload.accuracy)
            cells.append(Cell.of(mode.name, {"tokens": len(prompt.input_ids)}, samples[mode.name], **found))
        return cells

    def _run(self, mode: Mode, prompt: EncodedPrompt, facts: dict[str, dict[str, Any]]) -> Run:
        params = self.opened.params(mode)

        def sample(ttft_s: float, prefill_s: float) -> dict[str, float]:
            return {"ttft_s": ttft_s, "prefill_s": prefill_s} if len(prompt.pixel_values) else {"ttft_s": ttft_s}

        def transformers() -> dict[str, float]:
            begun = self.clock()
            features = embed_images(self.opened.session, prompt.pixel_values)
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
            self.seen[mode.name] = self.watched.inputs, self.watched.features
            return sample(seconds, self.watched.prefill_s)

        return transformers if mode.kind == "transformers" else compiled

    def _breakdowns(self, stage: str) -> dict[str, dict[str, Any]]:
        """Facts by mode: seconds by part, and selection over the first mode's whole prefill, run by run."""
        if self.profile is None:
            return {}
        profiled = {name: self.profile(*seen) for name, seen in self.seen.items()}
        rounds = self.workload.breakdown
        interleave(
            {name: each.run for name, each in profiled.items()},
            rounds=rounds,
            warm_up=1,
            on_round=lambda done: self.report(f"{stage}, breakdown", done, 1 + rounds, ""),
        )
        runs = {name: each.end()[1:] for name, each in profiled.items()}
        whole = [sum(run.values()) for run in runs.get(self.workload.modes[0].name, [])]
        facts: dict[str, dict[str, Any]] = {}
        for name, parts in runs.items():
            samples = {part: [run[part] for run in parts] for part in parts[0]}
            facts[name] = {
                "breakdown": {part: statistics.median(values) for part, values in samples.items()},
                "breakdown_samples": samples,
            }
            if whole:
                selection = [sum(run[part] for part in SELECTION) for run in parts]
                facts[name]["selection_over_baseline"] = paired_ratio(selection, whole).model_dump()
        return facts

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
    pages = sum(-(-len(keys) // manifest.limits.page_size) for keys, _ in outputs.cache)
    return {
        "dense": result.dense,
        "kept_tokens_per_layer": result.counts,
        "ratio_per_layer": [round(ratio, 4) for ratio in result.ratios],
        "kv_pages": pages,
        "kv_bytes": pages * page_bytes_of(manifest),
    }
