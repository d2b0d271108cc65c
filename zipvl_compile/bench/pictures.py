"""What all pictures of results have in common: their title, their formats, and that equal results give equal files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zipvl_compile.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = ("png", "svg")
_DPI = 150


def canvas(width: float, height: float) -> Figure:
    """An empty figure; inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "zipvl"  # the names of its parts do not change from run to run
    return Figure(figsize=(width, height), layout="constrained")


def title(results: Results) -> str:
    """Of what, by which workload, and what random weights cannot show."""
    label = ", random weights: cost only" if results.target.weights == "random" else ""
    return f"{results.target.name}: {results.name}{label}"


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write `stem` with every suffix and return the files."""
    files = [stem.with_suffix(f".{suffix}") for suffix in SUFFIXES]
    for file in files:
        figure.savefig(file, dpi=_DPI, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
