"""Results as tables: the same for Markdown and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zipvl_compile.bench.results import QUANTITIES, Cell, Results
from zipvl_compile.bench.statistics import FEWEST_FOR_INTERVAL, Estimate
from zipvl_compile.bench.workload import Mode

DENSE = Mode(kind="dense").name


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]


def tables(results: Results) -> list[Table]:
    """Figures, gains over the baseline, then what was learnt beside them."""
    figures = [name for name in QUANTITIES if any(name in cell.figures for cell in results.cells)]
    found = [_figure(results, name) for name in figures]
    found += [table for name in figures if (table := _gain(results, name)).rows]
    found += [table for make in _FACTS for table in make(results) if table.rows]
    return found


def number(value: float) -> str:
    """Four significant digits, never an exponent."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}" if abs(value) >= 1 else f"{value:.4g}"


def scaled(figure: str) -> tuple[float, str]:
    """Factor and unit in which a figure is shown: milliseconds for seconds."""
    unit = QUANTITIES[figure].unit
    return (1000.0, "ms") if unit == "s" else (1.0, unit)


def at_text(at: Mapping[str, float | int | str]) -> str:
    return ", ".join(f"{value} {name}" for name, value in at.items())


def modes_of(results: Results) -> list[str]:
    """In the order of the workload."""
    return list(dict.fromkeys(cell.mode for cell in results.cells))


def points_of(results: Results) -> list[dict[str, float | int | str]]:
    """Every point once, in the order of the workload."""
    return list({at_text(cell.at): cell.at for cell in results.cells}.values())


def _figure(results: Results, name: str) -> Table:
    factor, unit = scaled(name)

    def show(cell: Cell) -> str:
        return _estimate(cell.figures[name], factor, len(cell.samples[name])) if name in cell.figures else ""

    return _grid(results, f"{QUANTITIES[name].label} ({unit})", modes_of(results), show)


def _gain(results: Results, name: str) -> Table:
    gains = {(ratio.mode, at_text(ratio.at)): ratio.gain for ratio in results.ratios if ratio.figure == name}

    def show(cell: Cell) -> str:
        gain = gains.get((cell.mode, at_text(cell.at)))
        return _estimate(gain, 1.0, len(cell.samples[name])) if gain else ""

    modes = [mode for mode in modes_of(results) if any(mode == gained for gained, _ in gains)]
    table = _grid(results, f"{QUANTITIES[name].label}: gain over {results.baseline} (above 1 is better)", modes, show)
    return table if gains else replace(table, rows=[])


def _grid(results: Results, title: str, modes: list[str], show: Callable[[Cell], str]) -> Table:
    cells = {(cell.mode, at_text(cell.at)): cell for cell in results.cells}
    rows = [
        [at_text(at), *(show(cells[mode, at_text(at)]) if (mode, at_text(at)) in cells else "" for mode in modes)]
        for at in points_of(results)
    ]
    return Table(title, ["at", *modes], rows)


def _estimate(value: Estimate, factor: float, samples: int) -> str:
    """`median [low, high]`; ` of n` where n samples are too few for an interval and the two are their range."""
    median, low, high = (number(part * factor) for part in (value.median, value.low, value.high))
    if low == high:
        return median
    return f"{median} [{low}, {high}]{_of(samples)}"


def _of(samples: int) -> str:
    return f" of {samples}" if samples < FEWEST_FOR_INTERVAL else ""


# --- facts -----------------------------------------------------------------------------------------------------------


def _kept(results: Results) -> Iterator[Table]:
    rows = []
    for cell in results.cells:
        ratios = cell.facts.get("ratio_per_layer")
        if ratios:
            mean = f"{sum(ratios) / len(ratios):.3f}"
            dense = "" if cell.mode == DENSE else _ran_dense(cell)
            layers = " ".join(f"{ratio:.2f}" for ratio in ratios)
            rows.append(
                [at_text(cell.at), cell.mode + dense, mean, layers, number(cell.facts.get("kv_bytes", 0) / 1024)]
            )
    yield Table("Kept tokens", ["at", "mode", "mean ratio", "ratio per layer", "KV of a prompt (KiB)"], rows)


