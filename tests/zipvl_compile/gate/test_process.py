"""The worker's process: what it answers, and one line for every way in which it may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.bundles import refusal

from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.process import WorkerProcess
from zipvl_compile.gate.revision import head

ROOT = head()
HELLO = f'print(\'{{"sources": "{ROOT}/serving/zipvl_serving"}}\', flush=True)\n'
SCRIPTED = f"""
import json, sys
print("noise on stderr", file=sys.stderr)
{HELLO}
for line in sys.stdin:
    asked = json.loads(line)
    if "calibrate" in asked:
        print(json.dumps({{"seconds": [0.25] * asked["calibrate"]}}), flush=True)
    else:
        times = [asked["length"] / 1000] * asked["runs"]
        print(json.dumps({{"tokens": 7, "ttft": times, "prefill": times, "decode": []}}), flush=True)
"""


def worker(folder: Path, text: str, patience_s: float = 60.0, root: Path = ROOT) -> WorkerProcess:
    script = folder / "scripted.py"
    script.write_text(text)
    return WorkerProcess("head", root, folder, script=script, patience_s=patience_s)


def test_a_scripted_worker_answers(tmp_path: Path) -> None:
    with worker(tmp_path, SCRIPTED) as process:
        assert process.runs(20, 2) == {"ttft": [0.02] * 2, "prefill": [0.02] * 2, "decode": []}
        assert process.calibrate(3) == [0.25] * 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("import sys; sys.exit('no engine here')", "has gone: no engine here"),
        ("pass", "has gone: it said nothing"),
        ("print('hello', flush=True)", "'hello', which is not JSON"),
        ("print('[1]', flush=True)", "which is no JSON object"),
        ('print(\'{"sources": "/elsewhere"}\', flush=True)', "runs the sources at /elsewhere"),
        ('print(\'{"error": "broken"}\', flush=True)', "the worker failed: broken"),
    ],
)
def test_a_worker_that_does_not_start(tmp_path: Path, text: str, part: str) -> None:
    with refusal(GateError, "head: ", part):
        worker(tmp_path, text)


def test_a_worker_that_fails_and_one_that_dies(tmp_path: Path) -> None:
    answer = 'import sys\nsys.stdin.readline()\nprint(\'{"error": "too long"}\', flush=True)\nsys.stdin.readline()\n'
    with worker(tmp_path, HELLO + answer) as process:
        with refusal(GateError, "failed: too long"):
            process.runs(5, 1)
        with refusal(GateError, "has gone"):
            process.runs(5, 1)


def test_a_worker_that_says_nothing_is_ended(tmp_path: Path) -> None:
    with refusal(GateError, "did not answer within 0.2 s"):
        worker(tmp_path, "import sys; sys.stdin.read()", patience_s=0.2)


def test_the_real_worker_measures_and_stretches(tiny_bundle: Path) -> None:
    with WorkerProcess("head", ROOT, tiny_bundle, threads=1, new_tokens=4, stretch=0.1, clock="cpu") as process:
        found = process.runs(100, 3)
        assert {figure: len(seconds) for figure, seconds in found.items()} == {"ttft": 3, "prefill": 3, "decode": 3}
        assert all(0 < prefill < ttft for prefill, ttft in zip(found["prefill"], found["ttft"], strict=True))
        assert len(process.calibrate(2)) == 2
        with refusal(GateError, "head: the worker failed: InputError", "takes 512 at most"):
            process.runs(4000, 1)


def test_the_worker_uses_what_every_revision_has() -> None:
    """Of this project nothing but the serving runtime, or a base revision could not run it."""
    text = Path(str(sys.modules["zipvl_compile.gate.process"].SCRIPT)).read_text()
    assert "zipvl_compile" not in text
