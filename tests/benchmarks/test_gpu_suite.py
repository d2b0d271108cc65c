"""The GPU suite where there is no GPU: a rehearsal of every stage, and what it does when kernels are wrong or hang."""

from __future__ import annotations

import ast
import graphlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.gpu import correctness, goals, micro, model, suite
from benchmarks.gpu.cases import Maker, Shape, arguments, awkward_shapes
from benchmarks.gpu.ledger import LEFT, RUNNING, Ledger, read_left
from benchmarks.gpu.machine import this_machine
from benchmarks.gpu.oracle import TOLERANCE, defined, deviation
from zipvl_plugins import ops

SCRIPT = suite.ROOT / "scripts" / "gpu_suite.sh"
SMALL = Shape(61, 23, heads=4, kv_heads=2, head_dim=16, probes=9, page_size=4, bias=True)
MAKE = Maker(torch.device("cpu"), torch.float32)
NOT_THERE = ("pydantic", "typer", "rich", "yaml", "onnx", "onnxruntime", "onnxscript", "tensorrt", "tensorrt_rtx")
"""What a machine with torch, triton and transformers need not have."""


def _run(*options: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The suite as a user starts it; modules in `path` come before all others."""
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(path or "")}
    return subprocess.run([SCRIPT, *options], capture_output=True, text=True, check=False, env=environment)


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Figures of a rehearsal on a machine without the project's other dependencies."""
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_THERE!r}))\n")
    done = _run("--rehearse", "--out", str(folder / "out"), path=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
    return folder / "out"


def _stored(folder: Path, stage: str) -> dict[str, Any]:
    stored: dict[str, Any] = json.loads((folder / f"{stage}.json").read_text())
    return stored


def test_every_stage_is_rehearsed(rehearsed: Path) -> None:
    for stage in suite.STAGES:
        stored = _stored(rehearsed, stage)
        assert stored["fingerprint"]["rehearsal"] is True
        assert stored["entries"], stage
        assert not any("error" in entry for entry in stored["entries"].values())
    checked = _stored(rehearsed, "correctness")["entries"]
    assert {key.split("/")[0] for key in checked} == {*ops.OPS, "append_rows", "store_rows"}
    assert all(entry["passed"] and entry["worst_error"] <= 1e-4 for entry in checked.values())
    prefill = _stored(rehearsed, "prefill")["entries"]["tiny/24"]
    assert {"ratio 0.37", "ratio 0.5", "ratio 1", "dense, torch"} == set(prefill["ttft_s"])
    assert prefill["passed"] and prefill["logits_error_at_ratio_1"] < 1e-4
    assert json.loads((rehearsed / "left.json").read_text()) == []
    assert not (rehearsed / RUNNING).exists()


def test_the_report_says_that_it_is_a_rehearsal(rehearsed: Path) -> None:
    report = (rehearsed / "report.md").read_text()
    assert "every time below is meaningless" in report and "## Goals" not in report
    for stage in suite.STAGES:
        assert f"## {stage.capitalize()}" in report
    assert "| sparse_attention/float32/rehearsed | 1 |" in report


def test_a_second_call_measures_only_what_is_missing(rehearsed: Path) -> None:
    path = rehearsed / "correctness.json"
    stored = json.loads(path.read_text())
    del stored["entries"]["gather_rows/float32/rehearsed"]
    stored["entries"]["store_rows/float32/rehearsed"] = {"error": "of an earlier call", "call": "1"}
    path.write_text(json.dumps(stored))
    done = _run("--rehearse", "--out", str(rehearsed), "correctness")
    assert done.returncode == 0, done.stderr
    lines = [line.split(":")[1].strip() for line in done.stdout.splitlines() if line.startswith("correctness: ")]
    assert lines == ["gather_rows/float32/rehearsed", "store_rows/float32/rehearsed"]
    assert len(done.stdout.splitlines()) == 3
    assert set(_stored(rehearsed, "correctness")["entries"]) == {*stored["entries"], "gather_rows/float32/rehearsed"}


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    measured = {f"{stage}.json": f"figures of {stage}" for stage in suite.STAGES} | {LEFT: "what is left"}
    for name, text in measured.items():
        (tmp_path / name).write_text(text)
    for out, options in ((tmp_path, ["--fresh"]), (tmp_path / "new", [])):
        done = _run("--out", str(out), *options)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{suite.NO_GPU}\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == measured


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_named(out: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = _run("--rehearse", "--out", str(tmp_path / out))
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert f"{out} is no folder that can be written" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("limit", ["0", "-1", "-2e-05", "nan", "inf", "soon"])
def test_the_limit_must_be_above_zero(limit: str, tmp_path: Path) -> None:
    done = _run("--rehearse", "--out", str(tmp_path / "out"), "--limit", limit)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "--limit" in done.stderr and not (tmp_path / "out").exists()


def test_a_worker_without_time_left_takes_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["suite", "--out", str(tmp_path)])
    for late in (0.00002, 9.0):
        command = suite._worker_command(suite._options(), "call", time.monotonic() - late)
        monkeypatch.setattr(sys, "argv", command[2:])
        assert (suite._options().worker, suite._options().limit) == ("call", 0.0)


def test_what_did_not_fit_is_not_called_passed(tmp_path: Path) -> None:
    stored = json.dumps({"fingerprint": {}, "entries": {"machine": {}}})
    (tmp_path / "environment.json").write_text(stored)
    done = _run("--rehearse", "--fresh", "--out", str(tmp_path), "--limit", "9", "environment")
    assert done.returncode == 0, done.stderr
    assert "nothing was measured yet; left for the next call: 3" in done.stdout and "passed" not in done.stdout
    assert (tmp_path / "environment.previous.json").read_text() == stored
    assert not (tmp_path / "environment.json").exists()


def test_unknown_stages_are_named(tmp_path: Path) -> None:
    done = _run("--out", str(tmp_path), "microbench")
    assert done.returncode == 2
    assert done.stderr == f"gpu_suite: unknown stage 'microbench'; valid: {', '.join(suite.STAGES)}\n"


@pytest.mark.parametrize("op", ops.OPS)
def test_the_oracle_takes_the_reference(op: str) -> None:
    one, whole = Shape(1, 1, heads=2, kv_heads=1, head_dim=16), Shape(37, 37, heads=4, kv_heads=4, head_dim=16)
    for shape in (SMALL, replace(SMALL, forced_ratio=True), one, whole):
        values = arguments(op, shape, MAKE)
        assert deviation(op, values, ops.reference(op)(**values)) <= TOLERANCE[torch.float32], shape


@pytest.mark.parametrize("op", ops.OPS)
def test_the_oracle_refuses_what_is_wrong(op: str) -> None:
    values = arguments(op, SMALL, MAKE)
    result = ops.reference(op)(**values)
    for part in defined(op, values, result):
        for place in (0, -1):
            whole = part.clone()
            flat = part.view(-1)
            flat[place] = flat[place] + 1 if part.dtype == torch.int32 else float("nan")
            assert deviation(op, values, result) > TOLERANCE[torch.bfloat16]
            part.copy_(whole)
    assert deviation(op, values, result) <= TOLERANCE[torch.float32]


def test_rows_outside_t_must_be_zero() -> None:
    values = arguments("projection_scatter", SMALL, MAKE)
    result = ops.reference("projection_scatter")(**values)
    outside = set(range(SMALL.n)) - set(values["index"][: SMALL.p].tolist())
    result[outside.pop(), 3] = 1e-6
    assert deviation("projection_scatter", values, result) == float("inf")


def test_inputs_are_fresh_and_at_the_edges() -> None:
    first, second = (arguments("sparse_attention", SMALL, MAKE) for _ in range(2))
    assert not torch.equal(first["q"][:5], second["q"][:5])
    assert first["q"][SMALL.p :].isnan().all() and not first["q"][: SMALL.p].isnan().any()
    shapes = awkward_shapes("sparse_attention")
    assert {64, 80, 96, 128} == {shape.head_dim for shape in shapes}
    assert {1, 7} <= {shape.heads // shape.kv_heads for shape in shapes}
    assert any(shape.p == 1 < shape.n for shape in shapes) and any(shape.p == shape.n > 1 for shape in shapes)


def test_a_wrong_kernel_fails_its_entry_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(op: str, *arguments: Any, choose: Any = None, **named: Any) -> Any:
        if op == "gather_rows":
            raise RuntimeError("broken")
        result = ops.reference(op)(*arguments, **named)
        return result + 0.1 if op == "sparse_attention" else result

    monkeypatch.setattr(ops, "run_kernels", broken)
    monkeypatch.setattr("benchmarks.gpu.correctness_pages.check", lambda *_: {"passed": True})
    outcome = {e.key.split("/")[0]: e.run() for e in correctness.entries(this_machine(rehearsal=True))}
    assert {op for op, figures in outcome.items() if not figures["passed"]} == {"gather_rows", "sparse_attention"}
    assert "broken" in json.dumps(outcome["gather_rows"]["failed"])


def test_unsteady_bits_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = iter((1.0, 1 + 1e-6))

    def unsteady(op: str, *arguments: Any, choose: Any = None, **named: Any) -> Any:
        return ops.reference(op)(*arguments, **named) * next(factors)

    monkeypatch.setattr(ops, "run_kernels", unsteady)
    entry = next(e for e in correctness.entries(this_machine(rehearsal=True)) if e.key.startswith("sparse"))
    figures = entry.run()
    assert not figures["passed"] and figures["worst_error"] < 1e-4


WORKER = """
import os, subprocess, sys, time
from pathlib import Path
from benchmarks.gpu.ledger import Ledger
out, call, how, *keys = sys.argv[1:]
fingerprint = {"machine": "fake", "torch": "-", "sources": "-", "rehearsal": False}
ledger = Ledger.open(Path(out), "micro", call, fingerprint)
for key in keys:
    if not ledger.settled(key):
        ledger.begin(key, 0.1)
        if key == "bad":
            child = subprocess.Popen(["sleep", "300"])
            (Path(out) / "begun").touch()
            child.wait() if how == "hang" else os.abort()
        ledger.record(key, {"8": {"us": {"ours": 1.0}}})
"""
SUITE = f"""
import signal, sys
from benchmarks.gpu import suite
signal.signal(signal.SIGINT, signal.default_int_handler)
suite.SLOW_S = float(sys.argv.pop())
suite._worker_command = lambda options, call, _: [
    sys.executable, "-c", {WORKER!r}, str(options.out), call, "hang", "good", "bad", "next"
]
sys.exit(suite.main())
"""


@pytest.mark.parametrize("keys", [("good", "bad", "next"), ("bad", "next")])
@pytest.mark.parametrize(("how", "told"), [("hang", "hangs"), ("die", "ended with -6")])
def test_one_bad_entry_costs_itself(
    how: str, told: str, keys: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "SLOW_S", 1.0)
    monkeypatch.setenv("PYTHONPATH", str(suite.ROOT))
    command, deadline = [sys.executable, "-c", WORKER, str(tmp_path), "this call", how, *keys], time.monotonic() + 60
    assert suite.watch(command, tmp_path, "this call", deadline) is None
    assert suite.watch(command, tmp_path, "this call", deadline) == 0
    entries = _stored(tmp_path, "micro")["entries"]
    assert {key: "error" in entry for key, entry in entries.items()} == {key: key == "bad" for key in keys}
    assert told in entries["bad"]["error"]
    assert suite.write_report(tmp_path, suite.STAGES) == (len(keys), 1, 0)
    assert "FAILED micro: bad" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("end", "code", "slow_s", "measured"),
    [
        (signal.SIGINT, 130, 300, ["good"]),
        (signal.SIGTERM, 143, 300, ["good"]),
        (None, 1, 1, ["good", "bad", "next"]),
    ],
)
def test_nothing_outlives_its_worker(
    end: signal.Signals | None, code: int, slow_s: int, measured: list[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", SUITE, "--rehearse", "--out", str(tmp_path), str(slow_s)]
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(suite.ROOT)}
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "begun").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if end:
            process.send_signal(end)
        _, told = process.communicate(timeout=60)  # as long as anything started lives, it holds these pipes
    assert process.returncode == code, told
    assert told == (f"gpu_suite: ended by {end.name}; the next call goes on\n" if end else "")
    assert list(_stored(tmp_path, "micro")["entries"]) == measured


@pytest.mark.parametrize("text", ['{"stage": "micro", "fing', "[]", '{"entries": {}}', "\x00"])
def test_a_file_that_is_not_whole_is_set_aside(text: str, tmp_path: Path) -> None:
    for name in ("micro.json", "tune.json", LEFT):
        (tmp_path / name).write_text(text)
    ledger = Ledger.open(tmp_path, "micro", "call", {"sources": "new"})
    assert not ledger.settled("key")
    assert suite.write_report(tmp_path, suite.STAGES).stored == 0
    assert read_left(tmp_path) == []
    for stage in ("micro", "tune"):
        assert not (tmp_path / f"{stage}.json").exists()
        assert (tmp_path / f"{stage}.unreadable.json").read_text() == text


def test_no_module_of_the_suite_is_imported_by_what_it_imports() -> None:
    folder = suite.ROOT / "benchmarks" / "gpu"
    imports = {
        f"benchmarks.gpu.{path.stem}": {
            node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
        }
        for path in folder.glob("*.py")
    }
    graphlib.TopologicalSorter(imports).prepare()


def test_a_broken_suite_ends(tmp_path: Path) -> None:
    assert suite.watch([sys.executable, "-c", "exit(1)"], tmp_path, "call", time.monotonic() + 9) == 1


def test_figures_of_other_sources_are_set_aside(tmp_path: Path) -> None:
    Ledger.open(tmp_path, "micro", "1", {"sources": "old"}).record("key", {"us": 1})
    ledger = Ledger.open(tmp_path, "micro", "2", {"sources": "new"})
    assert not ledger.settled("key")
    assert json.loads((tmp_path / "micro.previous.json").read_text())["entries"] == {"key": {"us": 1}}


def test_the_plan_for_a_gpu_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    h200 = SimpleNamespace(total_memory=150_754_820_096, multi_processor_count=132, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: h200)
    monkeypatch.setattr("benchmarks.gpu.baselines.dense_attentions", lambda _: {})
    machine = this_machine(rehearsal=False)
    assert machine.gpu.name == "H200 SXM"
    for stage in suite.STAGES:
        plan = importlib.import_module(f"benchmarks.gpu.{stage}").entries(machine)
        assert len({entry.key for entry in plan}) == len(plan)
        assert all(0 < entry.expected_s < 300 for entry in plan), stage
    checked = {entry.key for entry in correctness.entries(machine)}
    for op in (*ops.OPS, "append_rows", "store_rows"):
        for dtype in ("float16", "bfloat16"):
            assert {f"{op}/{dtype}/{group}" for group in ("awkward", "large", "tunings")} <= checked


def test_micro_names_what_it_can_measure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["micro", "attention", "--rehearse"])
    with pytest.raises(SystemExit, match="2"):
        micro.main()
    told = capsys.readouterr().err
    assert "nothing to measure of attention" in told and all(op in told for op in ops.OPS)


def test_goals_are_held_against_figures() -> None:
    attention = {"8192": {"of_peak": {"ours": 0.7}}, "4096": {"of_peak": {"ours": 0.1}}, "16384": {"oom": True}}
    micro = {
        "sparse_attention/40:40x128": attention | {"took_s": 1.0},
        "probe_scores+select_tokens/13B": {"4096": {"share": 0.03}},
    }
    prefill = {"13B/4K": {"speedup_over": {"torch flash": {"ratio 0.37": 1.2, "ratio 1": 0.9}}}}
    rows = goals.rows({"micro": micro, "prefill": prefill})
    assert [row[1:] for row in rows] == [
        ("<= 0.02", "0.03", "NO"), (">= 0.65", "0.7", "yes"), (">= 1.25", "1.2", "NO"),
    ]  # fmt: skip


def test_the_page_holds_what_the_model_says() -> None:
    """`python -m benchmarks.gpu.model --write` renews it."""
    assert model.SECTION.read() == model.page_section()
