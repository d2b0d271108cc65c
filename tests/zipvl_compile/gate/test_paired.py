"""Two samplers side by side: who is asked when, for how long, and what comes of it."""

from __future__ import annotations

import pytest
from helpers.bundles import refusal
from helpers.gate import FakeSampler, Machine

from zipvl_compile.gate import self_test
from zipvl_compile.gate.paired import Plan, compare, runs_for
from zipvl_compile.gate.report import Outcome
from zipvl_serving.errors import InputError


class Logged(FakeSampler):
    """Writes who was asked into a log that both sides share."""

    def __init__(self, name: str, log: list[str], seconds: float = 1.0) -> None:
        super().__init__(seconds)
        self.name, self.log = name, log

    def runs(self, length: int, count: int) -> dict[str, list[float]]:
        self.log.append(f"{self.name}{length}")
        return super().runs(length, count)


def test_pairs_stand_side_by_side_in_abba_order() -> None:
    log: list[str] = []
    plan = Plan(lengths=(1, 2), rounds=6, max_rounds=6)
    compare(Logged("A", log), Logged("B", log), plan)
    rounds = [log[at : at + 4] for at in range(len(log) - 24, len(log), 4)]
    assert rounds[0::2] == [["A1", "B1", "A2", "B2"]] * 3
    assert rounds[1::2] == [["B2", "A2", "B1", "A1"]] * 3


def test_equal_sides_pass_and_keep_their_samples() -> None:
    (case,) = compare(FakeSampler(0.05), FakeSampler(0.05), Plan(("ttft",), (7,), rounds=5))
    assert (case.section, case.figure, case.outcome) == ("paired", "ttft at 7 tokens", Outcome.PASSED)
    assert case.numbers["base_s"] == case.numbers["head_s"] == [0.05] * 5
    assert "head over base 1.000" in case.message and "5 pairs" in case.message


def test_a_regression_must_be_seen_twice() -> None:
    (case,) = compare(FakeSampler(0.05), FakeSampler(0.06), Plan(("ttft",), (7,), rounds=5, max_rounds=40))
    assert case.outcome is Outcome.REGRESSED
    assert len(case.numbers["base_s"]) == 10


def test_only_the_figure_that_is_slower_regresses() -> None:
    plan = Plan(("ttft", "decode"), (7,), rounds=5)
    cases = compare(FakeSampler(decode=0.001), FakeSampler(decode=0.0012), plan)
    assert {case.figure: case.outcome for case in cases} == {
        "ttft at 7 tokens": Outcome.PASSED,
        "decode at 7 tokens": Outcome.REGRESSED,
    }


def test_rounds_double_while_nothing_can_be_said() -> None:
    seen: list[tuple[int, int]] = []
    noise = Machine(0, drift=0.0, jitter=1.0)
    plan = Plan(("ttft",), (7,), rounds=5, max_rounds=17)
    (case,) = compare(
        FakeSampler(machine=noise), FakeSampler(machine=noise), plan, lambda done, planned: seen.append((done, planned))
    )
    assert case.outcome is Outcome.INCONCLUSIVE
    assert len(case.numbers["base_s"]) == 17
    assert [planned for done, planned in seen if done == planned] == [5, 10, 17]
    assert [done for done, _ in seen] == list(range(1, 18))


@pytest.mark.parametrize(("seconds", "runs"), [(1.0, 1), (0.02, 1), (0.005, 4), (1e-6, 16)])
def test_a_sample_is_long_enough_to_time(seconds: float, runs: int) -> None:
    assert runs_for(7, (FakeSampler(seconds), FakeSampler(seconds))) == runs


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"figures": ()}, ("--figures", "ttft, prefill, decode")),
        ({"figures": ("tfft",)}, ("--figures", "'tfft'", "did you mean 'ttft'")),
        ({"lengths": ()}, ("--lengths",)),
        ({"lengths": (0,)}, ("--lengths",)),
        ({"tolerance": 0.0}, ("--tolerance", "> 0 and < 1")),
        ({"tolerance": float("nan")}, ("--tolerance",)),
        ({"rounds": 4}, ("--rounds", ">= 5")),
        ({"rounds": 9, "max_rounds": 8}, ("--max-rounds", ">= --rounds, 9")),
    ],
)
def test_a_plan_says_what_is_wrong(settings: dict[str, object], parts: tuple[str, ...]) -> None:
    with refusal(InputError, *parts):
        Plan(**settings)  # type: ignore[arg-type]


def test_the_self_test_wants_both_verdicts() -> None:
    report = self_test.run(lambda stretch: FakeSampler(0.05 * (1 + stretch)))
    assert [case.outcome for case in report.cases] == [Outcome.PASSED] * 2


def test_the_self_test_fails_where_a_slowdown_goes_unseen() -> None:
    report = self_test.run(lambda stretch: FakeSampler(0.05))
    assert [case.outcome for case in report.cases] == [Outcome.PASSED, Outcome.REGRESSED]
    assert report.exit_code == 1


def test_the_self_test_fails_where_equals_do_not_pass() -> None:
    started = iter((0.05, 0.06, 0.06))
    report = self_test.run(lambda stretch: FakeSampler(next(started)))
    assert [case.outcome for case in report.cases] == [Outcome.REGRESSED, Outcome.PASSED]


def test_the_self_test_is_inconclusive_where_the_gate_is() -> None:
    noise = Machine(0, drift=0.0, jitter=1.5)
    report = self_test.run(lambda stretch: FakeSampler(0.05, noise), Plan(("ttft",), (256,), rounds=5, max_rounds=10))
    assert report.cases[0].outcome is Outcome.INCONCLUSIVE
    assert report.exit_code == 3
