"""The planner against the throughput that the ZipVL paper publishes: LLaVA-Next-13B on one A100-80GB (Table 4)."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.plan_table4 import BEGIN, END, PAGE, gain, page_section, predict, published_gain, same_oom
from zipvl_compile.planning.stack import LEGACY_TRANSFORMERS, PAGED, Stack


def test_exactly_the_published_cells_are_out_of_memory() -> None:
    assert same_oom(predict(LEGACY_TRANSFORMERS))


@pytest.mark.parametrize("reserved", [0.065, 0.10, 0.15, 0.22])
def test_no_choice_within_what_the_oom_rows_allow_changes_them(reserved: float) -> None:
    assert same_oom(predict(dataclasses.replace(LEGACY_TRANSFORMERS, reserved=reserved)))


@pytest.mark.parametrize("reserved", [0.05, 0.25])
def test_the_oom_rows_bound_what_that_stack_leaves_unused(reserved: float) -> None:
    assert not same_oom(predict(dataclasses.replace(LEGACY_TRANSFORMERS, reserved=reserved)))


@pytest.mark.parametrize("n", [8192, 16384])
@pytest.mark.parametrize("stack", [LEGACY_TRANSFORMERS, PAGED], ids=lambda stack: stack.name)
def test_gains_within_15_percent(n: int, stack: Stack) -> None:
    assert gain(predict(stack)[n]) == pytest.approx(published_gain(n), rel=0.15)


def test_one_copy_of_the_cache_would_not_be_out_of_memory() -> None:
    """That the old cache lives until a step has ended is what the OOM rows show: with one copy, 32K tokens fit."""
    single = predict(dataclasses.replace(LEGACY_TRANSFORMERS, cache_copies=1))
    assert not same_oom(single) and single[32768]["dense"].batch == 1


def test_the_page_holds_what_the_command_prints() -> None:
    assert PAGE.read_text().split(BEGIN)[1].split(END)[0].strip() == page_section()
