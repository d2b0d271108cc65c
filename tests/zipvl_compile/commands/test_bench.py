"""`bench` as users run it: a folder of results, one line for what is wrong, and what an interrupted run leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.bench import small_results
from helpers.bundles import names
from helpers.command_line import invoke, succeed

from zipvl_compile.bench.results import read_results
from zipvl_compile.bench.writer import PARTIAL_FILE
from zipvl_serving.errors import ZipvlError

QUICK = ("--set", "lengths=[40]", "--set", "rounds=2", "--set", "breakdown=0")
QUICK_THROUGHPUT = (*QUICK[:4], "--set", "steps=2", "--set", "new_tokens=12", "--set", "kv_budget=512KiB")


def test_ttft_of_a_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    shown = succeed("bench", "ttft", tiny_bundle, "--out", tmp_path / "out", *QUICK)
    assert "TTFT (ms)" in shown
    assert f"results: {tmp_path / 'out' / 'results.md'}" in shown.replace("\n", "")
    results = read_results(tmp_path / "out")
    assert results.kind == "ttft"
    assert results.baseline == "dense"
    assert {ratio.figure for ratio in results.ratios} == {"ttft_s", "prefill_s"}
    assert results.target.weights == "checkpoint"
    assert results.workload["lengths"] == [40]
    assert {"processor", "cores", "memory_bytes", "versions", "variables", "load_average"} <= set(results.environment)
    assert set(results.environment["load_average"]) == {"start", "end"}
    assert PARTIAL_FILE not in names(tmp_path / "out")
    assert results.notes[0].startswith("TTFT here is one request alone, from its encoded prompt")


def test_throughput_of_a_recipe_that_is_built_first(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert tiny_bundle.is_dir()  # it is in the cache
    printed = succeed("bench", "throughput", tiny_recipe, "--out", tmp_path, *QUICK_THROUGHPUT, "--json")
    body = json.loads(printed)
    assert body["kind"] == "throughput"
    assert body["target"]["source"] == str(tiny_recipe)
    assert body == json.loads((tmp_path / "results.json").read_text())
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def test_notes_say_what_the_figures_are_not(tiny_bundle: Path, tmp_path: Path) -> None:
    dense_below = ("--set", "dense_below=64", "--set", "input=random", "--set", "modes=[dense, transformers, tau: 0.5]")
    succeed("bench", "ttft", tiny_bundle, "--out", tmp_path, *QUICK, *dense_below)
    notes = read_results(tmp_path).notes
    assert "random token ids: ratios are those of noise, which the model was not trained on" in notes
    assert "zipvl tau .5 ran dense at 40 tokens: inputs below 64 do (dense_below)" in notes
    assert any(note.startswith("transformers computes the decoder with the bundle's weights") for note in notes)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("ttft", "nothing"), "nothing: no such bundle's directory or recipe file; "),
        (("ttft", "{empty}"), "not a bundle: it has no manifest.json"),
        (("ttft", "{bundle}", "--workload", "throughput"), "kind: throughput is measured by `bench throughput`"),
        (("throughput", "{bundle}", "--workload", "none"), "none: no such workload file; valid: "),
        (("ttft", "{bundle}", "--set", "rounds=0"), "--set: rounds: 0 is out of range"),
        (("ttft", "{bundle}", "--out", "{bundle}/out"), "lies inside the bundle"),
        (("ttft", "{bundle}", "--set", "lengths=[37, 72]"), "lengths: 37 and 72 are both 2 frames of 36 tokens each"),
        (("ttft", "{bundle}", "--set", "modes=[{forced_ratio: 0.5}]", "--set", "lengths=[8]"), "use fixed_ratio: 0.5"),
        (("compare", "{empty}", "{empty}"), "cannot be read (No such file or directory); expected the results of"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...], expected: str, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"{bundle}": str(tiny_bundle), "{empty}": str(tmp_path / "empty")}
    for name, place in places.items():
        arguments = tuple(argument.replace(name, place) for argument in arguments)
    result = invoke("bench", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line]
    assert line.startswith("error: ")
    assert expected in line


def test_an_interrupted_run_keeps_the_lengths_that_are_finished(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zipvl_compile.bench import run

    measure = run._measure

    def interrupted(*arguments: object) -> object:
        yield next(measure(*arguments))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_measure", interrupted)
    earlier = small_results().to_json()
    (tmp_path / "results.json").write_text(earlier)
    result = invoke("bench", "ttft", tiny_bundle, "--out", tmp_path, *QUICK, "--set", "lengths=[40, 80]")
    assert result.exit_code == 130
    assert f"note: what was finished until then is in {tmp_path / PARTIAL_FILE}" in result.stderr
    assert set(names(tmp_path)) == {PARTIAL_FILE, "results.json"}
    assert (tmp_path / "results.json").read_text() == earlier
    partial = read_results(tmp_path / PARTIAL_FILE)
    assert partial.notes[0] == "interrupted: not every length was measured"
    assert len({cell.at["tokens"] for cell in partial.cells}) == 1


def test_a_picture_that_cannot_be_drawn_costs_no_figure(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zipvl_compile.bench import plots

    def broken(*arguments: object) -> None:
        raise ZipvlError("no fonts")

    monkeypatch.setattr(plots, "draw_all", broken)
    result = invoke("bench", "ttft", tiny_bundle, "--out", tmp_path, *QUICK)
    assert result.exit_code == 1
    assert "no fonts" in result.stderr
    partial = read_results(tmp_path / PARTIAL_FILE)
    assert not any(note.startswith("interrupted") for note in partial.notes)
    assert partial.ratios and "end" in partial.environment["load_average"]


def test_compare(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(small_results().to_json())
    b.write_text(small_results(factor=2.0, workload={"rounds": 5}).to_json())
    result = invoke("bench", "compare", a, b)
    assert result.exit_code == 0
    assert "warning: A and B differ in workload.rounds" in result.stderr
    assert "B / A" in result.stdout and "2.000" in result.stdout
    assert "better" not in result.stdout and "worse" not in result.stdout
    pairs = json.loads(succeed("bench", "compare", a, b, "--json"))["pairs"]
    assert {(pair["mode"], pair["overlap"]) for pair in pairs} == {("dense", True), ("zipvl tau .9", False)}
