"""What a stage consists of."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from benchmarks.gpu.machine import Machine

Size = TypeVar("Size")


@dataclass(frozen=True)
class Entry:
    """One figure or a few that belong together; entries stand in order of their worth."""

    key: str
    expected_s: float
    """Predicted duration, compilation included; the entry does not begin where less time is left."""
    run: Callable[[], dict[str, Any]]
    """The figures, as JSON. `passed: False` says that a check failed."""


def by_size(
    machine: Machine, sizes: Iterable[Size], run: Callable[[Size], dict[str, Any]], name: Callable[[Size], str] = str
) -> dict[str, Any]:
    """Figures of every size; {"oom": True} where a size does not fit into the device's memory."""
    figures: dict[str, Any] = {}
    for size in sizes:
        try:
            figures[name(size)] = run(size)
        except torch.cuda.OutOfMemoryError:
            figures[name(size)] = {"oom": True}
            gc.collect()
            machine.free_memory()
    return figures
