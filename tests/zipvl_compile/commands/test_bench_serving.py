"""`zipvl-compile bench serving`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.command_line import invoke

from zipvl_compile.bench.load import load_workload
from zipvl_compile.bench.results import read_results
from zipvl_compile.bench.workload import ServingLoad

WORKLOAD = """
kind: serving
name: small
modes: [dense, {tau: 0.5}]
concurrency: [1, 2]
requests: 4
rounds: 2
warm_up: 1
new_tokens: {low: 4}
slo: {ttft_s: 60}
"""


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(WORKLOAD)
    return file


def test_one_command_serves_a_bundle_and_leaves_results(tiny_bundle: Path, workload: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("bench", "serving", tiny_bundle, "--workload", workload, "--out", out)
    assert result.exit_code == 0, result.output
    assert f"results: {out / 'results.md'}" in result.stdout
    names = {"results.json", "results.md", "requests.jsonl", "serving.png", "serving.svg"}
    assert {file.name for file in out.iterdir()} == names
    results = read_results(out)
    assert (results.kind, results.target.name, results.baseline) == ("serving", "tiny", "dense")
    assert [cell.at for cell in results.cells] == [{"concurrency": 1}] * 2 + [{"concurrency": 2}] * 2
    assert all(cell.facts["errors"] == {} and cell.facts["slo_attainment"] == 1 for cell in results.cells)
    lines = [json.loads(line) for line in (out / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == 16 and all(len(line["arrivals"]) <= 4 == line["tokens"] for line in lines)
    report = (out / "results.md").read_text()
    assert re.search(r"\| 1 concurrency \| zipvl tau \.5 \| 4 \| none \| \d+ \| 100\.0% \|", report)
    assert "goodput" in report and "![serving](serving.png)" in report


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nowhere"], 2, "no such folder, and no URL"),
        (["http://127.0.0.1:1"], 1, "http://127.0.0.1:1: no server answers"),
        (["http://127.0.0.1:1", "--set", "modes=[transformers]"], 2, "cannot be asked of a server"),
        (["{bundle}", "--set", "modes=[{forced_ratio: 0.5}]"], 2, "tiny is trained; use fixed_ratio: 0.5"),
        (["http://127.0.0.1:1", "--set", "kind=ttft"], 2, "bench ttft"),
        (["http://127.0.0.1:1", "--serve-set", "max_waiting"], 2, "NAME=VALUE was expected"),
        (["http://127.0.0.1:1", "--api-key-file", "nowhere"], 2, "the API keys cannot be read"),
        (["http://127.0.0.1:1", "--engine", "cuda"], 2, "cuda"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_bundle: Path, workload: Path, tmp_path: Path, arguments: list[str], code: int, part: str
) -> None:
    out = tmp_path / "out"
    given = [argument.replace("{bundle}", str(tiny_bundle)) for argument in arguments]
    result = invoke("bench", "serving", *given, "--workload", workload, "--out", out)
    assert result.exit_code == code, result.output
    assert part in result.stderr and result.stderr.count("\n") == 1
    assert not out.exists() or not list(out.iterdir())


def test_the_workload_that_ships_is_valid() -> None:
    shipped = load_workload("serving", ServingLoad)
    assert shipped.requests // shipped.rounds >= 4 * max(shipped.concurrency)  # no point is all ramps
