"""Two samplers side by side: who is asked when, for how long, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
from helpers.bundles import refusal
from helpers.gate import FakeSampler, both

from benchmarks.gate_noise import Machine, SimulatedSampler
from zipvl_compile.gate import self_test
from zipvl_compile.gate.paired import Plan, compare
from zipvl_compile.gate.process import Runs, Sampler
from zipvl_compile.gate.report import Outcome
from zipvl_serving.errors import InputError

TTFT = Plan(("ttft",), (7,), rounds=6, max_rounds=40)


class Logged(FakeSampler):
    """Writes who was asked into a log that both sides share."""

    def __init__(self, name: str, log: list[str], seconds: float = 1.0) -> None:
        super().__init__(seconds)
        self.name, self.log = name, log

    def runs(self, length: int, count: int) -> Runs:
        self.log.append(f"{self.name}{length}")
        return super().runs(length, count)


def test_pairs_stand_side_by_side_in_abba_order() -> None:
    log: list[str] = []
    plan = Plan(lengths=(1, 2), rounds=6, max_rounds=12)
    compare(both(Logged("A", log), Logged("B", log)), plan)
    rounds = [log[at : at + 4] for at in range(len(log) - 24, len(log), 4)]
    assert rounds[0::2] == [["A1", "B1", "A2", "B2"]] * 3
    assert rounds[1::2] == [["B2", "A2", "B1", "A1"]] * 3


def test_equal_sides_pass_and_keep_their_samples() -> None:
    (case,) = compare(both(FakeSampler(0.05, cpu=0.02), FakeSampler(0.05, cpu=0.02)), TTFT).cases
    assert (case.section, case.figure, case.outcome) == ("paired", "ttft at 7 tokens", Outcome.PASSED)
    assert case.numbers["base_s"] == case.numbers["head_s"] == {"wall": [0.05] * 6, "cpu": [0.02] * 6}
    assert "head over base 1.000" in case.message and "6 pairs" in case.message


def test_points_are_named_by_the_tokens_of_the_prompt() -> None:
    shorter = partial(FakeSampler, 0.05, tokens=lambda length: length - 1)
    assert [case.figure for case in compare(both(shorter(), shorter()), TTFT).cases] == ["ttft at 6 tokens"]


def test_a_regression_must_be_seen_twice_by_processes_of_their_own() -> None:
    started: list[str] = []

    @contextmanager
    def sides() -> Iterator[tuple[Sampler, Sampler]]:
        started.append("both")
        yield FakeSampler(0.05), FakeSampler(0.06)

    (case,) = compare(sides, TTFT).cases
    assert case.outcome is Outcome.REGRESSED
    assert len(case.numbers["base_s"]["wall"]) == 12
    assert len(started) == 2


def test_a_regression_that_the_last_look_is_the_first_to_see_is_none_yet() -> None:
    levels = iter([(0.05, 0.0505), (0.05, 0.0505), (0.05, 0.09)])
    noise = Machine(0, drift=0.0, jitter=0.02)

    def sides() -> nullcontext[tuple[Sampler, Sampler]]:
        base, head = next(levels)
        return nullcontext((SimulatedSampler(base, noise), SimulatedSampler(head, noise)))

    (case,) = compare(sides, Plan(("ttft",), (7,), tolerance=0.01, rounds=6, max_rounds=24)).cases
    assert case.outcome is Outcome.INCONCLUSIVE
    assert case.numbers["ratio"]["low"] > 1 and case.numbers["ratio"]["median"] > 1.01
    assert "unconfirmed" in case.message


def test_only_the_figure_that_is_slower_regresses() -> None:
    plan = Plan(("ttft", "decode", "dense"), (7,), rounds=6)
    cases = compare(both(FakeSampler(decode=0.001), FakeSampler(decode=0.0012)), plan).cases
    assert {case.figure: case.outcome for case in cases} == {
        "ttft at 7 tokens": Outcome.PASSED,
        "decode at 7 tokens": Outcome.REGRESSED,
        "dense at 7 tokens": Outcome.PASSED,
    }


@pytest.mark.parametrize(
    ("wall", "cpu", "judged", "guard"),
    [
        (0.05, 0.02, Outcome.PASSED, Outcome.PASSED),
        (0.05, 0.03, Outcome.REGRESSED, Outcome.PASSED),
        (0.06, 0.02, Outcome.PASSED, Outcome.PASSED),  # slower by less than what neighbours do to a wall clock
        (0.08, 0.02, Outcome.PASSED, Outcome.REGRESSED),  # as much work in more time: threads stand idle
    ],
)
def test_the_wall_clock_guards_the_processor_s(wall: float, cpu: float, judged: Outcome, guard: Outcome) -> None:
    plan = Plan(("ttft",), (7,), rounds=6, clock="cpu")
    cases = compare(both(FakeSampler(0.05, cpu=0.02), FakeSampler(wall, cpu=cpu)), plan).cases
    assert {case.figure: case.outcome for case in cases} == {
        "ttft at 7 tokens": judged,
        "ttft at 7 tokens, wall clock": guard,
    }


def test_rounds_double_while_nothing_can_be_said() -> None:
    seen: list[tuple[int, int]] = []
    noise = Machine(1, drift=0.0, jitter=1.0)
    plan = Plan(("ttft",), (7,), rounds=6, max_rounds=27)
    sides = both(SimulatedSampler(machine=noise), SimulatedSampler(machine=noise))
    (case,) = compare(sides, plan, lambda done, planned: seen.append((done, planned))).cases
    assert case.outcome is Outcome.INCONCLUSIVE
    assert len(case.numbers["base_s"]["wall"]) == 24
    assert [planned for done, planned in seen if done == planned] == [6, 12, 24]
    assert [done for done, _ in seen] == list(range(1, 25))


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"figures": ()}, ("--figures", "ttft, prefill, decode, dense")),
        ({"figures": ("tfft",)}, ("--figures", "'tfft'", "did you mean 'ttft'")),
        ({"lengths": ()}, ("--lengths",)),
        ({"lengths": (0,)}, ("--lengths",)),
        ({"lengths": (7, 7)}, ("--lengths", "each once")),
        ({"tolerance": 0.0}, ("--tolerance", "> 0 and < 1")),
        ({"tolerance": float("nan")}, ("--tolerance",)),
        ({"rounds": 5}, ("--rounds", ">= 6")),
        ({"rounds": 9, "max_rounds": 17}, ("--max-rounds", ">= 18, twice --rounds")),
    ],
)
def test_a_plan_says_what_is_wrong(settings: dict[str, object], parts: tuple[str, ...]) -> None:
    with refusal(InputError, *parts):
        Plan(**settings)  # type: ignore[arg-type]


def test_the_self_test_wants_both_verdicts() -> None:
    report = self_test.run(lambda stretch: nullcontext(FakeSampler(0.05 * (1 + stretch))))
    assert [case.outcome for case in report.cases] == [Outcome.PASSED] * 2


def test_the_self_test_fails_where_a_slowdown_goes_unseen() -> None:
    report = self_test.run(lambda stretch: nullcontext(FakeSampler(0.05)))
    assert [case.outcome for case in report.cases] == [Outcome.PASSED, Outcome.REGRESSED]
    assert report.exit_code == 1


def test_the_self_test_fails_where_equals_do_not_pass() -> None:
    started = iter((0.05, 0.06) * 4)
    report = self_test.run(lambda stretch: nullcontext(FakeSampler(next(started))))
    assert [case.outcome for case in report.cases] == [Outcome.REGRESSED, Outcome.PASSED]


def test_the_self_test_is_inconclusive_where_the_gate_is() -> None:
    noise = Machine(0, drift=0.0, jitter=1.5)
    plan = Plan(("ttft",), (256,), rounds=6, max_rounds=12)
    report = self_test.run(lambda stretch: nullcontext(SimulatedSampler(0.05, noise)), plan)
    assert report.cases[0].outcome is Outcome.INCONCLUSIVE
    assert report.exit_code == 3
