"""What a gate found, figure by figure; its exit code follows from the worst of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from zipvl_compile.gate.errors import BASELINE_MISSING, ENVIRONMENT, INCONCLUSIVE, PASS, REGRESSION


class Outcome(StrEnum):
    """Of one figure."""

    PASSED = "passed"
    REGRESSED = "regressed"
    INCONCLUSIVE = "inconclusive"
    MISSING = "missing"
    BROKEN = "broken"
    """No figure: a gate that could not be run, where others were."""


_BY_WEIGHT = (
    (Outcome.REGRESSED, REGRESSION),
    (Outcome.BROKEN, ENVIRONMENT),
    (Outcome.INCONCLUSIVE, INCONCLUSIVE),
    (Outcome.MISSING, BASELINE_MISSING),
)


@dataclass(frozen=True)
class Case:
    """One figure under one gate.

    section: `deterministic`, `paired` or `baseline`.
    message: one line with the numbers that decided.
    numbers: the same for machines, raw samples included.
    """

    section: str
    figure: str
    outcome: Outcome
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """Everything that one command of the gate judged."""

    cases: list[Case] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a reader must know to read the verdicts right."""
    context: dict[str, str] = field(default_factory=dict)
    """The revisions, the baselines, the settings: for people."""
    environment: dict[str, Any] = field(default_factory=dict)
    """The fingerprint (bench/fingerprint.py): for machines."""

    @property
    def exit_code(self) -> int:
        """Of the worst outcome: a regression outweighs what is broken, that what is undecided or has no baseline."""
        return dict(_BY_WEIGHT).get(self.worst, PASS)

    @property
    def worst(self) -> Outcome:
        """That of all cases which weighs most."""
        found = {case.outcome for case in self.cases}
        return next((outcome for outcome, _ in _BY_WEIGHT if outcome in found), Outcome.PASSED)

    def count(self, outcome: Outcome) -> int:
        return sum(case.outcome is outcome for case in self.cases)

    @property
    def sections(self) -> dict[str, list[Case]]:
        """Cases by section, in the order in which they ran."""
        grouped: dict[str, list[Case]] = {}
        for case in self.cases:
            grouped.setdefault(case.section, []).append(case)
        return grouped

    def merge(self, other: Report) -> None:
        """Add what another gate found."""
        self.cases += other.cases
        self.notes += [note for note in other.notes if note not in self.notes]
        self.context |= other.context
        self.environment |= other.environment

    def headline(self) -> str:
        """One line: `regressed: 1 of 40 figures (2 inconclusive)`."""
        counts = {outcome: self.count(outcome) for outcome in Outcome}
        rest = ", ".join(f"{n} {o}" for o, n in counts.items() if n and o not in (self.worst, Outcome.PASSED))
        return f"{self.worst}: {counts[self.worst]} of {len(self.cases)} figures" + (f" ({rest})" if rest else "")
