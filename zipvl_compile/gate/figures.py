"""Figures that repeat: what they are, how far they may stray, and which strayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zipvl_compile.gate.report import Case, Outcome

SECTION = "deterministic"


@dataclass(frozen=True)
class Figure:
    """A figure that is the same on every run.

    absolute, relative: how far it may lie from the baseline, the larger of the two allowances; 0 where it is a count.
    """

    value: float
    absolute: float = 0.0
    relative: float = 0.0

    def allows(self, baseline: float) -> bool:
        return abs(self.value - baseline) <= max(self.absolute, self.relative * abs(baseline))

    @property
    def allowance(self) -> str:
        """For people: `exactly`, `+- 0.005`, `+- 1 %`."""
        parts = [f"{self.absolute:g}"] if self.absolute else []
        parts += [f"{self.relative:.2g} of it"] if self.relative else []
        return f"+- {' or '.join(parts)}" if parts else "exactly"


def compare(found: Mapping[str, Figure], wanted: Mapping[str, float]) -> list[Case]:
    """One case a figure, by name; a figure that only one side has has strayed too.

    Any stray is a regression, a gain as well: a baseline that follows gains by itself would hide the way back.
    """
    return [_case(name, found.get(name), wanted.get(name)) for name in sorted({*found, *wanted})]


def _case(name: str, figure: Figure | None, wanted: float | None) -> Case:
    if figure is None:
        message, fine = f"the baseline has {wanted:g}, this bundle does not have the figure", False
    elif wanted is None:
        message, fine = f"found {figure.value:g}, the baseline does not have the figure", False
    else:
        message, fine = f"wanted {wanted:g} ({figure.allowance}), found {figure.value:g}", figure.allows(wanted)
    numbers = {"wanted": wanted, "found": figure and figure.value}
    if figure:
        numbers |= {"absolute": figure.absolute, "relative": figure.relative}
    return Case(SECTION, name, Outcome.PASSED if fine else Outcome.REGRESSED, message, numbers)
