"""Throughput, goodput and latencies against the load, a line per mode."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.bench.results import QUANTITIES, Cell, Results
from zipvl_compile.bench.tables import modes_of, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
_AXES = {"concurrency": "requests in flight", "rate": "requests a second, offered"}
_RATES = ("tokens_per_s", "goodput_per_s")
_LATENCIES = ("ttft_s", "itl_s")
_TAILS = {"p50": "-", "p99": ":"}
_DPI = 150


def draw(results: Results, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg and return them; figures that the results lack have no panel."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "zipvl"  # the names of its parts do not change from run to run
    panels = [name for name in (*_RATES, *_LATENCIES) if any(name in cell.figures for cell in results.cells)]
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure = Figure(figsize=(5.2 * columns, 3.6 * rows), layout="constrained")
    for at, name in enumerate(panels, 1):
        _panel(figure.add_subplot(rows, columns, at), results, name)
    figure.suptitle(f"{results.target.name}: {results.name}", fontsize="medium")
    files = [stem.with_suffix(f".{suffix}") for suffix in FORMATS]
    for file in files:
        figure.savefig(file, dpi=_DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _panel(axes: Axes, results: Results, name: str) -> None:
    """Rates with their intervals; latencies at p50 (solid) and p99 (dotted) over all requests."""
    load = next(iter(results.cells[0].at))
    factor, unit = scaled(name)
    for number, mode in enumerate(modes_of(results)):
        cells = [cell for cell in results.cells if cell.mode == mode and name in cell.figures]
        places, color = [float(cell.at[load]) for cell in cells], f"C{number}"
        if name in _RATES:
            axes.plot(places, [cell.figures[name].median for cell in cells], color=color, marker="o", label=mode)
            lows, highs = ([getattr(cell.figures[name], end) for cell in cells] for end in ("low", "high"))
            axes.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0)
            continue
        for tail, style in _TAILS.items():
            values = [factor * _percentile(cell, name, tail) for cell in cells]
            axes.plot(places, values, color=color, marker="o", linestyle=style, label=f"{mode}, {tail}")
    axes.set_xscale("log", base=2)
    ticks = sorted({float(cell.at[load]) for cell in results.cells})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(_AXES.get(load, load))
    axes.set_ylabel(f"{QUANTITIES[name].label} ({unit})")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize="small")


def _percentile(cell: Cell, name: str, tail: str) -> float:
    return float(cell.facts["percentiles"][name][tail])
