"""Prefill and decode share one copy of the weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "weights_memory.py"


def test_weights_are_held_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)  # as running the script does
    spec = importlib.util.spec_from_file_location("weights_memory", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    figures = script.measure(script.build_random(tmp_path, 640, 3))
    assert figures["weights"] > 40e6
    # Two copies would be 2.0; sessions, graphs and the run's own buffers are the rest.
    assert figures["proportional"] == pytest.approx(figures["weights"], rel=0.6)
    assert figures["anonymous"] < 0.6 * figures["weights"]
