"""`zipvl-compile gate`: 0 pass, 1 regression, 2 usage or environment, 3 inconclusive, 4 baseline missing."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import product
from pathlib import Path

import pytest
from helpers.bundles import QUESTION, edit_manifest, flip_byte, names, random_image
from helpers.command_line import error_line, invoke, succeed
from typer.testing import Result

from zipvl_compile.gate import run
from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.process import CLOCKS
from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_compile.gate.revision import head
from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator

ROOT = head()


@pytest.fixture(scope="module")
def baseline(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `gate update deterministic` writes of the tiny bundle."""
    file = tmp_path_factory.mktemp("baselines") / "deterministic.json"
    said = succeed("gate", "update", "deterministic", tiny_bundle, "--baseline", file, "--reason", "first")
    assert said.startswith(f"pinned: {file} (")
    return file.read_text()


def refused(code: int, *arguments: str | Path) -> str:
    result = invoke("gate", *arguments)
    assert result.exit_code == code, result.output
    return error_line(result.stderr)


def test_unchanged_figures_pass(tiny_bundle: Path, baseline: str, tmp_path: Path) -> None:
    file = tmp_path / "deterministic.json"
    file.write_text(baseline)
    out = tmp_path / "out"
    said = succeed("gate", "deterministic", tiny_bundle, "--baseline", file, "--out", out)
    assert said.startswith("passed: ")
    assert json.loads((out / "results.json").read_text())["exit_code"] == 0


@pytest.mark.parametrize("change", [1, -1])
def test_a_figure_that_changed_fails_either_way(tiny_bundle: Path, baseline: str, tmp_path: Path, change: int) -> None:
    body = json.loads(baseline)
    steps = body["figures"]["trace.steps"]
    body["figures"]["trace.steps"] += change
    file = tmp_path / "deterministic.json"
    file.write_text(json.dumps(body))
    result = invoke("gate", "deterministic", tiny_bundle, "--baseline", file, "--annotations")
    assert result.exit_code == 1
    assert f"trace.steps: wanted {steps + change} (exactly), found {steps}\n" in result.stdout
    assert "::error title=deterministic%3A trace.steps regressed::" in result.stdout
    assert "regressed: 1 of " in result.stdout


def test_an_update_keeps_the_history(tiny_bundle: Path, baseline: str, tmp_path: Path) -> None:
    body = json.loads(baseline)
    body["figures"]["trace.steps"] += 1
    file = tmp_path / "deterministic.json"
    file.write_text(json.dumps(body))
    succeed("gate", "update", "deterministic", tiny_bundle, "--baseline", file, "--reason", "a better order")
    after = json.loads(file.read_text())
    assert after["history"][-1]["reason"] == "a better order"
    assert after["history"][-1]["replaced"] == {"trace.steps": body["figures"]["trace.steps"]}


def test_an_update_without_a_reason_changes_nothing(tiny_bundle: Path, baseline: str, tmp_path: Path) -> None:
    file = tmp_path / "deterministic.json"
    file.write_text(baseline)
    said = refused(2, "update", "deterministic", tiny_bundle, "--baseline", file, "--reason", " ")
    assert "--reason is empty" in said
    assert "--reason" in refused(2, "update", "deterministic", tiny_bundle, "--baseline", file)
    assert file.read_text() == baseline


def test_a_missing_baseline(tiny_bundle: Path, tmp_path: Path) -> None:
    said = refused(4, "deterministic", tiny_bundle, "--baseline", tmp_path / "none.json")
    assert "make one: zipvl-compile gate update deterministic --reason" in said
    said = refused(4, "baseline", tiny_bundle, "--baseline", tmp_path / "none.json")
    assert "make one: zipvl-compile gate update baseline --reason" in said


