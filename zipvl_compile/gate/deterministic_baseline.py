"""benchmarks/baselines/deterministic.json: the figures that every machine must come to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zipvl_compile.bench.fingerprint import fingerprint
from zipvl_compile.bundling.cache import tool_versions
from zipvl_compile.gate.baseline_file import BaselineFile
from zipvl_compile.gate.figures import Figure, compare
from zipvl_compile.gate.report import Report
from zipvl_serving.errors import InputError
from zipvl_serving.manifest import Manifest

FILE_NAME = "deterministic.json"
SOURCES = "zipvl-compile sources"
"""The manifest's digest of this project's code, among its tools."""
MAKE = "zipvl-compile gate update deterministic --reason TEXT"


class DeterministicBaseline(BaselineFile):
    """Figures by name; how far each may stray is said where it is made (gate/deterministic.py)."""

    bundle: str
    """The name of the bundle that was measured."""
    figures: dict[str, int | float]

    def values(self) -> dict[str, Any]:
        return dict(self.figures)


def judge(found: Mapping[str, Figure], manifest: Manifest, baseline: DeterministicBaseline) -> Report:
    """Every figure against the baseline; notes say what else differs."""
    report = Report(compare(found, baseline.figures), environment=fingerprint())
    if manifest.name != baseline.bundle:
        report.notes.append(f"the baseline is of the bundle {baseline.bundle!r}, this one is {manifest.name!r}")
    report.notes += stale_notes(manifest) + tool_notes(baseline.tools, tools_of(manifest))
    last = baseline.history[-1]
    report.context["deterministic baseline"] = f"{last.date}, revision {last.revision}: {last.reason}"
    return report


def tools_of(manifest: Manifest) -> dict[str, str]:
    """Versions of the tools that made a bundle, but for this project's own sources, which are what is gated."""
    return {tool: version for tool, version in manifest.tools.items() if not tool.startswith("zipvl-compile")}


def tool_notes(baseline: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """A line for every tool whose version is not the baseline's."""
    return [
        f"{tool}: the baseline was made with {baseline.get(tool, 'none')}, this bundle with {here.get(tool, 'none')}"
        for tool in sorted({*baseline, *here})
        if baseline.get(tool) != here.get(tool)
    ]


def stale_notes(manifest: Manifest) -> list[str]:
    """A line where a bundle was built by other sources than these: its figures are not theirs."""
    built, here = manifest.tools.get(SOURCES), tool_versions()[SOURCES]
    if built == here:
        return []
    return [f"the bundle was built by other sources, {built or 'unknown'}, than these, {here}: it does not show theirs"]


def check_fresh(manifest: Manifest) -> None:
    """InputError for a bundle that other sources built: a baseline is of this checkout."""
    for note in stale_notes(manifest):
        raise InputError(f"{note}; rebuild it, or name none")
