"""Times against those of a pinned day on the same class of machine.

A machine's clock, its neighbours and its memory are not the same on two days. Every sample is therefore taken between
matrix products of fixed size, and what is compared is its time in units of theirs.
"""

from __future__ import annotations

import statistics
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zipvl_compile.bench.statistics import estimate
from zipvl_compile.gate.baseline_file import BaselineFile
from zipvl_compile.gate.machine_class import MachineClass
from zipvl_compile.gate.paired import OnRound, point, runs_for, sample
from zipvl_compile.gate.process import Clock, Sampler
from zipvl_compile.gate.report import Case
from zipvl_compile.gate.verdict import describe, judge, ratio_of_medians

SECTION = "baseline"
TOLERANCE: Final = 0.2
_PRODUCTS = 2


class Workload(BaseModel):
    """What was measured, so that it is measured alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    figures: tuple[str, ...]
    lengths: tuple[int, ...]
    threads: int
    new_tokens: int
    clock: Clock
    rounds: int


class Calibrated(BaseModel):
    """Samples of one figure at one length and, in the same order, of the products around each. Seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: list[float] = Field(min_length=1)
    product_s: list[float] = Field(min_length=1)

    @model_validator(mode="after")
    def _side_by_side(self) -> Self:
        if len(self.seconds) != len(self.product_s):
            raise ValueError(f"{len(self.seconds)} samples stand beside {len(self.product_s)} products")
        return self

    @property
    def relative(self) -> list[float]:
        """Each sample in units of the products around it."""
        return [taken / product for taken, product in zip(self.seconds, self.product_s, strict=True)]


class PinnedBaseline(BaselineFile):
    """benchmarks/baselines/CLASS.json."""

    machine: MachineClass
    workload: Workload
    samples: dict[str, Calibrated]
    """By point: `ttft at 256 tokens`."""

    @model_validator(mode="after")
    def _of_the_workload(self) -> Self:
        wanted = {point(figure, length) for figure in self.workload.figures for length in self.workload.lengths}
        if set(self.samples) != wanted:
            raise ValueError(f"samples: {', '.join(self.samples)}; the workload says {', '.join(sorted(wanted))}")
        return self

    def values(self) -> dict[str, Any]:
        """Medians and intervals: seconds, and in products."""
        return {
            name: {"seconds": estimate(taken.seconds).model_dump(), "products": estimate(taken.relative).model_dump()}
            for name, taken in self.samples.items()
        }


def measure(
    sampler: Sampler, workload: Workload, on_round: OnRound = lambda done, planned: None
) -> dict[str, Calibrated]:
    """Samples of every point, each between two measurements of the product."""
    runs = {length: runs_for(length, (sampler,)) for length in workload.lengths}
    seconds: dict[str, list[float]] = {}
    products: dict[str, list[float]] = {}
    for done in range(1, workload.rounds + 1):
        for length, count in runs.items():
            around = sampler.calibrate(_PRODUCTS)
            found = sample(sampler, length, count)
            around += sampler.calibrate(_PRODUCTS)
            for figure in workload.figures:
                name = point(figure, length)
                seconds.setdefault(name, []).append(found[figure])
                products.setdefault(name, []).append(statistics.median(around))
        on_round(done, workload.rounds)
    return {name: Calibrated(seconds=seconds[name], product_s=products[name]) for name in seconds}


def verdicts(found: dict[str, Calibrated], baseline: PinnedBaseline, tolerance: float) -> list[Case]:
    """One case a point of the baseline, which said what to measure."""
    cases = []
    for name, wanted in baseline.samples.items():
        now = found[name]
        ratio = ratio_of_medians(now.relative, wanted.relative)
        plain = statistics.median(now.seconds) / statistics.median(wanted.seconds)
        message = f"now over baseline {describe(ratio, tolerance)}, in matrix products; {plain:.3f} in seconds"
        numbers = {
            "ratio": ratio.model_dump(),
            "ratio_in_seconds": plain,
            "tolerance": tolerance,
            "now": now.model_dump(),
            "baseline": wanted.model_dump(),
        }
        cases.append(Case(SECTION, name, judge(ratio, tolerance), message, numbers))
    return cases
