"""The breakdown of a prefill: every kernel's time lands in the part that its node belongs to."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.bundles import LAYERS, build_recipe

from zipvl_compile.bench.breakdown import PARTS, SELECTION, Profiled, _named_by_part, _seconds
from zipvl_serving.bundle import Bundle
from zipvl_serving.probes import probe_positions
from zipvl_serving.sessions.base import PrefillInputs


def inputs(ratio: float, tokens: int = 90) -> PrefillInputs:
    ids = np.random.default_rng(0).integers(8, 40, tokens)
    forced = np.arange(tokens) == tokens - 1
    return PrefillInputs(ids, np.arange(tokens), probe_positions(tokens, 8, 8, 0), forced, 0.9, ratio, ratio)


@pytest.mark.parametrize(("ratio", "selects"), [(1.0, False), (0.4, True)])
def test_every_run_is_broken_down(tiny_bundle: Path, ratio: float, selects: bool) -> None:
    profiled = Profiled(Bundle.open(tiny_bundle), inputs(ratio), None, threads=1, spinning=False)
    for _ in range(3):
        profiled.run()
    runs = profiled.end()
    assert len(runs) == 3
    for parts in runs:
        assert tuple(parts) == PARTS
        for part in ("projections", "sparse_attention", "mlp", "rest"):
            assert parts[part] > 0, part
        for part in SELECTION:
            assert (parts[part] > 0) is selects, part


def test_nodes_are_named_by_their_part(tiny_bundle: Path) -> None:
    """Matrix products of each part, counted from the model's structure."""
    bundle = Bundle.open(tiny_bundle)
    wanted = {
        # gate, up and down; K of all tokens, Q, V and O of T; the probes' Q; the output head
        "prefill": {"mlp": 3 * LAYERS, "projections": 4 * LAYERS, "probe_scores": LAYERS},
        "dense_prefill": {"mlp": 3 * LAYERS, "projections": 4 * LAYERS},
    }
    for graph, gemms in wanted.items():
        model = onnx.load_from_string(_named_by_part(bundle.graph_path(graph)))  # type: ignore[arg-type]
        assert not model.functions
        found = Counter(node.name.split("/")[0] for node in model.graph.node if node.op_type == "Gemm")
        found.pop("rest", None)
        assert found == gemms
        assert {node.name.split("/")[0] for node in model.graph.node} <= set(PARTS)


def test_a_dense_layer_selects_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    """Its Q projection is of all tokens, not of probes."""
    bundle = Bundle.open(build_recipe(tiny_recipe, tmp_path / "bundle", "zipvl.dense_layers=1").bundle)
    model = onnx.load_from_string(_named_by_part(bundle.graph_path("prefill")))  # type: ignore[arg-type]
    found = Counter(node.name.split("/")[0] for node in model.graph.node if node.op_type == "Gemm")
    assert found["probe_scores"] == LAYERS - 1
    assert found["projections"] == 4 * LAYERS


def test_runs_are_told_apart_and_bodies_are_not_counted_twice() -> None:
    def event(name: str, ts: int, dur: int, cat: str = "Node") -> dict[str, object]:
        return {"name": name, "ts": ts, "dur": dur, "cat": cat}

    events = [
        event("mlp/1_kernel_time", 1, 5_000_000),
        event("model_run", 0, 6_000_000, "Session"),
        event("mlp/1_kernel_time", 10_000_000, 1_000_000),
        event("mlp/1_fence_before", 10_000_001, 7_000_000),
        event("inner/3_kernel_time", 11_000_003, 2_000_000),
        event("probe_scores/2_kernel_time", 11_000_002, 3_000_000),
        event("mlp/4/QuickGeluFusion/_kernel_time", 14_000_004, 500_000),
        event("Transpose_token_5_kernel_time", 14_600_000, 250_000),
        event("model_run", 9_999_999, 5_000_000, "Session"),
    ]
    nothing = dict.fromkeys(PARTS, 0.0)
    assert _seconds(events) == [
        nothing | {"mlp": 5.0, "between kernels": 1.0},
        nothing | {"probe_scores": 3.0, "mlp": 1.5, "rest": 0.25, "between kernels": 0.25},
    ]
