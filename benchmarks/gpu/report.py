"""The suite's figures as one Markdown page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.gpu.goals import rows as goal_rows
from benchmarks.gpu.ledger import read_left, read_stage

Entries = dict[str, dict[str, Any]]
NOTES = ("took_s", "seed")
"""What the worker adds to every entry."""


class Tally(NamedTuple):
    """Numbers of entries."""

    stored: int
    failed: int
    """A check of theirs failed, or they could not be measured."""
    left: int
    """Did not fit into the call."""


def write_report(folder: Path, stages: Sequence[str]) -> Tally:
    """Write report.md from what the stages stored."""
    stored = {stage: data for stage in stages if (data := read_stage(folder, stage)) is not None}
    left = read_left(folder)
    bad = [
        f"{stage}: {key}: {entry.get('error', 'failed')}"
        for stage, data in stored.items()
        for key, entry in data["entries"].items()
        if "error" in entry or entry.get("passed") is False
    ]
    prints = [data["fingerprint"] for data in stored.values()]
    head = prints[0] if prints else {"machine": "no machine", "torch": "?", "sources": "?", "rehearsal": False}
    lines = [f"# GPU suite: {head['machine']}", ""]
    if head["rehearsal"]:
        lines += ["**Rehearsal on a CPU, in Triton's interpreter: every time below is meaningless.**", ""]
    lines += [f"torch {head['torch']}, sources {head['sources']}.", ""]
    lines += [f"- FAILED {line}" for line in bad] + [f"- not measured yet: {line}" for line in left]
    goals = goal_rows({stage: data["entries"] for stage, data in stored.items()})
    if goals and not head["rehearsal"]:
        lines += ["", "## Goals", "", *table(("goal", "wanted", "measured", "met"), goals)]
    for stage, data in stored.items():
        measured = {key: entry for key, entry in data["entries"].items() if "error" not in entry}
        lines += ["", f"## {stage.capitalize()}", "", *_SECTIONS[stage](measured)]
    (folder / "report.md").write_text("\n".join(lines) + "\n")
    return Tally(sum(len(data["entries"]) for data in stored.values()), len(bad), len(left))


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """A Markdown table; None is an empty cell."""
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in ([list(header), *texts])]
    return [lines[0], "|" + "---|" * len(header), *lines[1:], ""]


def _environment(entries: Entries) -> list[str]:
    figures = [pair for entry in entries.values() for pair in entry.items()]
    return table(("", ""), (pair for pair in figures if pair[0] not in NOTES))


def _correctness(entries: Entries) -> list[str]:
    rows = (
        (key, entry["cases"], _figure(entry["worst_error"]), "yes" if entry["passed"] else "NO", _failures(entry))
        for key, entry in entries.items()
        if "cases" in entry
    )
    return table(("op, dtype, shapes", "cases", "worst relative error", "passed", "what failed"), rows)


def _failures(entry: dict[str, Any]) -> str:
    told = [
        f"{name}: {case['raised']}"
        if "raised" in case
        else f"{name}: relative error {case['relative_error']:.1e}, same bits: {case['same_bits']}"
        for name, case in entry["failed"].items()
    ]
    return "; ".join(told).replace("|", "\\|").replace("\n", " ")[:500]


def _micro(entries: Entries) -> list[str]:
    lines: list[str] = []
    for key, entry in entries.items():
        cases = {size: figures for size, figures in entry.items() if isinstance(figures, dict)}
        lines += [f"### {key}", ""]
        lines += table(("", *_columns(cases)), ((size, *_cells(figures, cases)) for size, figures in cases.items()))
    return lines


def _columns(cases: Entries) -> list[str]:
    """Every figure of the first case: `us: ours`, `tflops: ours`, ..., `share`."""
    first = next(iter(cases.values()), {})
    return [
        f"{figure}: {arm}" if arm else figure
        for figure, values in first.items()
        for arm in (values if isinstance(values, dict) else [""])
    ]


def _cells(figures: dict[str, Any], cases: Entries) -> list[Any]:
    cells = []
    for column in _columns(cases):
        figure, _, arm = column.partition(": ")
        value = figures.get(figure)
        cells.append(value.get(arm) if isinstance(value, dict) else value)
    return cells


def _each(entries: Entries, lines_of: Callable[[str, dict[str, Any]], list[str]]) -> list[str]:
    """The lines of every entry, one after another; of one that ran out of memory, that."""
    return [
        line
        for key, entry in entries.items()
        for line in ([f"{key}: OOM", ""] if "oom" in entry else lines_of(key, entry))
    ]


def _prefill(entries: Entries) -> list[str]:
    def lines_of(key: str, entry: dict[str, Any]) -> list[str]:
        rows = (
            (
                arm,
                taken,
                *(over.get(arm) for over in entry["speedup_over"].values()),
                entry["predicted_s"].get(arm.split(",")[0]),
                entry["peak_gib"].get(arm),
            )
            for arm, taken in entry["ttft_s"].items()
        )
        over = [f"over {attention}" for attention in entry["speedup_over"]]
        title = f"### {key}, {entry['dtype']}, medians of {entry['rounds']}"
        return [title, "", *table(("", "TTFT s", *over, "predicted s", "peak GiB"), rows)]

    return _each(entries, lines_of)


def _decode(entries: Entries) -> list[str]:
    def lines_of(key: str, entry: dict[str, Any]) -> list[str]:
        rows = (
            (mode, arm["rows"], batch, rate, arm["predicted"][batch])
            for mode, arm in entry.items()
            if isinstance(arm, dict)
            for batch, rate in arm["tokens_per_s"].items()
        )
        title = f"### {key}, {entry['budget_gib']} GiB of KV: {entry['gain']}x at the most sequences"
        return [title, "", *table(("cache", "rows a sequence", "batch", "tokens/s", "predicted"), rows)]

    return _each(entries, lines_of)


def _tune(entries: Entries) -> list[str]:
    rows = (
        (key, stage, *_timed(figures, figures["best"]), *_timed(figures, figures["first"]))
        for key, entry in entries.items()
        for stage, figures in entry.items()
        if isinstance(figures, dict)
    )
    return table(("op, shape", "kernel", "best tuning", "us of the op", "first tuning", "us of the op"), rows)


def _timed(figures: dict[str, Any], tuning: str | None) -> tuple[str | None, float | None]:
    return tuning, figures["us"].get(tuning)


def _figure(value: float | None) -> str | None:
    return None if value is None else f"{value:.1e}"


_SECTIONS: dict[str, Callable[[Entries], list[str]]] = {
    "environment": _environment,
    "correctness": _correctness,
    "micro": _micro,
    "prefill": _prefill,
    "decode": _decode,
    "tune": _tune,
}
