"""Does the gate see what it must, and nothing else? The same sources against themselves, and against a slower self."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from zipvl_compile.gate.paired import OnRound, Plan, Sides, compare
from zipvl_compile.gate.process import Sampler, WorkerProcess
from zipvl_compile.gate.report import Case, Outcome, Report

SECTION = "self-test"
SLOWDOWN = 0.10
PLAN = Plan(figures=("ttft",), lengths=(256,))
_NEW_TOKENS = 1

Start = Callable[[float], AbstractContextManager[Sampler]]
"""Starts a worker whose TTFT is stretched by a share."""


def run(start: Start, plan: Plan = PLAN, on_round: OnRound = lambda done, planned: None) -> Report:
    """Two cases: `A against A` must pass, `A against A, 10 % slower` must come out as a regression.

    A case is a regression where the gate came to the wrong verdict, and inconclusive where the gate did.
    """
    same, slower = (compare(_sides(start, stretch), plan, on_round) for stretch in (0.0, SLOWDOWN))
    return Report(
        [
            _case("A against A", same, Outcome.PASSED),
            _case(f"A against A, {SLOWDOWN:.0%} slower", slower, Outcome.REGRESSED),
        ]
    )


def run_on(root: Path, bundle: Path, threads: int, plan: Plan, on_round: OnRound) -> Report:
    """The self-test over a bundle, each side a process of its own with the sources at `root`."""

    def start(stretch: float) -> WorkerProcess:
        label = f"the worker {stretch:.0%} slower" if stretch else "the worker as it is"
        return WorkerProcess(
            label, root, bundle, threads=threads, new_tokens=_NEW_TOKENS, stretch=stretch, clock=plan.clock
        )

    return run(start, plan, on_round)


def _sides(start: Start, stretch: float) -> Sides:
    @contextmanager
    def sides() -> Iterator[tuple[Sampler, Sampler]]:
        with start(0.0) as base, start(stretch) as head:
            yield base, head

    return sides


def _case(name: str, found: Report, wanted: Outcome) -> Case:
    case = next(case for case in found.cases if case.outcome is found.worst)
    right = case.outcome is wanted
    undecided = case.outcome is Outcome.INCONCLUSIVE
    outcome = Outcome.PASSED if right else Outcome.INCONCLUSIVE if undecided else Outcome.REGRESSED
    return Case(SECTION, name, outcome, f"wanted {wanted}, found {case.outcome}: {case.message}", case.numbers)
