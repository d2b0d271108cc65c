"""One revision's side of a paired gate: opens a bundle once and answers requests for samples, one JSON line each.

    python -P worker.py BUNDLE [--threads N] [--new-tokens N] [--dense] [--stretch SHARE] [--clock wall|cpu]

It is run by its path, with the sources of another revision on PYTHONPATH, so of the project it uses only what all
revisions have: Bundle.open, open_session, Generator.prepare, .stream and .prefill, SamplingParams, MethodParams;
Session.vision and .prefill.

Says {"sources": FOLDER} when it is ready. Then answers
- {"length": L, "runs": N} with what N runs of a prompt of about L tokens did and took: {"tokens": n, "kept": [per
  layer], "text": ANSWER, "seconds": {FIGURE: {CLOCK: [...]}}}. ttft counts from the encoded prompt to its first token
  (vision, prefill and sampling), prefill is the engine's call alone, decode the mean step of the tokens after it, dense
  the engine's call for the same prompt run dense (with --dense).
- {"calibrate": N, "side": M} with the seconds of N products of matrices [M, M] in numpy: {"seconds": {CLOCK: [...]}}.
- what fails with {"error": TEXT}.
CLOCK is `wall`, and `cpu`, the processor time of this process alone; every time is taken by both. --clock says by which
one a stretched call is prolonged.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import zipvl_serving
from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions.base import open_session

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
QUESTION = "which digit is red ?"


Times = Any
"""Seconds by every clock: float64 [clocks], in the order of CLOCKS."""


def now() -> Times:
    """What every clock shows."""
    return np.array([clock() for clock in CLOCKS.values()])


def by_clock(taken: list[Times]) -> dict[str, list[float]]:
    """Seconds of each sample, by the clock's name."""
    return {clock: [float(seconds[at]) for seconds in taken] for at, clock in enumerate(CLOCKS)}


class Bench:
    """A bundle under the stopwatch.

    stretch: share of its own time by which every call of vision and prefill is prolonged, to test the gate.
    """

    def __init__(
        self, bundle: Path, threads: int, new_tokens: int, stretch: float, clock: Callable[[], float], *, dense: bool
    ) -> None:
        opened = Bundle.open(bundle)
        session: Any = open_session(opened, threads=threads or None, spinning=False)
        self._prefill_s = now()
        self._dense = MethodParams.defaults(opened.manifest.method).override(dense=True) if dense else None
        session.vision = _stretched(session.vision, stretch, clock)
        session.prefill = self._watched(_stretched(session.prefill, stretch, clock))
        self._generator = Generator(opened, session)
        self._sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        self._prompt = cache(self._encode)

    def runs(self, length: int, count: int) -> dict[str, Any]:
        """So many answers to the prompt of about `length` tokens: the work, and its seconds by clock and figure."""
        prompt = self._prompt(length)
        found: dict[str, list[Times]] = {"ttft": [], "prefill": [], "decode": [], "dense": []}
        for _ in range(count):
            times = [now()]
            for event in self._generator.stream(prompt, self._sampling):
                times.append(now())
                _, answer = event
            found["ttft"].append(times[1] - times[0])
            found["prefill"].append(self._prefill_s)
            if len(times) > 2:
                found["decode"].append((times[-1] - times[1]) / (len(times) - 2))
            if self._dense:
                self._generator.prefill(prompt, self._dense)
                found["dense"].append(self._prefill_s)
        work = {"tokens": len(prompt.input_ids), "kept": answer.prompt.counts, "text": answer.text}
        return {**work, "seconds": {figure: by_clock(taken) for figure, taken in found.items()}}

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def prefill(*arguments: Any) -> Any:
            begun = now()
            outputs = call(*arguments)
            self._prefill_s = now() - begun
            return outputs

        return prefill

    def _encode(self, length: int) -> Any:
        """The question over as many frames of noise as come nearest to `length` from below, at least one."""
        one, two = (len(self._frames(count).input_ids) for count in (1, 2))
        return self._frames(max(1, 1 + (length - one) // (two - one)))

    def _frames(self, count: int) -> Any:
        pixels = np.random.default_rng(0).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)
        return self._generator.prepare(QUESTION, [Image.fromarray(frame) for frame in pixels])


def _stretched(call: Callable[..., Any], share: float, clock: Callable[[], float]) -> Callable[..., Any]:
    """`call`, busy for `share` of its own time longer."""

    def prolonged(*arguments: Any) -> Any:
        begun = clock()
        outputs = call(*arguments)
        until = begun + (clock() - begun) * (1 + share)
        while clock() < until:
            pass
        return outputs

    return prolonged if share else call


def calibrate(count: int, side: int) -> list[Times]:
    """Seconds of so many products of float32 matrices [side, side] in numpy: what this machine gives at this moment."""
    left, right = np.random.default_rng(0).standard_normal((2, side, side), dtype=np.float32)
    taken = []
    for _ in range(count):
        begun = now()
        left @ right
        taken.append(now() - begun)
    return taken


def answer(bench: Bench, asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request; nothing is collected while the stopwatch runs."""
    gc.collect()
    if "calibrate" in asked:
        return {"seconds": by_clock(calibrate(int(asked["calibrate"]), int(asked["side"])))}
    return bench.runs(int(asked["length"]), int(asked["runs"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="One revision's side of a paired gate; see the module's docstring.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--stretch", type=float, default=0.0)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    options = parser.parse_args()
    # Answers have the first stdout to themselves: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(
        options.bundle, options.threads, options.new_tokens, options.stretch, CLOCKS[options.clock], dense=options.dense
    )
    gc.disable()
    print(json.dumps({"sources": str(Path(zipvl_serving.__file__).resolve().parent)}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            said = answer(bench, json.loads(line))
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
