"""Two revisions side by side: samples in ABBA order, ratios pair by pair, more rounds where they cannot tell yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from zipvl_compile.bench.interleave import Run, interleave
from zipvl_compile.bench.statistics import FEWEST_FOR_INTERVAL, paired_ratio
from zipvl_compile.gate.process import CLOCKS, FIGURES, Clock, Sampler
from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_compile.gate.verdict import describe, judge, judge_guard
from zipvl_compile.gate.work import Prompt, prepare
from zipvl_serving.errors import InputError, nearest

SECTION = "paired"
WALL_TOLERANCE: Final = 0.25
"""Of the wall clock where the processor's is judged, which does not see threads that stand idle."""

OnRound = Callable[[int, int], None]
"""Called as on_round(done, planned)."""

Sides = Callable[[], AbstractContextManager[tuple[Sampler, Sampler]]]
"""Starts both sides, base and head, in processes of their own."""


@dataclass(frozen=True)
class Plan:
    """What to measure and how to judge it.

    figures: of FIGURES. lengths: prompts, in tokens. tolerance: share of slowdown that is let pass.
    rounds: pairs to begin with; they double, up to max_rounds, while a figure is inconclusive or newly regressed.
    clock: `wall`, or `cpu` for the processor time of the worker alone, which other programs disturb far less, and which
    waiting does not lengthen.
    """

    figures: tuple[str, ...] = ("ttft", "decode")
    lengths: tuple[int, ...] = (256, 1024)
    tolerance: float = 0.05
    rounds: int = 40
    max_rounds: int = 320
    clock: Clock = "wall"

    def __post_init__(self) -> None:
        lengths, fewest, least = self.lengths, FEWEST_FOR_INTERVAL, 2 * self.rounds
        for name, value, valid, holds in (
            ("--figures", self.figures, f"some of {', '.join(FIGURES)}", bool(self.figures)),
            ("--lengths", lengths, "token counts of 1 and more", lengths and min(lengths) >= 1),
            ("--lengths", lengths, "token counts, each once", len(set(lengths)) == len(lengths)),
            ("--tolerance", self.tolerance, "> 0 and < 1", 0 < self.tolerance < 1),
            ("--rounds", self.rounds, f">= {fewest}: fewer pairs have no interval", self.rounds >= fewest),
            ("--max-rounds", self.max_rounds, f">= {least}, twice --rounds, or none could be confirmed",
             self.max_rounds >= least),
        ):  # fmt: skip
            if not holds:
                raise InputError(f"{name}: {value} is out of range; must be {valid}")
        for figure in self.figures:
            if figure not in FIGURES:
                raise InputError(f"--figures: no figure {figure!r}; {nearest(figure, FIGURES)}")


@dataclass
class Pairs:
    """Samples of one figure at one length by one clock; the i-th of both were taken next to each other. Seconds."""

    base: list[float] = field(default_factory=list)
    head: list[float] = field(default_factory=list)


Samples = dict[str, dict[Clock, Pairs]]
"""By point, `ttft at 252 tokens`, and clock."""


def point(figure: str, tokens: int) -> str:
    """The name of a figure at the length that a prompt has."""
    return f"{figure} at {tokens} tokens"


def compare(sides: Sides, plan: Plan, on_round: OnRound = lambda done, planned: None) -> Report:
    """Measure and judge every figure at every length, for as many rounds as the verdicts need.

    Looking again and again would find a regression by chance, and two processes of the same sources are not equally
    quick. So both sides start anew whenever rounds double, and a regression counts when twice as many pairs still say
    so; one that the last look is the first to see is inconclusive.
    Raises GateError where the sides do not do the same work.
    """
    samples: Samples = {}
    suspected: set[str] = set()
    notes: list[str] = []
    done, planned = 0, plan.rounds
    while True:
        with sides() as (base, head):
            prompts = prepare({"base": base, "head": head}, plan.lengths)
            # Two sides of a prompt are neighbours whichever way a round goes: one pair.
            found = interleave(
                _interleaved(base, head, prompts),
                rounds=planned - done,
                on_round=partial(_advance, on_round, done, planned),
            )
        _add(samples, found, prompts, plan.figures)
        notes += [note for prompt in prompts for note in prompt.notes if note not in notes]
        cases = verdicts(samples, plan)
        slower = {case.figure for case in cases if case.outcome is Outcome.REGRESSED}
        settled = slower <= suspected and all(case.outcome is not Outcome.INCONCLUSIVE for case in cases)
        if settled or 2 * planned > plan.max_rounds:
            return Report([_unconfirmed(case) if case.figure in slower - suspected else case for case in cases], notes)
        suspected, done, planned = slower, planned, 2 * planned


