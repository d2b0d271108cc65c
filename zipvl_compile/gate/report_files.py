"""A report as CI wants it: JUnit XML, Markdown, JSON with the raw samples, annotations of GitHub's."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from zipvl_compile.bench.writer import check_folder, put_files
from zipvl_compile.gate.report import Case, Outcome, Report
from zipvl_serving.errors import ZipvlError

_NOT_IN_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ANNOTATED = {
    Outcome.REGRESSED: "error",
    Outcome.BROKEN: "error",
    Outcome.INCONCLUSIVE: "warning",
    Outcome.MISSING: "warning",
}
_FILES = ("junit.xml", "summary.md", "results.json")


def clear(folder: Path) -> None:
    """Make the folder, without the reports of an earlier run: what dies must not leave those as its own.

    InputError where it cannot be a folder, ZipvlError where it cannot be written.
    """
    check_folder(folder)
    try:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ZipvlError(f"{folder}: cannot be written: {error.strerror or error}") from None


def write_reports(report: Report, folder: Path) -> list[Path]:
    """junit.xml, summary.md and results.json under `folder`, each put there whole; ZipvlError where one cannot be."""
    texts = dict(zip(_FILES, (junit(report), summary(report), results(report)), strict=True))
    put_files(folder, {name: text.encode() for name, text in texts.items()})
    return [folder / name for name in texts]


def append_step_summary(report: Report) -> None:
    """Add the Markdown to the file that GitHub Actions names in $GITHUB_STEP_SUMMARY, where it does."""
    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    try:
        with Path(place).open("a", encoding="utf-8") as stream:
            stream.write(summary(report))
    except OSError as error:
        raise ZipvlError(f"GITHUB_STEP_SUMMARY={place}: cannot be written: {error.strerror or error}") from None


def junit(report: Report) -> str:
    """One suite a section and one case a figure: a regression is a failure, what could not be decided an error."""
    root = ElementTree.Element("testsuites", {"name": "zipvl-compile gate", **_counts(report.cases)})
    for section, cases in report.sections.items():
        suite = ElementTree.SubElement(root, "testsuite", {"name": section, **_counts(cases)})
        for case in cases:
            node = ElementTree.SubElement(suite, "testcase", classname=f"gate.{section}", name=_xml(case.figure))
            if case.outcome is not Outcome.PASSED:
                kind = "failure" if case.outcome is Outcome.REGRESSED else "error"
                said = ElementTree.SubElement(node, kind, type=case.outcome, message=_xml(case.message))
                said.text = _xml(case.message)
            else:
                ElementTree.SubElement(node, "system-out").text = _xml(case.message)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def summary(report: Report) -> str:
    """Markdown: the headline, what did not pass, then every timed figure; deterministic ones that passed as a count."""
    lines = [f"## Gate: {report.headline()}", ""]
    for section, cases in report.sections.items():
        passed = [case for case in cases if case.outcome is Outcome.PASSED]
        shown = [case for case in cases if case.outcome is not Outcome.PASSED or section != "deterministic"]
        lines += [f"### {section}: {len(passed)} of {len(cases)} passed", ""]
        if shown:
            lines += ["| figure | outcome | numbers |", "|---|---|---|"]
            lines += [f"| {_cell(case.figure)} | {_shown(case.outcome)} | {_cell(case.message)} |" for case in shown]
            lines.append("")
    lines += [f"- {note}" for note in report.notes]
    lines += [f"- {name}: {value}" for name, value in report.context.items()]
    return "\n".join(lines).rstrip() + "\n"


def results(report: Report) -> str:
    """JSON of everything, raw samples included."""
    body = {
        "schema_version": 1,
        "exit_code": report.exit_code,
        "headline": report.headline(),
        "context": report.context,
        "notes": report.notes,
        "environment": report.environment,
        "cases": [asdict(case) for case in report.cases],
    }
    return json.dumps(body, indent=1) + "\n"


def workflow_commands(report: Report) -> Iterator[str]:
    """Workflow commands of GitHub Actions, one for each figure that did not pass."""
    for case in report.cases:
        if case.outcome in _ANNOTATED:
            title = _escaped(f"{case.section}: {case.figure} {case.outcome}", ":,")
            yield f"::{_ANNOTATED[case.outcome]} title={title}::{_escaped(case.message)}"


def _counts(cases: list[Case]) -> dict[str, str]:
    failures = sum(case.outcome is Outcome.REGRESSED for case in cases)
    errors = sum(case.outcome not in (Outcome.PASSED, Outcome.REGRESSED) for case in cases)
    return {"tests": str(len(cases)), "failures": str(failures), "errors": str(errors)}


def _shown(outcome: Outcome) -> str:
    return str(outcome) if outcome is Outcome.PASSED else f"**{outcome}**"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _xml(text: str) -> str:
    return _NOT_IN_XML.sub("?", text)


def _escaped(text: str, also: str = "") -> str:
    for character in ("%", "\r", "\n", *also):
        text = text.replace(character, f"%{ord(character):02X}")
    return text
