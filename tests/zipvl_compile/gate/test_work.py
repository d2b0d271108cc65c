"""Times of different work are not compared: what is refused, and what is said."""

from __future__ import annotations

from functools import partial

import pytest
from helpers.bundles import refusal
from helpers.gate import FakeSampler, both

from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.paired import Plan, compare
from zipvl_compile.gate.work import prepare
from zipvl_serving.errors import InputError

PLAN = Plan(("ttft",), (7,), rounds=6)


@pytest.mark.parametrize(("seconds", "runs"), [(1.0, 1), (0.02, 1), (0.005, 4), (1e-6, 16)])
def test_a_sample_is_long_enough_to_time(seconds: float, runs: int) -> None:
    (prompt,) = prepare({"base": FakeSampler(1e-6), "head": FakeSampler(seconds)}, [7])
    assert (prompt.length, prompt.tokens, prompt.runs, prompt.notes) == (7, 7, runs, [])


def test_sides_that_run_other_tokens_are_not_compared() -> None:
    longer = FakeSampler(tokens=lambda length: length + 2)
    with refusal(GateError, "7 on base and 9 on head", "not of the same work"):
        compare(both(FakeSampler(), longer), PLAN)


def test_lengths_that_come_to_one_prompt_are_refused() -> None:
    framed = partial(FakeSampler, tokens=lambda length: 40 * (length // 40))
    with refusal(InputError, "--lengths: 250 and 256", "240 tokens"):
        prepare({"base": framed(), "head": framed()}, [100, 250, 256])


def test_other_selections_and_answers_are_said() -> None:
    report = compare(both(FakeSampler(), FakeSampler(kept=(5, 6), text="a 1")), PLAN)
    assert report.exit_code == 0
    assert report.notes == [
        "of 7 tokens, layers keep [5, 7] on base and [5, 6] on head: their times are of different selections",
        "to 7 tokens, base answers 'a 7' and head 'a 1'",
    ]
