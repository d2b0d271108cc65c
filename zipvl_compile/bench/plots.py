"""Results as pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.bench.pictures import SUFFIXES, canvas, save, title
from zipvl_compile.bench.results import QUANTITIES, Kind, Results
from zipvl_compile.bench.serving.plots import draw as draw_sweep
from zipvl_compile.bench.statistics import Estimate
from zipvl_compile.bench.tables import at_text, modes_of, points_of, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Draw = Callable[[Results], "Figure | None"]


@dataclass(frozen=True)
class Plot:
    """One picture: its file's name without a suffix, and what draws it (None: these results have nothing to draw)."""

    name: str
    draw: Draw


def draw_all(results: Results, folder: Path) -> list[Path]:
    """Write every picture that these results have something for into a folder, as PNG and SVG."""
    drawn = [(plot.name, plot.draw(results)) for plot in PLOTS[results.kind]]
    return [file for name, figure in drawn if figure is not None for file in save(figure, folder / name)]


def picture_names() -> set[str]:
    """Names of all files that any results may draw."""
    return {f"{plot.name}.{suffix}" for plots in PLOTS.values() for plot in plots for suffix in SUFFIXES}


def _lines(figure: str, *, gain: bool = False) -> Draw:
    """A figure against the workload's points, a line for each mode; as bars where there is but one point."""

    def draw(results: Results) -> Figure | None:
        found = _series(results, figure, gain=gain)
        if not any(found.values()):
            return None
        factor, unit = (1.0, f"over {results.baseline}") if gain else scaled(figure)
        drawing, axis = _canvas()
        points = points_of(results)
        axis_name = next(iter(points[0]))
        for at, (mode, estimates) in enumerate(found.items()):
            if not estimates:
                continue
            medians = [value.median * factor for _, value in estimates]
            spread = [
                [abs(value.median - value.low) * factor for _, value in estimates],
                [abs(value.high - value.median) * factor for _, value in estimates],
            ]
            color = _color(results, mode)
            if len(points) == 1:
                axis.bar(at, medians, yerr=spread, capsize=4, color=color, label=mode)
            else:
                places = [float(x) for x, _ in estimates]
                axis.errorbar(places, medians, yerr=spread, marker="o", capsize=3, color=color, label=mode)
        if len(points) == 1:
            axis.set_xticks([])
            axis.set_xlabel(at_text(points[0]))
        else:
            axis.set_xscale("log", base=2)
            places = sorted({float(point[axis_name]) for point in points})
            axis.set_xticks(places, [f"{place:g}" for place in places])
            axis.set_xlabel(axis_name)
        if gain:
            axis.axhline(1.0, color="0.5", linewidth=1, linestyle="--")
        elif len(points) > 1 and QUANTITIES[figure].unit == "s":
            _log_scale(axis)
        label = QUANTITIES[figure].label
        axis.set_ylabel(f"{label}: gain {unit}" if gain else f"{label} ({unit})")
        return _finish(drawing, axis, results)

    return draw


def _series(results: Results, figure: str, *, gain: bool) -> dict[str, list[tuple[float | int | str, Estimate]]]:
    """(x, estimate) of every mode, in the order of points."""
    found: dict[str, list[tuple[float | int | str, Estimate]]] = {mode: [] for mode in modes_of(results)}
    if gain:
        for ratio in results.ratios:
            if ratio.figure == figure:
                found[ratio.mode].append((next(iter(ratio.at.values())), ratio.gain))
    else:
        for cell in results.cells:
            if figure in cell.figures:
                found[cell.mode].append((next(iter(cell.at.values())), cell.figures[figure]))
    return found


def _ratio_per_layer(results: Results) -> Figure | None:
    cells = [c for c in results.cells if c.facts.get("ratio_per_layer") and min(c.facts["ratio_per_layer"]) < 1]
    if not cells:
        return None
    drawing, axis = _canvas()
    modes = modes_of(results)
    styles = ("-", "--", "-.", ":")
    for cell in cells:
        same = [c for c in cells if c.at == cell.at]
        ratios = cell.facts["ratio_per_layer"]
        shade = 0.35 + 0.65 * (points_of(results).index(cell.at) + 1) / len(points_of(results))
        axis.plot(
            range(len(ratios)),
            ratios,
            marker=".",
            alpha=shade,
            linestyle=styles[same.index(cell) % len(styles)],
            color=_color(results, cell.mode),
            label=f"{cell.mode}, {at_text(cell.at)}" if modes else None,
        )
    axis.set_ylim(0, 1.02)
    axis.set_xticks(range(max(len(cell.facts["ratio_per_layer"]) for cell in cells)))
    axis.set_xlabel("layer")
    axis.set_ylabel("share of tokens kept")
    return _finish(drawing, axis, results)


def _breakdown(results: Results) -> Figure | None:
    cells = [cell for cell in results.cells if cell.facts.get("breakdown")]
    if not cells:
        return None
    drawing, axis = _canvas(width=max(7.2, 0.6 * len(cells) + 4))
    bottoms = [0.0] * len(cells)
    parts = list(dict.fromkeys(part for cell in cells for part in cell.facts["breakdown"]))
    # Shares of the first mode's sum at the same point: bars of all lengths can be read, and are comparable in pairs.
    whole = {at_text(cell.at): sum(cell.facts["breakdown"].values()) for cell in reversed(cells)}
    for at, part in enumerate(parts):
        heights = [cell.facts["breakdown"].get(part, 0.0) / whole[at_text(cell.at)] for cell in cells]
        axis.bar(range(len(cells)), heights, bottom=bottoms, label=part, color=f"C{at}")
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    names = [f"{cell.mode}\n{at_text(cell.at)}" for cell in cells]
    axis.set_xticks(range(len(cells)), names, rotation=60, ha="right", fontsize="x-small")
    axis.set_ylabel(f"prefill, share of {cells[0].mode}'s")
    return _finish(drawing, axis, results)


def _log_scale(axis: Axes) -> None:
    """Plain numbers at 1, 2 and 5 of every decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _canvas(width: float = 7.2) -> tuple[Figure, Axes]:
    figure = canvas(width, 4.2)
    return figure, figure.add_subplot()


def _finish(figure: Figure, axis: Axes, results: Results) -> Figure:
    axis.grid(visible=True, axis="y", alpha=0.3)
    axis.set_axisbelow(True)
    figure.legend(loc="outside right upper", fontsize="small")
    axis.set_title(title(results), fontsize="medium")
    return figure


def _color(results: Results, mode: str) -> str:
    return f"C{modes_of(results).index(mode)}"


PLOTS: dict[Kind, tuple[Plot, ...]] = {
    "ttft": (
        Plot("ttft", _lines("ttft_s")),
        Plot("gain", _lines("ttft_s", gain=True)),
        Plot("ratio_per_layer", _ratio_per_layer),
        Plot("breakdown", _breakdown),
    ),
    "throughput": (
        Plot("throughput", _lines("tokens_per_s")),
        Plot("decode", _lines("decode_tokens_per_s")),
        Plot("gain", _lines("decode_tokens_per_s", gain=True)),
        Plot("max_batch", _lines("max_batch")),
        Plot("ratio_per_layer", _ratio_per_layer),
    ),
    "serving": (Plot("serving", draw_sweep),),
}