def _ran_dense(cell: Cell) -> str:
    """Of a request: whether. Of a serving cell: how many of them."""
    share = cell.facts.get("dense_share", float(cell.facts.get("dense", False)))
    return "" if not share else " (ran dense)" if share == 1 else f" ({share:.0%} ran dense)"


def _breakdown(results: Results) -> Iterator[Table]:
    """Medians of interleaved profiled runs; the last column pairs selection with the baseline's whole prefill."""
    cells = [cell for cell in results.cells if cell.facts.get("breakdown")]
    parts = list(dict.fromkeys(part for cell in cells for part in cell.facts["breakdown"]))
    rows = []
    for cell in cells:
        seconds: dict[str, float] = cell.facts["breakdown"]
        total = sum(seconds.values())
        shown = [f"{number(seconds.get(p, 0) * 1000)} ({seconds.get(p, 0) / total:.1%})" for p in parts]
        share = cell.facts.get("selection_over_baseline")
        over = ""
        if share and share["median"]:
            runs = len(next(iter(cell.facts["breakdown_samples"].values())))
            over = f"{share['median']:.2%} [{share['low']:.2%}, {share['high']:.2%}]{_of(runs)}"
        rows.append([at_text(cell.at), cell.mode, *shown, number(total * 1000), over])
    columns = ["at", "mode", *parts, "sum", f"selection / {results.baseline}"]
    yield Table("Latency breakdown of a profiled prefill (ms, share)", columns, rows)


def _accuracy(results: Results) -> Iterator[Table]:
    rows = [
        [at_text(cell.at), cell.mode, task, f"{s['exact']:.3f}", f"{s['content']:.3f}", str(s["questions"])]
        for cell in results.cells
        for task, s in cell.facts.get("accuracy", {}).items()
    ]
    yield Table("Accuracy", ["at", "mode", "task", "exact", "content", "questions"], rows)


def _admission(results: Results) -> Iterator[Table]:
    names = {
        "pages": "pages",
        "pages_reserved": "claimed",
        "page_high_water": "most in use",
        "stopped_by": "stopped by",
    }
    rows = [
        [at_text(cell.at), cell.mode, *(str(cell.facts[name]) for name in names)]
        for cell in results.cells
        if "pages_reserved" in cell.facts
    ]
    yield Table("Admission", ["at", "mode", *names.values()], rows)


def _requests(results: Results) -> Iterator[Table]:
    """Of a serving sweep: what became of every request; latencies are of those without an error."""
    cells = [cell for cell in results.cells if "requests" in cell.facts]
    limited = any("slo_attainment" in cell.facts for cell in cells)
    rows = []
    for cell in cells:
        errors = ", ".join(f"{count} {kind}" for kind, count in cell.facts["errors"].items()) or "none"
        row = [at_text(cell.at), cell.mode, str(cell.facts["requests"]), errors, str(cell.facts["requests_delayed"])]
        rows.append([*row, f"{cell.facts['slo_attainment']:.1%}"] if limited else row)
    columns = ["at", "mode", "requests", "errors", "answers delayed", *(["within SLO"] if limited else [])]
    yield Table("Requests", columns, rows)


def _percentiles(results: Results) -> Iterator[Table]:
    """facts.percentiles: {figure: {p50: ...}}, of every request."""
    cells = [cell for cell in results.cells if cell.facts.get("percentiles")]
    for figure in dict.fromkeys(name for cell in cells for name in cell.facts["percentiles"]):
        factor, unit = (1000.0, "ms") if figure.endswith("_s") else (1.0, "")
        found = [(cell, cell.facts["percentiles"].get(figure, {})) for cell in cells]
        points = list(dict.fromkeys(point for _, values in found for point in values))
        rows = [[at_text(c.at), c.mode, *(number(v[p] * factor) if p in v else "" for p in points)] for c, v in found]
        label = QUANTITIES[figure].label if figure in QUANTITIES else figure.removesuffix("_s")
        yield Table(f"{label}, percentiles ({unit})", ["at", "mode", *points], rows)


_FACTS: tuple[Callable[[Results], Iterator[Table]], ...] = (
    _requests,
    _percentiles,
    _kept,
    _accuracy,
    _breakdown,
    _admission,
)


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The fingerprint as names and values."""
    rows = []
    for name, value in environment.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {part}" for key, part in value.items())  # noqa: PLW2901
        rows.append((name, str(value)))
    return rows
