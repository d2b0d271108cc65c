"""The soak, short: many streams at once, answers equal to the offline ones, pages exact after every step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SOAK = Path(__file__).resolve().parents[2] / "benchmarks" / "soak.py"


def test_many_streams_of_mixed_lengths(tiny_bundle: Path) -> None:
    command = [sys.executable, SOAK, tiny_bundle, "--streams", "64", "--seconds", "3", "--cases", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["ended"] == figures["equal"] > 64
    assert not {"hung", "failed", "different"} & set(figures)
    assert figures["steps_where_pages_were_wrong"] == figures["pages_left"] == 0
    assert figures["steps_where_pages_were_exact"] > 100
    assert figures["peak_running"] == 32
    for row in figures["pages_of_one_long_prompt"].values():
        assert row["pages"] == row["sum_of_ceil"]
