"""Baselines change by hand, with a reason, and remember what they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.bundles import names, refusal
from helpers.gate import FakeSampler

from zipvl_compile.gate import baseline_file, pinned
from zipvl_compile.gate.deterministic_baseline import DeterministicBaseline, tool_notes
from zipvl_compile.gate.errors import BaselineMissingError, GateError
from zipvl_compile.gate.machine_class import MachineClass, processor_model
from zipvl_compile.gate.pinned import PinnedBaseline, Product, Workload
from zipvl_compile.gate.report import Outcome
from zipvl_serving.errors import InputError

MACHINE = MachineClass(processor="AMD EPYC(tm) 7B13", cores=2, backend="onnxruntime")
WORKLOAD = Workload(
    recipe="digits",
    figures=("ttft", "decode"),
    lengths=(8, 16),
    threads=1,
    new_tokens=4,
    clock="cpu",
    rounds=6,
    product=Product(),
)


def deterministic(**figures: int | float) -> DeterministicBaseline:
    return DeterministicBaseline(bundle="digits", tools={"onnx": "1"}, figures=figures, history=[])


def test_history_keeps_what_was_replaced(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "deterministic.json"
    first = deterministic(steps=5, gone=1.5, same=2).succeeding(None, " first ", "abc")
    baseline_file.write(file, first)
    read = baseline_file.read(file, DeterministicBaseline, "make")
    assert read == first
    second = deterministic(steps=4, new=7, same=2).succeeding(read, "fewer steps", "def")
    baseline_file.write(file, second)
    history = json.loads(file.read_text())["history"]
    assert [(entry["reason"], entry["revision"]) for entry in history] == [("first", "abc"), ("fewer steps", "def")]
    assert history[0]["replaced"] == {}
    assert history[1]["replaced"] == {"gone": 1.5, "new": None, "steps": 5}
    assert json.loads(file.read_text())["figures"] == {"steps": 4, "new": 7, "same": 2}
    assert names(file.parent) == ["deterministic.json"]


@pytest.mark.parametrize("reason", ["", "  ", "\n"])
def test_an_update_needs_a_reason(reason: str) -> None:
    with refusal(InputError, "--reason is empty"):
        deterministic(steps=5).succeeding(None, reason, "abc")


def test_a_missing_baseline_names_the_command(tmp_path: Path) -> None:
    with refusal(BaselineMissingError, tmp_path / "none.json", "zipvl-compile gate update"):
        baseline_file.read(tmp_path / "none.json", DeterministicBaseline, "zipvl-compile gate update deterministic")
    assert BaselineMissingError.exit_code == 4
    assert baseline_file.read_if_there(tmp_path / "none.json", DeterministicBaseline) is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "the file: "),
        ('{"schema_version": 2}', "schema_version: "),
        ('{"schema_version": 1, "tools": {}, "history": [], "bundle": "b", "figures": {"a": "x"}}', "figures.a"),
    ],
)
def test_a_broken_baseline_is_no_missing_one(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "broken.json"
    file.write_text(text)
    with refusal(InputError, file, part):
        baseline_file.read_if_there(file, DeterministicBaseline)


def test_tools_that_differ_are_named() -> None:
    assert tool_notes({"onnx": "1", "numpy": "1"}, {"onnx": "2", "numpy": "1", "torch": "3"}) == [
        "onnx: the baseline was made with 1, this bundle with 2",
        "torch: the baseline was made with none, this bundle with 3",
    ]


def test_the_machine_class_is_a_file_name() -> None:
    assert MACHINE.key == "amd-epyc-tm-7b13-2-cores-onnxruntime"


@pytest.mark.parametrize(
    ("named", "model"), [("AMD EPYC 7B13 x 2", "AMD EPYC 7B13"), ("arm", "arm"), ("Intel x Y x 8", "Intel x Y")]
)
def test_a_processor_goes_by_its_name(named: str, model: str) -> None:
    assert processor_model(named) == model


@pytest.mark.parametrize("named", ["", " ", " x 64"])
def test_a_processor_without_a_name_has_no_class(named: str) -> None:
    with refusal(GateError, "does not name its processor", "gate paired"):
        processor_model(named)


def pinned_baseline(sampler: FakeSampler) -> PinnedBaseline:
    work, samples = pinned.measure(sampler, WORKLOAD)
    return PinnedBaseline(tools={}, machine=MACHINE, workload=WORKLOAD, work=work, samples=samples, history=[])


def test_pinned_times_are_in_products(tmp_path: Path) -> None:
    baseline = pinned_baseline(FakeSampler(0.05, product_s=0.001)).succeeding(None, "first", "abc")
    baseline_file.write(tmp_path / "class.json", baseline)
    read = baseline_file.read(tmp_path / "class.json", PinnedBaseline, "make")
    assert set(read.samples) == {f"{figure} at {tokens} tokens" for figure in ("ttft", "decode") for tokens in (8, 16)}
    assert read.samples["ttft at 8 tokens"].relative == pytest.approx([50.0] * WORKLOAD.rounds)

    _, slower_clock = pinned.measure(FakeSampler(0.10, product_s=0.002), WORKLOAD)
    assert {case.outcome for case in pinned.verdicts(slower_clock, read, 0.2)} == {Outcome.PASSED}
    _, slower_code = pinned.measure(FakeSampler(0.065, product_s=0.001), WORKLOAD)
    cases = pinned.verdicts(slower_code, read, 0.2)
    assert {case.outcome for case in cases} == {Outcome.REGRESSED}
    assert "1.300" in cases[0].message


def test_history_of_pinned_times_keeps_medians() -> None:
    first = pinned_baseline(FakeSampler(0.05)).succeeding(None, "first", "abc")
    second = pinned_baseline(FakeSampler(0.04)).succeeding(first, "quicker select_tokens", "def")
    replaced = second.history[-1].replaced["ttft at 8 tokens"]
    assert replaced["seconds"]["median"] == pytest.approx(0.05)
    assert replaced["products"]["median"] == pytest.approx(50)


def test_pinned_times_are_of_one_bundle_and_one_product() -> None:
    baseline = pinned_baseline(FakeSampler())
    pinned.check(baseline, "digits")
    with refusal(InputError, "of the bundle 'digits', this one is 'digits-long'"):
        pinned.check(baseline, "digits-long")
    old = WORKLOAD.model_copy(update={"product": Product(numpy="1.20.0")})
    with refusal(GateError, "numpy 1.20.0", "gate update baseline"):
        pinned.check(baseline.model_copy(update={"workload": old}), "digits")


def test_pinned_times_are_of_the_same_work() -> None:
    baseline = pinned_baseline(FakeSampler())
    work, _ = pinned.measure(FakeSampler(kept=(4, 7)), WORKLOAD)
    notes = pinned.work_notes(work, baseline)
    assert [("[4, 7] on this bundle" in note, "[5, 7] on the baseline" in note) for note in notes] == [(True, True)] * 2
    work, _ = pinned.measure(FakeSampler(tokens=lambda length: length + 1), WORKLOAD)
    with refusal(GateError, "9 on this bundle and 8 on the baseline"):
        pinned.work_notes(work, baseline)
