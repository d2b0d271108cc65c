"""Every tuning of every stage, timed on the stage's own inputs: is the first one the best here?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu.cases import Maker, Shape, arguments
from benchmarks.gpu.correctness import REHEARSED, tunings_of
from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.micro_compute import half
from benchmarks.gpu.timing import copies, kernel_seconds
from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import Choose, Stage, Tuning

SHAPES = {
    "13B 4K": Shape(4096, 1516, 40, 40, 128, hidden=5120),
    "13B 16K": Shape(16384, 6062, 40, 40, 128, hidden=5120),
    "7B 16K": Shape(16384, 6062, 32, 8, 128, hidden=4096),
    "d 64 16K": Shape(16384, 6062, 28, 4, 64, hidden=1792),
}


def entries(machine: Machine) -> list[Entry]:
    shapes = {"rehearsed": REHEARSED} if machine.rehearsal else SHAPES
    names = ("gather_rows",) if machine.rehearsal else ops.OPS

    def entry(op: str, name: str, shape: Shape) -> Entry:
        return Entry(f"{op}/{name}", 20.0, lambda: _tune(machine, op, shape))

    return [entry(op, name, shape) for name, shape in shapes.items() for op in names]


def _tune(machine: Machine, op: str, shape: Shape) -> dict[str, Any]:
    """Per stage, microseconds of the whole op with that stage's tunings in turn and the others' first."""
    make = Maker(machine.device, half(machine))
    sets = copies(lambda: tuple(arguments(op, shape, make).values()), most=4)
    offered = tunings_of(lambda choose: ops.run_kernels(op, *sets[0], choose=choose))
    figures: dict[str, Any] = {}
    for stage, tunings in offered.items():
        seconds: dict[str, float] = {}
        failed: dict[str, str] = {}
        for number, tuning in enumerate(tunings):
            choose = _only(stage, number)
            arm = (lambda *values, choose=choose: ops.run_kernels(op, *values, choose=choose), sets)
            try:
                seconds |= kernel_seconds(machine, {describe(tuning): arm})
            except Exception as error:
                machine.synchronize()  # raises once more where the device is lost
                failed[describe(tuning)] = f"{type(error).__name__}: {error}"[:200]
        figures[stage] = {
            "us": {name: round(taken * 1e6, 1) for name, taken in seconds.items()},
            "best": min(seconds, key=seconds.__getitem__, default=None),
            "first": describe(tunings[0]),
            "failed": failed,
        }
    return figures


def describe(tuning: Tuning) -> str:
    """BLOCK_ROWS 128, BLOCK_COLUMNS 64, 8 warps, 3 stages."""
    blocks = ", ".join(f"{name} {size}" for name, size in tuning.blocks.items())
    return f"{blocks}, {tuning.warps} warps, {tuning.stages} stages"


def _only(name: str, number: int) -> Choose:
    """The given tuning in one stage, the first in all others."""

    def choose(stage: Stage, tunings: Sequence[Tuning]) -> Tuning:
        return tunings[number] if stage.name == name else tunings[0]

    return choose