def verdicts(samples: Mapping[str, Mapping[Clock, Pairs]], plan: Plan) -> list[Case]:
    """One case a point, and where the processor's clock is judged, one more of the wall's, at WALL_TOLERANCE."""
    cases = []
    for name, pairs in samples.items():
        taken = {
            "base_s": {clock: each.base for clock, each in pairs.items()},
            "head_s": {clock: each.head for clock, each in pairs.items()},
        }
        cases.append(_case(name, pairs[plan.clock], plan.clock, plan.tolerance, taken))
        if plan.clock != "wall":
            cases.append(_case(f"{name}, wall clock", pairs["wall"], "wall", WALL_TOLERANCE, None))
    return cases


def sample(sampler: Sampler, prompt: Prompt) -> dict[str, float]:
    """One sample of every figure by either clock, by the names of `series`: the median of some runs."""
    found = sampler.runs(prompt.length, prompt.runs).seconds
    return {
        series(figure, clock): statistics.median(seconds)
        for figure, clocks in found.items()
        for clock, seconds in clocks.items()
        if seconds
    }


def series(figure: str, clock: Clock) -> str:
    """The name of a figure's samples by a clock."""
    return f"{figure} {clock}"


def _case(name: str, pairs: Pairs, clock: Clock, tolerance: float, samples: Mapping[str, object] | None) -> Case:
    """samples: None for a case that only stands guard beside the one that has them."""
    ratio = paired_ratio(pairs.head, pairs.base)
    medians = [1e3 * statistics.median(side) for side in (pairs.base, pairs.head)]
    message = (
        f"head over base {describe(ratio, tolerance)}, {len(pairs.base)} pairs; "
        f"medians {medians[0]:.3g} and {medians[1]:.3g} ms"
    )
    numbers = {"clock": clock, "ratio": ratio.model_dump(), "tolerance": tolerance, **(samples or {})}
    outcome = judge_guard(ratio, tolerance) if samples is None else judge(ratio, tolerance)
    return Case(SECTION, name, outcome, message, numbers)


def _unconfirmed(case: Case) -> Case:
    message = f"{case.message}; slower for the first time at the last look, so unconfirmed"
    return replace(case, outcome=Outcome.INCONCLUSIVE, message=message)


def _interleaved(base: Sampler, head: Sampler, prompts: Sequence[Prompt]) -> dict[str, Run]:
    """What makes a sample, by side and length."""
    sides = {"base": base, "head": head}
    return {_run(name, prompt): partial(sample, side, prompt) for prompt in prompts for name, side in sides.items()}


def _add(
    samples: Samples, found: Mapping[str, Mapping[str, list[float]]], prompts: Sequence[Prompt], figures: Sequence[str]
) -> None:
    for prompt in prompts:
        for figure in figures:
            clocks = samples.setdefault(point(figure, prompt.tokens), {clock: Pairs() for clock in CLOCKS})
            for clock, pairs in clocks.items():
                pairs.base += found[_run("base", prompt)][series(figure, clock)]
                pairs.head += found[_run("head", prompt)][series(figure, clock)]


def _run(side: str, prompt: Prompt) -> str:
    return f"{side} at {prompt.tokens}"


def _advance(on_round: OnRound, before: int, planned: int, done: int) -> None:
    on_round(before + done, planned)
