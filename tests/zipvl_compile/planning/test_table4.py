"""What `plan` says of LLaVA-Next-13B on one A100-80GB against the throughput in Table 4 of the ZipVL paper."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.plan_table4 import METHODS, PUBLISHED, SECTION, Cells, gain, page_section, predict, published_gain
from zipvl_compile.planning import planner
from zipvl_compile.planning.stack import stack_of


def _same_as_published(cells: Cells) -> bool:
    """Whether exactly the published cells are out of memory, and both gains are within 15 %."""
    same = all((cells[n][mode].max_batch == 0) == (PUBLISHED[n][mode] is None) for n in PUBLISHED for mode in METHODS)
    return same and all(abs(gain(cells[n]) / published_gain(n) - 1) <= 0.15 for n in (8192, 16384))


def test_rows_out_of_memory_and_gains() -> None:
    cells = predict()
    assert _same_as_published(cells)
    assert {row.bounded_by for modes in cells.values() for row in modes.values()} == {"memory"}


@pytest.mark.parametrize(("reserved", "same"), [(0.05, True), (0.12, True), (0.15, False)])
def test_memory_that_is_left_unused(reserved: float, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = dataclasses.replace(stack_of("torch", on_cpu=False), reserved=reserved)
    monkeypatch.setattr(planner, "stack_of", lambda *_, **__: stack)
    assert _same_as_published(predict()) == same


def test_the_page_holds_what_the_program_prints() -> None:
    assert SECTION.read() == page_section()
