"""Throughput, goodput and latencies against the load, a line per mode."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zipvl_compile.bench.pictures import canvas, title
from zipvl_compile.bench.results import QUANTITIES, Cell, Results
from zipvl_compile.bench.tables import modes_of, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {"concurrency": "requests in flight", "rate": "requests a second, offered"}
_RATES = ("tokens_per_s", "goodput_per_s")
_LATENCIES = ("ttft_s", "itl_s")
_TAILS = {"p50": "-", "p99": ":"}


def draw(results: Results) -> Figure | None:
    """A panel for each figure that the results have."""
    panels = [name for name in _RATES if any(name in cell.figures for cell in results.cells)]
    panels += [name for name in _LATENCIES if any(name in _percentiles(cell) for cell in results.cells)]
    if not panels:
        return None
    rows, columns = -(-len(panels) // 2), min(len(panels), 2)
    figure = canvas(5.2 * columns, 3.6 * rows)
    for at, name in enumerate(panels, 1):
        _panel(figure.add_subplot(rows, columns, at), results, name)
    figure.suptitle(title(results), fontsize="medium")
    return figure


def _panel(axes: Axes, results: Results, name: str) -> None:
    """Rates with their intervals; latencies at p50 (solid) and p99 (dotted) over all requests."""
    load = next(iter(results.cells[0].at))
    factor, unit = scaled(name)
    for number, mode in enumerate(modes_of(results)):
        of_mode, color = [cell for cell in results.cells if cell.mode == mode], f"C{number}"
        if name in _RATES:
            cells = [cell for cell in of_mode if name in cell.figures]
            places = [float(cell.at[load]) for cell in cells]
            axes.plot(places, [cell.figures[name].median for cell in cells], color=color, marker="o", label=mode)
            lows, highs = ([getattr(cell.figures[name], end) for cell in cells] for end in ("low", "high"))
            axes.fill_between(places, lows, highs, color=color, alpha=0.15, linewidth=0)
            continue
        cells = [cell for cell in of_mode if name in _percentiles(cell)]
        places = [float(cell.at[load]) for cell in cells]
        for tail, style in _TAILS.items():
            values = [factor * _percentiles(cell)[name][tail] for cell in cells]
            axes.plot(places, values, color=color, marker="o", linestyle=style, label=f"{mode}, {tail}")
    axes.set_xscale("log", base=2)
    ticks = sorted({float(cell.at[load]) for cell in results.cells})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(_AXES.get(load, load))
    axes.set_ylabel(f"{QUANTITIES[name].label} ({unit})")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, axis="y", alpha=0.3)
    axes.legend(fontsize="small")


def _percentiles(cell: Cell) -> dict[str, dict[str, float]]:
    """By figure, over all requests."""
    found: dict[str, dict[str, float]] = cell.facts.get("percentiles", {})
    return found
