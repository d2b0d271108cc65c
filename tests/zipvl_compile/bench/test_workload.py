"""Workloads: those that ship load, and what is wrong with one is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import refusal

from zipvl_compile.bench.load import load_workload, workload_names, workloads_dir
from zipvl_compile.bench.workload import KINDS, TTFT, Mode, ServingLoad, Throughput, dump
from zipvl_compile.recipe.source import read_file
from zipvl_serving.errors import InputError

TTFT_HEAD = "name: w\nkind: ttft\nmodes: [dense]\nlengths: [8]\n"  # lines 1 to 4
SERVING_HEAD = "name: w\nkind: serving\nmodes: [dense]\n"  # lines 1 to 3
THROUGHPUT_HEAD = "name: w\nkind: throughput\nmodes: [dense]\nlengths: [8]\nkv_budget: 1MiB\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "w.yaml"
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", workload_names())
def test_what_ships_loads_by_its_name(name: str) -> None:
    kind = read_file(workloads_dir() / f"{name}.yaml").plain()["kind"]
    workload = load_workload(name, KINDS[str(kind)])
    assert workload.name == name
    assert type(workload).model_validate(dump(workload)) == workload


def test_defaults_overrides_and_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(TTFT_HEAD)
    file = write(tmp_path, "extends: base.yaml\nrounds: 3\nmodes: [dense, transformers, tau: 0.975]\n")
    workload = load_workload(file, TTFT, ["seed=7", "lengths=[4, 8]", "accuracy={questions: 3}", "input=scenes"])
    assert (workload.rounds, workload.warm_up, workload.seed, workload.lengths) == (3, 1, 7, [4, 8])
    assert [mode.name for mode in workload.modes] == ["dense", "transformers SDPA", "zipvl tau .975"]
    assert workload.accuracy is not None
    assert workload.accuracy.tasks == ["color"]
    ratios = load_workload(file, TTFT, ["modes=[{forced_ratio: 0.37}, {fixed_ratio: 1}]"]).modes
    assert ratios == [Mode(kind="forced_ratio", value=0.37), Mode(kind="fixed_ratio", value=1.0)]


def test_a_budget_is_bytes_or_a_share(tmp_path: Path) -> None:
    file = write(tmp_path, THROUGHPUT_HEAD)
    assert load_workload(file, Throughput).kv_budget == 1 << 20
    assert load_workload(file, Throughput, ["kv_budget=4096"]).kv_budget == 4096
    assert load_workload(file, Throughput, ["kv_budget=0.25"]).kv_budget == 0.25


LIST_OF_MODES = "must be a list of dense, transformers, tau: X, forced_ratio: X, fixed_ratio: X"
MISTAKES = [
    # text after the head (lines 1 to 4), then the start of the error line and what else it says
    (
        "round: 3",
        "w.yaml:5: round: unknown key; did you mean 'rounds'? valid: accuracy, breakdown, dense_below, extends",
    ),
    ("rounds: 0", "w.yaml:5: rounds: 0 is out of range; must be >= 1"),
    ("rounds: many", "w.yaml:5: rounds: 'many' is wrong; must be an integer >= 1"),
    ("breakdown: -1", "w.yaml:5: breakdown: -1 is out of range; must be >= 0"),
    ("seed: -1", "w.yaml:5: seed: -1 is out of range; must be >= 0"),
    ("dense_below: x", "w.yaml:5: dense_below: 'x' is wrong; must be an integer >= 0 or null"),
    ("input: scene", "w.yaml:5: input: 'scene' is not valid; did you mean 'scenes'? valid: random, scenes"),
    ("accuracy: {}", "w.yaml:5: accuracy: nobody can ask about random tokens; set input: scenes"),
    ("input: scenes\naccuracy: 3", "w.yaml:6: accuracy: 3 is wrong; must be a mapping; valid: questions, tasks"),
    ("input: scenes\naccuracy:\n  tasks: [colour]", "w.yaml:7: accuracy.tasks.0: 'colour' is not valid; did you mean"),
    (
        "input: scenes\naccuracy:\n  tasks: []",
        "w.yaml:7: accuracy.tasks: is empty; must be a list of one of color, count",
    ),
    ("input: scenes\naccuracy:\n  question: 3", "w.yaml:7: accuracy.question: unknown key; did you mean 'questions'?"),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES, ids=[text for text, _ in MISTAKES])
def test_mistakes(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, TTFT_HEAD + text + "\n")
    with refusal(InputError, expected):
        load_workload("w.yaml", TTFT)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("lengths=[]", "--set: lengths: is empty; must be a list of an integer >= 1"),
        ("lengths=[8, 4]", "--set: lengths: must ascend, each value once"),
        ("lengths=[4, 4]", "--set: lengths: must ascend, each value once"),
        ("lengths=[0]", "--set: lengths.0: 0 is out of range; must be >= 1"),
        ("lengths=[a]", "--set: lengths.0: 'a' is wrong; must be an integer >= 1"),
        ("lengths=8", "--set: lengths: 8 is wrong; must be a list of an integer >= 1"),
        ("modes=[]", f"--set: modes: is empty; {LIST_OF_MODES}"),
        ("modes=dense", f"--set: modes: 'dense' is wrong; {LIST_OF_MODES}"),
        ("modes=[{tau: 2}]", "--set: modes.0: tau: 2 is out of range; must be > 0 and <= 1"),
        ("modes=[tua]", "--set: modes.0: 'tua' is no mode; valid: dense, transformers, tau: X"),
        ("modes=[dense, dense]", "--set: modes: mode 'dense' is listed twice; keep one"),
        ("name=A B", "--set: name: 'A B' is wrong; must be a string matching ^[a-z0-9]"),
        (
            "kind=tfft",
            "--set: kind: 'tfft' is no kind of workload; did you mean 'ttft'? valid: serving, through",
        ),
        ("kind=throughput", "--set: kind: throughput is measured by `bench throughput`; this command takes a workload"),
        ("kind", "--set: kind: missing '='; write KEY=VALUE"),
    ],
)
def test_mistakes_in_overrides(override: str, expected: str, tmp_path: Path) -> None:
    with refusal(InputError, expected):
        load_workload(write(tmp_path, TTFT_HEAD), TTFT, [override])


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("kv_budget=0", "--set: kv_budget: 0 is no budget; must be bytes, a size such as 256MiB, or a share"),
        ("kv_budget=1.5", "--set: kv_budget: 1.5 is no budget"),
        ("kv_budget=2GB", "--set: kv_budget: '2GB' is no budget"),
        ("steps=7", "--set: steps: steps x (rounds + warm_up) is 77; must be below new_tokens - 1, which is 63"),
        (
            "new_tokens=56",
            "--set: new_tokens: steps x (rounds + warm_up) is 55; must be below new_tokens - 1",
        ),
        ("modes=[transformers]", "--set: modes: transformers has no paged cache to fill; it is a mode of ttft"),
    ],
)
def test_mistakes_in_throughput(override: str, expected: str, tmp_path: Path) -> None:
    with refusal(InputError, expected):
        load_workload(write(tmp_path, THROUGHPUT_HEAD), Throughput, [override])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rates: [1.0]", "w.yaml:4: rates: a closed process has no rate; set arrivals.process to constant, poisson"),
        ("arrivals:\n  rate: 2", "w.yaml:5: arrivals.rate: a closed process has no rate"),
        ("arrivals:\n  process: gamma", "w.yaml:5: arrivals.process: a gamma process needs rates, or arrivals.rate"),
        ("rates: [1]\narrivals: {process: poisson, rate: 1}", "w.yaml:4: rates: rates and arrivals.rate say the same"),
        (
            "arrivals: {process: poisson}\nrates: []",
            "w.yaml:5: rates: is empty; must be a list of a number > 0",
        ),
        ("arrivals: {process: poisson}\nrates: [2, 1]", "w.yaml:5: rates: must ascend, each value once"),
        ("concurrency: [2, 2]", "w.yaml:4: concurrency: must ascend, each value once"),
        (
            "rounds: 5\nrequests: 4",
            "w.yaml:5: requests: requests is 4, rounds 5; every round needs a request",
        ),
        ("rounds: 121", "w.yaml:4: rounds: requests is 120, rounds 121; every round needs a request of its own"),
        (
            "images:\n  low: 4\n  distribution: uniform",
            "w.yaml:5: images.low: high is null, low 4; a uniform distribution needs high >= low",
        ),
        (
            "new_tokens: {distribution: lognormal, low: 4, high: 3}",
            "w.yaml:4: new_tokens.high: high is 3, low 4; a lognormal distribution needs high >= low",
        ),
    ],
)
def test_mistakes_in_serving(text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, SERVING_HEAD + text + "\n")
    with refusal(InputError, expected):
        load_workload("w.yaml", ServingLoad)


def test_no_server_is_asked_for_transformers(tmp_path: Path) -> None:
    with refusal(InputError, "--set: modes: transformers cannot be asked of a server; it is a mode of ttft"):
        load_workload(write(tmp_path, SERVING_HEAD), ServingLoad, ["modes=[dense, transformers]"])


@pytest.mark.parametrize(
    ("text", "wanted", "expected"),
    [
        ("", TTFT, ":1: is empty; must be a mapping that starts with 'name: ...'"),
        ("name: w\nkind: ttft\nmodes: [dense]\n", TTFT, ":1: lengths: missing; must be a list of an integer >= 1"),
        ("name: w\nmodes: [dense]\nlengths: [8]\n", TTFT, ":1: kind: missing; must be one of ttft"),
        (
            TTFT_HEAD,
            ServingLoad,
            ":2: kind: ttft is measured by `bench ttft`; this command takes a workload of kind",
        ),
    ],
)
def test_mistakes_in_whole_files(text: str, wanted: Any, expected: str, tmp_path: Path) -> None:
    with refusal(InputError, expected):
        load_workload(write(tmp_path, text), wanted)


def test_a_name_that_nothing_has() -> None:
    with refusal(InputError, "tfft: no such workload file; did you mean 'ttft'? valid: "):
        load_workload("tfft", TTFT)
