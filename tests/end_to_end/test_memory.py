"""Graphs share one copy of the weights; decode packs a second one unless it is told not to."""

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
    bundle = script.build_random(tmp_path, 640, 3)
    shared, packed = (script.measure(bundle, prepack=prepack) for prepack in (False, True))
    weights = shared["weights"]
    assert weights > 40e6
    # Two copies would be 2.0; sessions, graphs and the run's own buffers are the rest.
    assert shared["proportional"] == pytest.approx(weights, rel=0.6)
    assert shared["anonymous"] < 0.6 * weights
    assert packed["anonymous"] - shared["anonymous"] < 1.1 * weights, "decode's weights twice, nobody else's"
    assert packed["anonymous"] - shared["anonymous"] > 0.5 * weights, "nothing was packed"
