"""From which length on selection pays, and what is said where the measurement could not tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zipvl_compile.bundling import break_even
from zipvl_compile.bundling.pipeline import UNMEASURED_BREAK_EVEN, _dense_below
from zipvl_serving.bundle import Bundle
from zipvl_serving.manifest import BreakEven
from zipvl_serving.sessions.base import PrefillInputs

LENGTHS = [64, 128, 256]


class Clock:
    """Seconds that pass only where a session says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Session:
    """Prefills that take the seconds that `cost(tokens, dense)` says."""

    def __init__(self, bundle: Bundle, clock: Clock, cost: Any) -> None:
        self.bundle, self.clock, self.cost = bundle, clock, cost
        self.ran: list[tuple[int, bool]] = []

    def prefill(self, inputs: PrefillInputs, features: None) -> None:
        self.ran.append((len(inputs.input_ids), inputs.ratio_min >= 1))
        self.clock.now += self.cost(*self.ran[-1])


def measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, cost: Any) -> tuple[BreakEven, Session]:
    clock = Clock()
    monkeypatch.setattr(break_even, "time", clock)
    bundle = Bundle.open(tiny_bundle)
    session = Session(bundle, clock, cost)
    found = break_even.measure(session, bundle.manifest.method, 0.5, LENGTHS, lambda tokens: None)  # type: ignore[arg-type]
    return found, session


def test_the_first_of_the_lengths_that_pay_to_the_end(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, session = measured(
        tiny_bundle, monkeypatch, lambda n, dense: 0.001 if dense else (0.002 if n < 128 else 0.0005)
    )
    assert found.tokens == 128
    assert found.ratios == {64: pytest.approx(2), 128: pytest.approx(0.5), 256: pytest.approx(0.5)}
    assert _dense_below(found, LENGTHS, 4096) == 128
    turns = [dense for n, dense in session.ran if n == 64][2:]  # after the warm-up
    assert turns[:4] == [False, True, True, False]


def test_never_is_said_only_where_every_length_was_measured(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = measured(tiny_bundle, monkeypatch, lambda n, dense: 0.001 if dense else 0.002)
    assert found.tokens is None and list(found.ratios) == LENGTHS
    assert _dense_below(found, LENGTHS, 4096) == 4097


def test_where_the_time_ran_out_short_prompts_run_dense(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model, of which one short length is all that could be measured."""
    found, _ = measured(tiny_bundle, monkeypatch, lambda n, dense: n / 100 * (1.0 if dense else 1.2))
    assert found.tokens is None and list(found.ratios) == [64]
    assert _dense_below(found, LENGTHS, 4096) == UNMEASURED_BREAK_EVEN
