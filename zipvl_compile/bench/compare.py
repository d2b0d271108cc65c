"""Two results side by side."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from zipvl_compile.bench.results import QUANTITIES, Results
from zipvl_compile.bench.statistics import Estimate
from zipvl_compile.bench.tables import Table, at_text, number, scaled
from zipvl_serving.errors import InputError

_EACH_RUN = ("load_average",)
"""Parts of the environment that differ between any two runs."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pair(_Part):
    """One figure of one cell in both results."""

    mode: str
    at: dict[str, float | int | str]
    figure: str
    a: Estimate
    b: Estimate
    ratio: float | None
    """Median of b over that of a; None over nothing."""
    overlap: bool
    """Whether the two intervals share a value."""


class Comparison(_Part):
    """Every cell that both have, and what else differs. Not made in pairs, so it judges nothing: the gate does."""

    a: str
    b: str
    pairs: list[Pair]
    differs: list[str]
    """Names of settings, such as environment.processor."""


def compare(a: Results, b: Results) -> Comparison:
    """Put two results of one kind side by side; InputError where they share no cell."""
    if a.kind != b.kind:
        raise InputError(f"results of kinds {a.kind} and {b.kind} cannot be compared; give two of one kind")
    theirs = {(cell.mode, at_text(cell.at)): cell for cell in b.cells}
    pairs = []
    for cell in a.cells:
        other = theirs.get((cell.mode, at_text(cell.at)))
        for figure in cell.figures if other else ():
            if other is not None and figure in other.figures:
                pairs.append(_pair(cell.mode, cell.at, figure, cell.figures[figure], other.figures[figure]))
    if not pairs:
        raise InputError(f"{a.name} and {b.name} share no cell: no mode was measured at the same point in both")
    differs = [
        *_differences("environment", _kept(a.environment), _kept(b.environment)),
        *_differences("target", a.target.model_dump(), b.target.model_dump()),
        *_differences("workload", a.workload, b.workload),
    ]
    return Comparison(a=_name(a), b=_name(b), pairs=pairs, differs=differs)


def table(comparison: Comparison) -> Table:
    """The pairs as a table."""
    rows = []
    for pair in comparison.pairs:
        factor, unit = scaled(pair.figure)
        ratio = "" if pair.ratio is None else f"{pair.ratio:.3f}"
        rows.append(
            [
                at_text(pair.at),
                pair.mode,
                f"{QUANTITIES[pair.figure].label} ({unit})",
                *(number(value.median * factor) for value in (pair.a, pair.b)),
                ratio,
                "yes" if pair.overlap else "no",
            ]
        )
    return Table(
        f"A: {comparison.a}; B: {comparison.b}", ["at", "mode", "figure", "A", "B", "B / A", "intervals overlap"], rows
    )


def _pair(mode: str, at: dict[str, float | int | str], figure: str, a: Estimate, b: Estimate) -> Pair:
    return Pair(
        mode=mode,
        at=at,
        figure=figure,
        a=a,
        b=b,
        ratio=b.median / a.median if a.median else None,
        overlap=a.low <= b.high and b.low <= a.high,
    )


def _name(results: Results) -> str:
    return f"{results.name} on {results.target.name}, {results.created}"


def _kept(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name not in _EACH_RUN}


def _differences(name: str, a: Any, b: Any) -> list[str]:
    """Paths of the values that differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = list(dict.fromkeys([*a, *b]))
        return [path for key in names for path in _differences(f"{name}.{key}", a.get(key), b.get(key))]
    same = json.dumps(a, sort_keys=True, default=str) == json.dumps(b, sort_keys=True, default=str)
    return [] if same else [name]