def test_what_is_broken_is_no_regression(tiny_bundle: Path, baseline: str, tmp_path: Path) -> None:
    file = tmp_path / "deterministic.json"
    file.write_text(baseline)
    damaged = Path(shutil.copytree(tiny_bundle, tmp_path / "damaged"))
    flip_byte(damaged / "prefill.onnx")
    assert "SHA-256" in refused(2, "deterministic", damaged, "--baseline", file)
    assert "not a bundle" in refused(2, "deterministic", tmp_path, "--baseline", file)
    file.write_text("{")
    assert "is not JSON" in refused(2, "deterministic", tiny_bundle, "--baseline", file)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("paired",), "--base REV or --base-dir DIR"),
        (("paired", "--base", "HEAD", "--base-dir", "."), "--base REV or --base-dir DIR"),
        (("paired", "--base", "no-such-revision"), "--base"),
        (("paired", "--base-dir", "/nowhere"), "holds no cli.py"),
        (("paired", "--base", "HEAD", "--lengths", "1,x"), "--lengths"),
        (("paired", "--base", "HEAD", "--figures", "itl"), "--figures"),
        (("paired", "--base", "HEAD", "--lengths", "256,256"), "each once"),
        (("paired", "--base", "HEAD", "--rounds", "40", "--max-rounds", "40"), "twice --rounds"),
        (("paired", "--base", "HEAD", "--out", "README.md"), "is not a directory"),
        (("paired", "--base", "HEAD", "--clock", "sun"), "valid: wall, cpu"),
        (("all", "--base", "HEAD", "--base-dir", "."), "two bases"),
        (("nothing",), "No such command"),
    ],
)
def test_usage(arguments: tuple[str, ...], part: str) -> None:
    assert part in refused(2, *arguments)


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASSED, 0), (Outcome.REGRESSED, 1), (Outcome.INCONCLUSIVE, 3)])
def test_verdicts_are_exit_codes(outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    report = Report([Case("paired", "ttft at 8 tokens", outcome, "1.000 of the base")])
    monkeypatch.setattr(run, "run_paired", lambda *arguments: report)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step"))
    result: Result = invoke("gate", "paired", "--base", "HEAD")
    assert result.exit_code == code
    assert f"{outcome}: paired: ttft at 8 tokens: 1.000 of the base\n" in result.stdout
    assert ("::" in result.stdout) == (code != 0)
    assert (tmp_path / "step").read_text().startswith("## Gate: ")


@pytest.mark.parametrize(
    "error", [RuntimeError("odd"), OSError(28, "No space left on device"), MemoryError(), ImportError("no scipy")]
)
def test_a_gate_that_breaks_is_no_regression(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> Report:
        raise error

    monkeypatch.setattr(run, "run_paired", broken)
    assert refused(2, "paired", "--base", "HEAD").startswith("the gate could not be run: ")


def test_a_gate_that_is_not_installed_is_no_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zipvl_compile.gate.run", None)
    for arguments in (("deterministic",), ("paired", "--base", "HEAD"), ("baseline",), ("all",), ("self-test",)):
        assert refused(2, *arguments).startswith("the gate could not be run: import of ")


def test_a_base_is_built_run_and_compared(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """All of it for real, this checkout being its own base; what the times come to is not asked."""
    settings = ("--lengths", "60", "--rounds", "6", "--max-rounds", "12", "--new-tokens", "3", "--threads", "1")
    source = ("--base-dir", ROOT, "--bundle-recipe", tiny_recipe, "--figures", "ttft,dense")
    result = invoke("gate", "paired", *source, *settings, "--clock", "cpu", "--out", tmp_path)
    assert result.exit_code in (0, 1, 3), result.output
    body = json.loads((tmp_path / "results.json").read_text())
    assert body["context"]["base"] == f"{ROOT} (an exported tree)"
    tokens = len(Generator(Bundle.open(tiny_bundle)).prepare(QUESTION, [random_image(0)]).input_ids)
    assert [case["figure"] for case in body["cases"]] == [
        f"{figure} at {tokens} tokens{clock}" for figure in ("ttft", "dense") for clock in ("", ", wall clock")
    ]
    for case in body["cases"][::2]:
        for side, clock in product(("base_s", "head_s"), CLOCKS):
            assert len(case["numbers"][side][clock]) in (6, 12)
            assert min(case["numbers"][side][clock]) > 0


def test_all_runs_what_has_something_to_compare_with(
    tiny_bundle: Path, baseline: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "deterministic.json"
    monkeypatch.setattr(run, "default_deterministic", lambda: file)
    monkeypatch.setattr(run, "default_pinned", lambda machine: tmp_path / "none.json")
    monkeypatch.setattr(run.revision, "build", lambda *arguments: tiny_bundle)
    result = invoke("gate", "all")
    assert result.exit_code == 4
    assert "missing: deterministic: " in result.stdout or "deterministic.json: there is no such" in result.stdout
    file.write_text(baseline)
    result = invoke("gate", "all")
    assert result.exit_code == 4
    assert "missing: baseline: baseline: " in result.stdout and "gate update baseline" in result.stdout
    said = succeed("gate", "all", "--no-pinned")
    assert "the paired gate did not run" in said and "the pinned gate did not run" in said


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASSED, 2), (Outcome.REGRESSED, 1)])
def test_what_was_found_before_a_gate_breaks_is_told(
    outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*arguments: object) -> Report:
        raise GateError("head: the worker has gone")

    monkeypatch.setattr(run, "run_deterministic", lambda *arguments: Report([Case("deterministic", "a", outcome, "b")]))
    monkeypatch.setattr(run, "run_paired", broken)
    result = invoke("gate", "all", "--base", "HEAD", "--no-pinned", "--out", tmp_path)
    assert result.exit_code == code
    assert "broken: paired: gate: head: the worker has gone\n" in result.stdout
    assert json.loads((tmp_path / "results.json").read_text())["cases"][0]["outcome"] == outcome


def test_a_bundle_of_other_sources_is_said_to_be_and_is_no_baseline(
    tiny_bundle: Path, baseline: str, tmp_path: Path
) -> None:
    file = tmp_path / "deterministic.json"
    file.write_text(baseline)
    stale = Path(shutil.copytree(tiny_bundle, tmp_path / "stale"))
    edit_manifest(stale, lambda body: body["tools"].update({"zipvl-compile sources": "0123"}), seal=True)
    assert "note: the bundle was built by other sources, 0123," in succeed(
        "gate", "deterministic", stale, "--baseline", file
    )
    for kind in ("deterministic", "baseline"):
        said = refused(2, "update", kind, stale, "--baseline", file, "--reason", "quicker")
        assert "built by other sources" in said
    assert file.read_text() == baseline


def test_reports_of_an_earlier_run_are_gone_where_a_gate_breaks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text("of yesterday")
    monkeypatch.setattr(run, "run_paired", lambda *arguments: 1 / 0)
    assert refused(2, "paired", "--base", "HEAD", "--out", tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.PASSED, 2), (Outcome.REGRESSED, 1), (Outcome.INCONCLUSIVE, 3)])
