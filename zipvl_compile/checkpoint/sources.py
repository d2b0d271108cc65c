"""The kinds of weights that a recipe may ask for, and how the source of each is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from zipvl_compile.checkpoint.base import Source
from zipvl_compile.checkpoint.random_weights import RandomSource
from zipvl_compile.checkpoint.reader import Checkpoint

_OPEN: dict[str, Callable[[str | Path, str | None], Source]] = {
    "checkpoint": Checkpoint.open,
    "random": RandomSource.open,
}


def open_source(source: str | Path, revision: str | None, weights: Literal["checkpoint", "random"]) -> Source:
    """Open what `model.source` names, with the weights that `model.weights` asks for; see each kind's `open`."""
    return _OPEN[weights](source, revision)
