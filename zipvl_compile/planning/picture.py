"""The picture of a plan: maximum batch, throughput and TTFT against input length, a line per mode and ratio."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.planning.figures import Plan, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"dense": "#444444", "evict": "#33658a", "quantise": "#c8553d", "evict+quantise": "#588157"}
_DASHES = ("-", "--", ":", "-.")
_PANELS = (
    ("max_batch", "maximum batch, sequences"),
    ("decode_tokens_per_s", "decode, tokens/s"),
    ("ttft_s", "TTFT, s"),
)


def draw(plan: Plan, *paths: Path) -> None:
    """Write one figure to every path, whose suffix chooses the format. What is out of memory is not drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for axes, (field, label) in zip(panels, _PANELS, strict=True):
        _draw_panel(axes, plan, field)
        axes.set(xlabel="input tokens", ylabel=label)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(7, len(labels)), frameon=False, fontsize=9)
    figure.suptitle(f"{plan.recipe} on {plan.device.name}: predicted, not measured", fontsize=11)
    for path in paths:
        figure.savefig(path, dpi=110)


def _draw_panel(axes: Axes, plan: Plan, field: str) -> None:
    from matplotlib.ticker import LogFormatter

    ratios = sorted({mode.ratio for mode in plan.modes if mode.mode != "dense"})
    lengths = sorted({row.tokens for row in plan.rows})
    for mode in plan.modes:
        dense = mode.mode == "dense"
        rows = [row for row in plan.rows if (row.mode, row.ratio) == (mode.mode, mode.ratio) and row.max_batch]
        axes.plot(
            [row.tokens for row in rows],
            [_value(row, field) for row in rows],
            marker="o",
            markersize=4,
            color=_COLOURS[mode.mode],
            linestyle="-" if dense else _DASHES[ratios.index(mode.ratio) % len(_DASHES)],
            label="dense" if dense else f"{mode.mode} at {mode.ratio:g}",
        )
    axes.set_xscale("log", base=2)
    if any(row.max_batch for row in plan.rows):
        axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n // 1024}K" if n % 1024 == 0 else str(n) for n in lengths])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    axes.grid(alpha=0.3)


def _value(row: Row, field: str) -> float:
    return float(getattr(row, field))
