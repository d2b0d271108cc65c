"""Figures that repeat do repeat, and one that strays is seen."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import onnx
import pytest
from helpers.bundles import LAYERS, MAX_INPUT_TOKENS, refusal

from zipvl_compile.gate import deterministic, trace
from zipvl_compile.gate.figures import Figure, compare
from zipvl_compile.gate.graph_nodes import count_nodes
from zipvl_compile.gate.report import Outcome
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.output.sampling import SamplingParams


@pytest.fixture(scope="module")
def figures(tiny_bundle: Path) -> dict[str, Figure]:
    return deterministic.measure(tiny_bundle)


def test_they_are_the_same_twice(figures: dict[str, Figure], tiny_bundle: Path) -> None:
    assert deterministic.measure(tiny_bundle) == figures


def test_they_are_what_the_bundle_says(figures: dict[str, Figure], tiny_bundle: Path) -> None:
    manifest = Bundle.open(tiny_bundle).manifest
    shape, limits = manifest.model.shape, manifest.limits
    assert figures["weights_bytes"].value == (tiny_bundle / str(manifest.engine.weights)).stat().st_size
    row = 2 * 4 * shape.kv_heads * shape.head_dim * LAYERS
    assert figures["kv_bytes_per_token.dense"].value == pytest.approx(row, rel=limits.page_size / MAX_INPUT_TOKENS)
    assert row * 0.37 <= figures["kv_bytes_per_token.forced"].value < row * 0.4
    assert figures["trace.pages_left"].value == 0
    kept = [figure for name, figure in figures.items() if name.startswith("kept_ratio.")]
    assert len(kept) == 2 * LAYERS
    assert all(0 < figure.value < 1 and figure.absolute == 0.005 for figure in kept)


def test_the_trace_queues_and_batches(figures: dict[str, Figure]) -> None:
    """Or its figures would not see a change of admission."""
    assert figures["trace.largest_batch"].value == trace.MAX_BATCH
    assert figures["trace.steps_to_first_token"].value > 0


def test_tokens_of_the_trace_are_those_that_came(
    figures: dict[str, Figure], tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "SamplingParams", partial(SamplingParams, stop=("e",)))
    counts = trace.run_trace(Generator(Bundle.open(tiny_bundle)))
    assert 0 < counts.tokens < figures["trace.tokens"].value


def test_a_trace_that_hangs_fails(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace.Scheduler, "step", lambda scheduler: None)
    with refusal(ZipvlError, tiny_bundle, "without tokens"):
        trace.run_trace(Generator(Bundle.open(tiny_bundle)))


def test_nodes_are_counted_by_graph_and_operator(figures: dict[str, Figure], tiny_bundle: Path) -> None:
    for graph in Bundle.open(tiny_bundle).manifest.engine.graphs:
        each = [f.value for name, f in figures.items() if name.startswith(f"nodes.{graph}.")]
        assert sum(each) == figures[f"nodes.{graph}"].value > 0


def test_nodes_in_branches_and_functions_count(tmp_path: Path) -> None:
    text = """
    <ir_version: 10, opset_import: ["" : 23, "zipvl" : 1]>
    g (float[4] x, bool c) => (float[4] y) {
        y = If (c) <
            then_branch = a () => (float[4] p) { p = zipvl.twice(x) },
            else_branch = b () => (float[4] q) { q = Neg(x) }
        >
    }
    <domain: "zipvl", opset_import: ["" : 23]>
    twice (v) => (w) { w = Add(v, v) }
    """
    onnx.save(onnx.parser.parse_model(text), tmp_path / "g.onnx")
    assert count_nodes(tmp_path / "g.onnx") == {"If": 1, "zipvl::twice": 1, "Neg": 1, "Add": 1}


@pytest.mark.parametrize(
    ("figure", "baseline", "allowed"),
    [
        (Figure(5), 5, True),
        (Figure(4), 5, False),  # a gain strays too
        (Figure(0.504, absolute=0.005), 0.5, True),
        (Figure(0.506, absolute=0.005), 0.5, False),
        (Figure(1009, relative=0.01), 1000, True),
        (Figure(1011, relative=0.01), 1000, False),
        (Figure(989, relative=0.01), 1000, False),
    ],
)
def test_allowances(figure: Figure, baseline: float, allowed: bool) -> None:
    (case,) = compare({"figure": figure}, {"figure": baseline})
    assert case.outcome is (Outcome.PASSED if allowed else Outcome.REGRESSED)


def test_figures_that_come_or_go_stray() -> None:
    cases = compare({"same": Figure(1), "new": Figure(2)}, {"same": 1, "gone": 3})
    assert [(case.figure, case.outcome) for case in cases] == [
        ("gone", Outcome.REGRESSED),
        ("new", Outcome.REGRESSED),
        ("same", Outcome.PASSED),
    ]
    assert "wanted 3" not in cases[0].message and "the baseline has 3" in cases[0].message
