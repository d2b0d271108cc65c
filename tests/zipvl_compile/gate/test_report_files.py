"""What CI reads."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from helpers.bundles import names, refusal

from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_compile.gate.report_files import append_step_summary, clear, junit, summary, workflow_commands, write_reports
from zipvl_serving.errors import InputError

CASES = [
    Case("deterministic", "trace.steps", Outcome.PASSED, "wanted 5 (exactly), found 5", {"found": 5}),
    Case("deterministic", "nodes.prefill.If", Outcome.REGRESSED, "wanted 1 (exactly), found 2 <\x00&>"),
    Case("paired", "ttft at 8 tokens", Outcome.INCONCLUSIVE, "head | base 1.0,\n100 % of it"),
    Case("baseline", "baseline", Outcome.MISSING, "there is none"),
]


@pytest.fixture
def report() -> Report:
    return Report(list(CASES), ["a note"], {"base": "HEAD~1"}, {"cores": 2})


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([], 0),
        ([Outcome.PASSED], 0),
        ([Outcome.PASSED, Outcome.MISSING], 4),
        ([Outcome.MISSING, Outcome.INCONCLUSIVE], 3),
        ([Outcome.INCONCLUSIVE, Outcome.BROKEN, Outcome.MISSING], 2),
        ([Outcome.INCONCLUSIVE, Outcome.REGRESSED, Outcome.MISSING, Outcome.BROKEN], 1),
    ],
)
def test_the_worst_outcome_decides_the_exit_code(outcomes: list[Outcome], code: int) -> None:
    assert Report([Case("paired", str(at), outcome, "") for at, outcome in enumerate(outcomes)]).exit_code == code


def test_the_headline_counts(report: Report) -> None:
    assert report.headline() == "regressed: 1 of 4 figures (1 inconclusive, 1 missing)"
    assert Report(CASES[:1]).headline() == "passed: 1 of 1 figures"


def test_junit_parses_and_counts(report: Report) -> None:
    root = ElementTree.fromstring(junit(report))
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("4", "1", "2")
    assert [suite.get("name") for suite in root] == ["deterministic", "paired", "baseline"]
    assert [len(suite) for suite in root] == [2, 1, 1]
    (failure,) = root.iter("failure")
    assert failure.get("message") == "wanted 1 (exactly), found 2 <?&>"
    assert [error.get("type") for error in root.iter("error")] == ["inconclusive", "missing"]
    assert {case.get("classname") for case in root.iter("testcase")} == {
        "gate.deterministic",
        "gate.paired",
        "gate.baseline",
    }


def test_the_summary_shows_what_did_not_pass(report: Report) -> None:
    text = summary(report)
    assert text.startswith("## Gate: regressed: 1 of 4 figures")
    assert "trace.steps" not in text  # a deterministic figure that passed is only counted
    assert "| ttft at 8 tokens | **inconclusive** | head \\| base 1.0, 100 % of it |" in text
    assert "- a note\n- base: HEAD~1\n" in text


def test_workflow_commands_are_one_line_each(report: Report) -> None:
    assert list(workflow_commands(report)) == [
        "::error title=deterministic%3A nodes.prefill.If regressed::wanted 1 (exactly), found 2 <\x00&>",
        "::warning title=paired%3A ttft at 8 tokens inconclusive::head | base 1.0,%0A100 %25 of it",
        "::warning title=baseline%3A baseline missing::there is none",
    ]


def test_files_are_written_and_replaced(report: Report, tmp_path: Path) -> None:
    for _ in range(2):
        files = write_reports(report, tmp_path / "deep" / "out")
    assert names(tmp_path / "deep" / "out") == sorted(file.name for file in files)
    assert names(tmp_path / "deep" / "out") == ["junit.xml", "results.json", "summary.md"]
    body = json.loads((tmp_path / "deep" / "out" / "results.json").read_text())
    assert body["exit_code"] == 1
    assert body["cases"][0] == {**vars(CASES[0]), "outcome": "passed"}
    assert body["environment"] == {"cores": 2}


def test_reports_of_an_earlier_run_go_first(report: Report, tmp_path: Path) -> None:
    write_reports(report, tmp_path)
    (tmp_path / "theirs").write_text("")
    clear(tmp_path)
    assert names(tmp_path) == ["theirs"]
    with refusal(InputError, "is not a directory"):
        clear(tmp_path / "theirs")


def test_the_step_summary_grows(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "step"
    file.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(file))
    append_step_summary(report)
    assert file.read_text() == "before\n" + summary(report)
