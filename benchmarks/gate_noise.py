"""How often the paired gate errs: on simulated machines, and its self-test over and over on this one.

    python -m benchmarks.gate_noise --self-tests 5 --bundle build/digits --out benchmarks/results/gate_noise.json

Simulated: `compare` as `gate paired` calls it, with its defaults, over samplers whose times are made up from a seed.
Prints the tables of docs/gates.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.report import table
from benchmarks.output import hand_over
from zipvl_compile.bench.fingerprint import fingerprint, finished
from zipvl_compile.gate.paired import Plan, compare
from zipvl_compile.gate.process import CLOCKS, FIGURES, Clock, Runs, Seconds
from zipvl_compile.gate.report import Outcome
from zipvl_compile.gate.run import run_self_test

PLAN = Plan(figures=("ttft",), lengths=(256,))
SECONDS = 0.055
SLOWDOWNS = (0.0, 0.05, 0.1)
NOISE: dict[str, dict[str, float]] = {
    "20 % that drifts over both halves of a pair, 5 % of each sample's own, 1 sample in 20 twice as long": {
        "drift": 0.2,
        "jitter": 0.05,
        "spikes": 0.05,
    },
    "20 % of each sample's own: pairing cancels nothing": {"drift": 0.0, "jitter": 0.2},
    "2 % of each sample's own": {"drift": 0.0, "jitter": 0.02},
}


@dataclass
class Machine:
    """A noisy machine with two tenants.

    drift: coefficient of variation of what falls on both halves of a pair alike. jitter: of what falls on one sample
    alone. spikes: share of samples that take twice as long.
    """

    seed: int
    drift: float
    jitter: float
    spikes: float = 0.0
    rng: np.random.Generator = field(init=False)
    level: float = 0.0
    taken: int = 0

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def noise(self) -> float:
        """The factor on the next sample; the drift moves on after each pair."""
        if self.taken % 2 == 0:
            self.level = 0.7 * self.level + np.sqrt(1 - 0.7**2) * self.rng.standard_normal() * self.drift
        self.taken += 1
        own = self.rng.standard_normal() * self.jitter
        return float(np.exp(self.level + own)) * (2.0 if self.rng.random() < self.spikes else 1.0)


@dataclass
class SimulatedSampler:
    """A side whose runs take `seconds` by either clock, on a noisy machine where one is given."""

    seconds: float = SECONDS
    machine: Machine | None = None

    def runs(self, length: int, count: int) -> Runs:
        taken = self.seconds * (self.machine.noise() if self.machine else 1.0)
        return Runs(length, (length,), "", {figure: dict.fromkeys(CLOCKS, [taken] * count) for figure in FIGURES})

    def calibrate(self, count: int, side: int) -> Seconds:
        return dict.fromkeys(CLOCKS, [self.seconds] * count)


def outcomes(slowdown: float, machines: int, **noise: float) -> Counter[Outcome]:
    """What the paired gate says of a head that is slower by a share, over so many machines, each of a seed."""
    found: Counter[Outcome] = Counter()
    for seed in range(machines):
        machine = Machine(seed, **noise)
        sides = SimulatedSampler(machine=machine), SimulatedSampler(SECONDS * (1 + slowdown), machine)
        (case,) = compare(partial(nullcontext, sides), PLAN).cases
        found[case.outcome] += 1
    return found


def verdicts(machines: int, **noise: float) -> dict[str, dict[str, int]]:
    """How many machines came to each outcome, the commonest first, by the head's slowdown."""
    return {f"{slowdown:g}": dict(outcomes(slowdown, machines, **noise).most_common()) for slowdown in SLOWDOWNS}


def self_tests(bundle: Path, times: int, clock: Clock) -> list[dict[str, Any]]:
    """Verdicts and seconds of so many self-tests on this machine."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        report = run_self_test(bundle, 0, clock, lambda done, planned: None)
        seconds = round(time.perf_counter() - begun, 1)
        cases = {case.figure: {"outcome": str(case.outcome), "said": case.message} for case in report.cases}
        found.append({"clock": clock, "seconds": seconds, "cases": cases})
    return found


def simulated_table(simulated: dict[str, dict[str, dict[str, int]]]) -> list[str]:
    """The Markdown table of docs/gates.md."""
    head = ["noise", *(f"{slowdown:.0%} slower" if slowdown else "A against A" for slowdown in SLOWDOWNS)]
    rows = [
        [noise, *(", ".join(f"{count} {outcome}" for outcome, count in found.items()) for found in columns.values())]
        for noise, columns in simulated.items()
    ]
    return table(head, rows)


def self_test_table(found: list[dict[str, Any]]) -> list[str]:
    """One row for all self-tests: how often each case came to what it should."""
    names = list(found[0]["cases"])
    right = [sum(test["cases"][name]["outcome"] == "passed" for test in found) for name in names]
    seconds = [test["seconds"] for test in found]
    spent = f"{min(seconds):.0f} to {max(seconds):.0f}, median {statistics.median(seconds):.0f}"
    cells = [found[0]["clock"], *(f"{count} of {len(found)} right" for count in right), spent]
    return table(["clock", *names, "seconds"], [cells])


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the paired gate errs; see the module's docstring.")
    parser.add_argument("--machines", type=int, default=200)
    parser.add_argument("--self-tests", type=int, default=0)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--bundle", type=Path, default=Path("build/digits"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"environment": fingerprint()}
    lines: list[str] = []
    if options.machines:
        result["machines"] = options.machines
        result["plan"] = {**vars(PLAN), "seconds": SECONDS}
        result["simulated"] = {name: verdicts(options.machines, **noise) for name, noise in NOISE.items()}
        lines += simulated_table(result["simulated"])
    if options.self_tests:
        result["self_tests"] = self_tests(options.bundle, options.self_tests, options.clock)
        lines += self_test_table(result["self_tests"])
    result["environment"] = finished(result["environment"])
    hand_over(result, options.out)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
