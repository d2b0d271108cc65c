"""Every op's kernels against the reference in higher precision, on fresh random inputs.

A case holds if the relative error is within tolerance, every defined element was written (outputs are poisoned), and a
second run gives the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu import correctness_pages
from benchmarks.gpu.cases import Maker, Shape, arguments, awkward_shapes, large_shapes
from benchmarks.gpu.entry import Entry
from benchmarks.gpu.machine import Machine, poisoned
from benchmarks.gpu.oracle import TOLERANCE, defined, deviation
from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import Choose, Stage, Tuning, best

HALVES = (torch.float16, torch.bfloat16)
TUNED = Shape(1000, 370, heads=8, kv_heads=2, head_dim=128)
"""Where every tuning of every stage is run."""
CHECKED = (*ops.OPS, *correctness_pages.OPS)
REHEARSED = Shape(37, 14, heads=2, kv_heads=1, head_dim=16, probes=5, batch=2, page_size=4)


def entries(machine: Machine) -> list[Entry]:
    if machine.rehearsal:
        return [_entry(machine, op, torch.float32, "rehearsed", [REHEARSED]) for op in CHECKED]
    plan: list[Entry] = []
    for dtype in HALVES:
        plan += [_entry(machine, op, dtype, "awkward", awkward_shapes(op)) for op in CHECKED]
        plan += [_entry(machine, op, dtype, "large", large_shapes(op)) for op in CHECKED]
    return plan + [_tunings(machine, op, dtype) for dtype in HALVES for op in CHECKED]


def warm(machine: Machine, share: int, shares: int) -> None:
    """Compile this share of what the entries launch, into Triton's cache; a failure is theirs to report."""
    for number, (op, shape, dtype, choose) in enumerate(_launches(machine)):
        if number % shares == share:
            with contextlib.suppress(Exception):
                ops.run_kernels(op, **arguments(op, shape, Maker(machine.device, dtype)), choose=choose)
            machine.synchronize()  # raises where the device is lost


def nth(n: int) -> Choose:
    """Every stage's nth tuning; a stage that has fewer starts over."""
    return lambda stage, tunings: tunings[n % len(tunings)]


def tunings_of(run: Callable[[Choose], Any]) -> dict[str, Sequence[Tuning]]:
    """The tunings that each stage of an op offers, by the stage's name; seen while `run` runs the op."""
    found: dict[str, Sequence[Tuning]] = {}

    def see(stage: Stage, tunings: Sequence[Tuning]) -> Tuning:
        found[stage.name] = tunings
        return best(stage, tunings)

    run(see)
    return found


def _launches(machine: Machine) -> Iterator[tuple[str, Shape, torch.dtype, Choose]]:
    """Everything that compiles to a kernel of its own; the number of tokens does not matter."""
    if machine.rehearsal:
        yield "gather_rows", REHEARSED, torch.float32, best
        return
    for dtype in HALVES:
        for op in ops.OPS:
            for shape in (*awkward_shapes(op), *large_shapes(op)):
                n = min(shape.n, 300)
                yield op, replace(shape, n=n, p=min(shape.p, n)), dtype, best
            for number in range(1, 6):
                yield op, replace(TUNED, n=300, p=111), dtype, nth(number)


def _entry(machine: Machine, op: str, dtype: torch.dtype, group: str, shapes: Sequence[Shape]) -> Entry:
    def run() -> dict[str, Any]:
        return _summary([(str(shape), _check(machine, op, shape, dtype, best)) for shape in shapes])

    return Entry(f"{op}/{_name(dtype)}/{group}", 12.0 if group == "large" else 6.0, run)


def _tunings(machine: Machine, op: str, dtype: torch.dtype) -> Entry:
    def run() -> dict[str, Any]:
        offered = tunings_of(lambda choose: _check(machine, op, TUNED, dtype, choose))
        most = max(map(len, offered.values()), default=1)
        return _summary(
            [(f"tuning {number}", _check(machine, op, TUNED, dtype, nth(number))) for number in range(most)]
        )

    return Entry(f"{op}/{_name(dtype)}/tunings", 6.0, run)


def _check(machine: Machine, op: str, shape: Shape, dtype: torch.dtype, choose: Choose) -> dict[str, Any]:
    """One case; an exception is a failure of this case alone, unless the device is lost by it."""
    make = Maker(machine.device, dtype)
    try:
        if op in correctness_pages.OPS:
            return correctness_pages.check(op, shape, make, choose)
        values = arguments(op, shape, make)
        with poisoned():
            results = [ops.run_kernels(op, **values, choose=choose) for _ in range(2)]
        error = deviation(op, values, results[0])
        first, second = (defined(op, values, result) for result in results)
        same = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
        return {"passed": error <= TOLERANCE[dtype] and same, "relative_error": error, "same_bits": same}
    except torch.cuda.OutOfMemoryError:
        return {"passed": True, "skipped": "OOM"}
    except Exception as error:
        machine.synchronize()  # raises once more where the device is lost
        return {"passed": False, "raised": f"{type(error).__name__}: {error}"[:500]}


def _summary(cases: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    errors = [case["relative_error"] for _, case in cases if "relative_error" in case]
    return {
        "passed": all(case["passed"] for _, case in cases),
        "cases": len(cases),
        "worst_error": max(errors, default=None),
        "failed": {name: case for name, case in cases if not case["passed"]},
        "skipped": [name for name, case in cases if "skipped" in case],
    }


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
