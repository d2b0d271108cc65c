"""The worker's process: what it answers, and one line for every way in which it may fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.bundles import LAYERS, TOKENS_PER_IMAGE, refusal

from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.process import CLOCKS, FIGURES, WorkerProcess
from zipvl_compile.gate.revision import head
from zipvl_serving.machine import usable_cores

ROOT = head()
HELLO = f'print(\'{{"sources": "{ROOT}/serving/zipvl_serving"}}\', flush=True)\n'
SCRIPTED = f"""
import json, os, sys
print("noise on stderr", file=sys.stderr)
{HELLO}
for line in sys.stdin:
    asked = json.loads(line)
    if "calibrate" in asked:
        times = [asked["side"] / 1000] * asked["calibrate"]
        print(json.dumps({{"seconds": {{"wall": times, "cpu": times}}}}), flush=True)
    else:
        times = [asked["length"] / 1000] * asked["runs"]
        text = os.environ["OPENBLAS_NUM_THREADS"]
        seconds = {{"ttft": {{"wall": times, "cpu": times}}, "decode": {{"wall": [], "cpu": []}}}}
        print(json.dumps({{"tokens": 7, "kept": [5, 7], "text": text, "seconds": seconds}}), flush=True)
"""


def worker(folder: Path, text: str, patience_s: float = 60.0, threads: int = 0) -> WorkerProcess:
    script = folder / "scripted.py"
    script.write_text(text)
    return WorkerProcess("head", ROOT, folder, script=script, patience_s=patience_s, threads=threads)


def test_a_scripted_worker_answers(tmp_path: Path) -> None:
    with worker(tmp_path, SCRIPTED) as process:
        found = process.runs(20, 2)
        assert (found.tokens, found.kept) == (7, (5, 7))
        assert found.seconds["ttft"] == {"wall": [0.02] * 2, "cpu": [0.02] * 2}
        assert process.calibrate(3, 250) == {"wall": [0.25] * 3, "cpu": [0.25] * 3}


def test_numpy_has_the_engine_s_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    for threads in (0, 3):
        with worker(tmp_path, SCRIPTED, threads=threads) as process:
            assert process.runs(20, 1).text == str(threads or usable_cores())


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


def test_the_real_worker_measures_by_both_clocks(tiny_bundle: Path) -> None:
    with WorkerProcess("head", ROOT, tiny_bundle, threads=1, new_tokens=4, dense=True) as process:
        found = process.runs(100, 3)
        assert 2 * TOKENS_PER_IMAGE < found.tokens <= 100
        assert len(found.kept) == LAYERS and max(found.kept) < found.tokens
        assert set(found.seconds) == set(FIGURES)
        for seconds in found.seconds.values():
            assert {clock: len(taken) for clock, taken in seconds.items()} == {"wall": 3, "cpu": 3}
        for clock in CLOCKS:
            both = zip(found.seconds["prefill"][clock], found.seconds["ttft"][clock], strict=True)
            assert all(0 < prefill < ttft for prefill, ttft in both)
        assert {clock: len(taken) for clock, taken in process.calibrate(2, 16).items()} == {"wall": 2, "cpu": 2}
        with refusal(GateError, "head: the worker failed: InputError", "takes 512 at most"):
            process.runs(4000, 1)


def test_the_real_worker_stretches(tiny_bundle: Path) -> None:
    """By processor time, which other work on the machine does not lengthen: calls are twice as long."""
    plain, stretched = (
        WorkerProcess("head", ROOT, tiny_bundle, threads=1, new_tokens=1, stretch=stretch, clock="cpu")
        for stretch in (0.0, 1.0)
    )
    with plain, stretched:
        for process in (plain, stretched):
            process.runs(400, 3)
        taken = [min(process.runs(400, 9).seconds["prefill"]["cpu"]) for process in (plain, stretched)]
    assert taken[1] / taken[0] > 1.5


def test_the_worker_uses_what_every_revision_has() -> None:
    """Of this project nothing but the serving runtime, or a base revision could not run it."""
    text = Path(str(sys.modules["zipvl_compile.gate.process"].SCRIPT)).read_text()
    assert "zipvl_compile" not in text
