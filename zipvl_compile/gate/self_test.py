"""Does the gate see what it must, and nothing else? The same sources against themselves, and against a slower self."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from zipvl_compile.gate.paired import OnRound, Plan, compare
from zipvl_compile.gate.process import Clock, Sampler, WorkerProcess
from zipvl_compile.gate.report import Case, Outcome, Report

SECTION = "self-test"
SLOWDOWN = 0.10
PLAN = Plan(figures=("ttft",), lengths=(256,))
_NEW_TOKENS = 1

Start = Callable[[float], Sampler]
"""Starts a worker whose TTFT is stretched by a share."""


def run(start: Start, plan: Plan = PLAN, on_round: OnRound = lambda done, planned: None) -> Report:
    """Two cases: `A against A` must pass, `A against A, 10 % slower` must come out as a regression.

    A case is a regression where the gate came to the wrong verdict, and inconclusive where the gate did.
    """
    base, same, slower = start(0.0), start(0.0), start(SLOWDOWN)
    cases = [
        _case("A against A", compare(base, same, plan, on_round), Outcome.PASSED),
        _case(f"A against A, {SLOWDOWN:.0%} slower", compare(base, slower, plan, on_round), Outcome.REGRESSED),
    ]
    return Report(cases)


def run_on(root: Path, bundle: Path, threads: int, clock: Clock, on_round: OnRound) -> Report:
    """The self-test over a bundle, each side a process of its own with the sources at `root`."""
    with ExitStack() as running:

        def start(stretch: float) -> Sampler:
            label = f"the worker {stretch:.0%} slower" if stretch else "the worker as it is"
            worker = WorkerProcess(
                label, root, bundle, threads=threads, new_tokens=_NEW_TOKENS, stretch=stretch, clock=clock
            )
            return running.enter_context(worker)

        return run(start, on_round=on_round)


def _case(name: str, found: list[Case], wanted: Outcome) -> Case:
    (case,) = found
    right = case.outcome is wanted
    undecided = case.outcome is Outcome.INCONCLUSIVE
    outcome = Outcome.PASSED if right else Outcome.INCONCLUSIVE if undecided else Outcome.REGRESSED
    return Case(SECTION, name, outcome, f"wanted {wanted}, found {case.outcome}: {case.message}", case.numbers)