def test_a_report_that_cannot_be_written_hides_no_verdict(
    outcome: Outcome, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = Report([Case("paired", "ttft at 8 tokens", outcome, "1.000 of the base")])
    monkeypatch.setattr(run, "run_paired", lambda *arguments: report)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    result = invoke("gate", "paired", "--base", "HEAD")
    assert result.exit_code == code
    assert f"{outcome}: paired: " in result.stdout
    assert "GITHUB_STEP_SUMMARY" in error_line(result.stderr)


def test_pinned_times_come_from_the_recipe_that_the_baseline_names(
    tiny_bundle: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pinned and compared for real; what the times come to is not asked."""
    file = tmp_path / "class.json"
    settings = ("--lengths", "60,100", "--rounds", "6", "--new-tokens", "3", "--threads", "1", "--clock", "cpu")
    succeed("gate", "update", "baseline", tiny_bundle, "--baseline", file, "--reason", "first", *settings)
    body = json.loads(file.read_text())
    assert (body["workload"]["recipe"], len(body["work"])) == ("tiny", 2)
    built: list[str] = []

    def build(label: str, root: Path, recipe: str, out: Path, overrides: tuple[str, ...]) -> Path:
        built.append(recipe)
        return tiny_bundle

    monkeypatch.setattr(run.revision, "build", build)
    assert invoke("gate", "baseline", "--baseline", file).exit_code in (0, 1, 3)
    assert built == ["tiny"]
    body["workload"]["recipe"] = "another"
    file.write_text(json.dumps(body))
    assert "the baseline is of the bundle 'another'" in refused(2, "baseline", tiny_bundle, "--baseline", file)


def test_help_tells_the_exit_codes() -> None:
    for command in ("deterministic", "paired", "baseline", "all", "self-test"):
        said = " ".join(succeed("gate", command, "--help").split())
        assert "0 pass; 1 regression; 2 usage or environment; 3 inconclusive; 4 baseline missing" in said
