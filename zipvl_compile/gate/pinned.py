"""Times against those of a pinned day on the same class of machine.

A machine's clock, its neighbours and its memory are not the same on two days. Every sample is therefore taken between
matrix products of fixed size, and what is compared is its time in units of theirs.
"""

from __future__ import annotations

import statistics
from typing import Any, Final, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from zipvl_compile.bench.statistics import estimate, ratio_of_medians
from zipvl_compile.gate.baseline_file import BaselineFile
from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.machine_class import MachineClass
from zipvl_compile.gate.paired import OnRound, point, sample, series
from zipvl_compile.gate.process import Clock, Sampler
from zipvl_compile.gate.report import Case
from zipvl_compile.gate.verdict import describe, judge
from zipvl_compile.gate.work import Work, differences, prepare
from zipvl_serving.errors import InputError

SECTION = "baseline"
TOLERANCE: Final = 0.2


class Product(BaseModel):
    """The matrix product that is the unit of time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    numpy: str = np.__version__
    side: int = 512
    count: int = 2
    """Products before, and after, each sample."""


class Workload(BaseModel):
    """What was measured, so that it is measured alike."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str
    """The name of the recipe, and of its bundle."""
    figures: tuple[str, ...]
    lengths: tuple[int, ...]
    threads: int
    new_tokens: int
    clock: Clock
    rounds: int
    product: Product


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
    work: list[Work]
    """Of each of the workload's lengths."""
    samples: dict[str, Calibrated]
    """By point: `ttft at 252 tokens`."""

    @model_validator(mode="after")
    def _of_the_workload(self) -> Self:
        if len(self.work) != len(self.workload.lengths):
            raise ValueError(
                f"work: of {len(self.work)} prompts; the workload has {len(self.workload.lengths)} lengths"
            )
        wanted = {point(figure, work.tokens) for figure in self.workload.figures for work in self.work}
        if set(self.samples) != wanted:
            raise ValueError(f"samples: {', '.join(self.samples)}; the workload says {', '.join(sorted(wanted))}")
        return self

    def values(self) -> dict[str, Any]:
        """Medians and intervals: seconds, and in products."""
        return {
            name: {"seconds": estimate(taken.seconds).model_dump(), "products": estimate(taken.relative).model_dump()}
            for name, taken in self.samples.items()
        }


def check(baseline: PinnedBaseline, bundle: str) -> None:
    """InputError where the bundle is not of the baseline's name, GateError where numpy's product is not its unit."""
    workload = baseline.workload
    if bundle != workload.recipe:
        raise InputError(f"the baseline is of the bundle {workload.recipe!r}, this one is {bundle!r}; name such a one")
    if workload.product.numpy != np.__version__:
        raise GateError(
            f"the baseline's unit is a product of numpy {workload.product.numpy}, here is {np.__version__}: times "
            "cannot be compared; install that one, or: zipvl-compile gate update baseline --reason TEXT"
        )


def measure(
    sampler: Sampler, workload: Workload, on_round: OnRound = lambda done, planned: None
) -> tuple[list[Work], dict[str, Calibrated]]:
    """The work of every length, and samples of every point, each between two measurements of the product."""
    prompts = prepare({"this": sampler}, workload.lengths)
    unit, clock = workload.product, workload.clock
    seconds: dict[str, list[float]] = {}
    products: dict[str, list[float]] = {}
    for done in range(1, workload.rounds + 1):
        for prompt in prompts:
            around = sampler.calibrate(unit.count, unit.side)[clock]
            found = sample(sampler, prompt)
            around = around + sampler.calibrate(unit.count, unit.side)[clock]
            for figure in workload.figures:
                name = point(figure, prompt.tokens)
                seconds.setdefault(name, []).append(found[series(figure, clock)])
                products.setdefault(name, []).append(statistics.median(around))
        on_round(done, workload.rounds)
    samples = {name: Calibrated(seconds=seconds[name], product_s=products[name]) for name in seconds}
    return [prompt.work["this"] for prompt in prompts], samples


def work_notes(found: list[Work], baseline: PinnedBaseline) -> list[str]:
    """What is done differently than when the baseline was made; GateError where prompts have other tokens."""
    notes = []
    for length, now, then in zip(baseline.workload.lengths, found, baseline.work, strict=True):
        notes += differences({"this bundle": now, "the baseline": then}, length)
    return notes


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
