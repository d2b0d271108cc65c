"""One revision's side of a paired gate: opens a bundle once and answers requests for samples, one JSON line each.

    python -P worker.py BUNDLE [--threads N] [--new-tokens N] [--stretch SHARE] [--clock wall|cpu]

It is run by its path, with the sources of another revision on PYTHONPATH, so of the project it uses only what all
revisions have: Bundle.open, open_session, Generator.prepare and .stream, SamplingParams; Session.vision and .prefill.

Says {"sources": FOLDER} when it is ready. Then answers
- {"length": L, "runs": N} with the seconds of N runs of a prompt of about L tokens: {"tokens": n, "ttft": [...],
  "prefill": [...], "decode": [...]}. ttft counts from the encoded prompt to its first token (vision, prefill and
  sampling), prefill is the engine's call alone, decode the mean step of the tokens after it.
- {"calibrate": N} with the seconds of N matrix products of fixed size in numpy: {"seconds": [...]}.
- what fails with {"error": TEXT}.
The clock is the wall's, or counts the processor time of this process alone.
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
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions.base import open_session

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
QUESTION = "which digit is red ?"
CALIBRATION_SIDE = 512


class Bench:
    """A bundle under the stopwatch.

    stretch: share of its own time by which every call of vision and prefill is prolonged, to test the gate.
    """

    def __init__(self, bundle: Path, threads: int, new_tokens: int, stretch: float, clock: Callable[[], float]) -> None:
        opened = Bundle.open(bundle)
        session: Any = open_session(opened, threads=threads or None, spinning=False)
        self._clock, self._prefill_s = clock, 0.0
        session.vision = _stretched(session.vision, stretch, clock)
        session.prefill = self._watched(_stretched(session.prefill, stretch, clock))
        self._generator = Generator(opened, session)
        self._sampling = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        self._prompt = cache(self._encode)

    def runs(self, length: int, count: int) -> dict[str, Any]:
        """Seconds of so many answers to the prompt of about `length` tokens."""
        prompt = self._prompt(length)
        found: dict[str, list[float]] = {"ttft": [], "prefill": [], "decode": []}
        for _ in range(count):
            times = [self._clock()]
            times += [self._clock() for _ in self._generator.stream(prompt, self._sampling)]
            found["ttft"].append(times[1] - times[0])
            found["prefill"].append(self._prefill_s)
            if len(times) > 2:
                found["decode"].append((times[-1] - times[1]) / (len(times) - 2))
        return {"tokens": len(prompt.input_ids), **found}

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def prefill(*arguments: Any) -> Any:
            begun = self._clock()
            outputs = call(*arguments)
            self._prefill_s = self._clock() - begun
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


def calibrate(count: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of so many products of two float32 matrices in numpy: what this machine gives at this moment."""
    left, right = np.random.default_rng(0).standard_normal((2, CALIBRATION_SIDE, CALIBRATION_SIDE), dtype=np.float32)
    seconds = []
    for _ in range(count):
        begun = clock()
        left @ right
        seconds.append(clock() - begun)
    return seconds


def answer(bench: Bench, asked: dict[str, Any], clock: Callable[[], float]) -> dict[str, Any]:
    """The answer to one request; nothing is collected while the stopwatch runs."""
    gc.collect()
    if "calibrate" in asked:
        return {"seconds": calibrate(int(asked["calibrate"]), clock)}
    return bench.runs(int(asked["length"]), int(asked["runs"]))


def main() -> None:
    parser = argparse.ArgumentParser(description="One revision's side of a paired gate; see the module's docstring.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--stretch", type=float, default=0.0)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    # Answers have the first stdout to themselves: whatever a library prints goes to stderr.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    bench = Bench(options.bundle, options.threads, options.new_tokens, options.stretch, clock)
    gc.disable()
    print(json.dumps({"sources": str(Path(zipvl_serving.__file__).resolve().parent)}), file=answers, flush=True)
    for line in sys.stdin:
        try:
            said = answer(bench, json.loads(line), clock)
        except Exception as error:
            said = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        print(json.dumps(said), file=answers, flush=True)


if __name__ == "__main__":
    main()
