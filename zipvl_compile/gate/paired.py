"""Two revisions side by side: samples in ABBA order, ratios pair by pair, more rounds where they cannot tell yet."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from zipvl_compile.bench.interleave import Run, interleave
from zipvl_compile.bench.statistics import paired_ratio
from zipvl_compile.gate.process import FIGURES, Sampler
from zipvl_compile.gate.report import Case, Outcome
from zipvl_compile.gate.verdict import describe, judge
from zipvl_serving.errors import InputError, nearest

SECTION = "paired"
SAMPLE_S = 0.02
"""Seconds that one sample should take: short, so that a slow spell of the machine covers both halves of a pair."""
_MOST_RUNS = 16
_WARM_UP = 2

OnRound = Callable[[int, int], None]
"""Called as on_round(done, planned)."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how to judge it.

    figures: of `ttft`, `prefill`, `decode`. lengths: prompts, in tokens. tolerance: share of slowdown that is let pass.
    rounds: pairs to begin with; they double up to max_rounds while a figure is inconclusive, or newly regressed.
    """

    figures: tuple[str, ...] = ("ttft", "decode")
    lengths: tuple[int, ...] = (256, 1024)
    tolerance: float = 0.05
    rounds: int = 40
    max_rounds: int = 320

    def __post_init__(self) -> None:
        for name, value, valid, holds in (
            ("--figures", self.figures, f"some of {', '.join(FIGURES)}", bool(self.figures)),
            ("--lengths", self.lengths, "token counts of 1 and more", self.lengths and min(self.lengths) >= 1),
            ("--tolerance", self.tolerance, "> 0 and < 1", 0 < self.tolerance < 1),
            ("--rounds", self.rounds, ">= 5: fewer pairs have no interval", self.rounds >= 5),
            ("--max-rounds", self.max_rounds, f">= --rounds, {self.rounds}", self.max_rounds >= self.rounds),
        ):
            if not holds:
                raise InputError(f"{name}: {value} is out of range; must be {valid}")
        for figure in self.figures:
            if figure not in FIGURES:
                raise InputError(f"--figures: no figure {figure!r}; {nearest(figure, FIGURES)}")


@dataclass
class Pairs:
    """Samples of one figure at one length; the i-th of both were taken next to each other. Seconds."""

    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)


Samples = dict[str, Pairs]
"""By point: `ttft at 256 tokens`."""


def point(figure: str, length: int) -> str:
    """The name of a figure at a length."""
    return f"{figure} at {length} tokens"


def compare(base: Sampler, head: Sampler, plan: Plan, on_round: OnRound = lambda done, planned: None) -> list[Case]:
    """Measure and judge every figure at every length, for as many rounds as the verdicts need.

    A regression counts when twice as many pairs still say so: looking again and again would find one by chance.
    """
    runs = _interleaved(base, head, plan.lengths)
    samples: Samples = {point(figure, length): Pairs() for length in plan.lengths for figure in plan.figures}
    suspected: set[str] = set()
    done, planned = 0, plan.rounds
    while True:
        # Two sides of a length are neighbours whichever way a round goes: one pair.
        found = interleave(runs, rounds=planned - done, on_round=partial(_advance, on_round, done, planned))
        for length in plan.lengths:
            for figure in plan.figures:
                pairs = samples[point(figure, length)]
                pairs.base += found[_run("base", length)][figure]
                pairs.head += found[_run("head", length)][figure]
        cases = verdicts(samples, plan.tolerance)
        slower = {case.figure for case in cases if case.outcome is Outcome.REGRESSED}
        settled = slower <= suspected and all(case.outcome is not Outcome.INCONCLUSIVE for case in cases)
        if settled or planned >= plan.max_rounds:
            return cases
        suspected, done, planned = slower, planned, min(2 * planned, plan.max_rounds)


def verdicts(samples: Mapping[str, Pairs], tolerance: float) -> list[Case]:
    """One case a point."""
    cases = []
    for name, pairs in samples.items():
        ratio = paired_ratio(pairs.head, pairs.base)
        medians = [1e3 * statistics.median(side) for side in (pairs.base, pairs.head)]
        message = (
            f"head over base {describe(ratio, tolerance)}, {len(pairs.base)} pairs; "
            f"medians {medians[0]:.3g} and {medians[1]:.3g} ms"
        )
        numbers = {"ratio": ratio.model_dump(), "tolerance": tolerance, "base_s": pairs.base, "head_s": pairs.head}
        cases.append(Case(SECTION, name, judge(ratio, tolerance), message, numbers))
    return cases


def runs_for(length: int, samplers: Sequence[Sampler]) -> int:
    """Warm everybody up, and say how many runs of a length make a sample; the same for all of them."""
    seconds = []
    for sampler in samplers:
        sampler.runs(length, _WARM_UP)
        seconds.append(min(sampler.runs(length, _WARM_UP)["ttft"]))
    return max(1, min(_MOST_RUNS, math.ceil(SAMPLE_S / max(*seconds, 1e-9))))


def sample(sampler: Sampler, length: int, count: int) -> dict[str, float]:
    """One sample of every figure: the median of `count` runs."""
    return {figure: statistics.median(runs) for figure, runs in sampler.runs(length, count).items() if runs}


def _interleaved(base: Sampler, head: Sampler, lengths: Sequence[int]) -> dict[str, Run]:
    """What makes a sample, by side and length."""
    counts = {length: runs_for(length, (base, head)) for length in lengths}
    sides = {"base": base, "head": head}
    return {
        _run(name, length): partial(sample, side, length, counts[length])
        for length in lengths
        for name, side in sides.items()
    }


def _run(side: str, length: int) -> str:
    return f"{side} at {length}"


def _advance(on_round: OnRound, before: int, planned: int, done: int) -> None:
    on_round(before + done, planned)
