"""When a ratio of times is a regression, when it is none, and when the samples cannot tell."""

from __future__ import annotations

from zipvl_compile.bench.statistics import Estimate
from zipvl_compile.gate.report import Outcome


def judge(ratio: Estimate, tolerance: float) -> Outcome:
    """The outcome of a ratio of times, new over old.

    Regressed: the median lies above 1 + tolerance, and the interval's lower bound above 1. Inconclusive: it did not
    regress, yet the interval's upper bound lies above 1 + tolerance, so a slowdown of the tolerance is not excluded.
    Passed: such a slowdown is excluded.
    """
    if ratio.median > 1 + tolerance and ratio.low > 1:
        return Outcome.REGRESSED
    return Outcome.INCONCLUSIVE if ratio.high > 1 + tolerance else Outcome.PASSED


def judge_guard(ratio: Estimate, tolerance: float) -> Outcome:
    """The outcome of a ratio that only stands guard: regressed where the whole interval lies above 1 + tolerance."""
    return Outcome.REGRESSED if ratio.low > 1 + tolerance else Outcome.PASSED


def describe(ratio: Estimate, tolerance: float) -> str:
    """`1.093 of the base [1.071, 1.117], tolerance 1.050`."""
    return f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}], tolerance {1 + tolerance:.3f}"
