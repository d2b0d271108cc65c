"""ONNX Runtime sessions: the dense graph against the one that selects, and what prepacking may not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.bundles import LAYERS, PAGE_SIZE

from zipvl_serving.bundle import Bundle
from zipvl_serving.probes import probe_positions
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, open_session
from zipvl_serving.sessions.onnxruntime import OnnxRuntimeSession


@pytest.fixture(scope="module")
def session(tiny_bundle: Path) -> OnnxRuntimeSession:
    opened = open_session(Bundle.open(tiny_bundle), threads=1)
    assert isinstance(opened, OnnxRuntimeSession)
    return opened


def prompt(tokens: int, ratio: float) -> PrefillInputs:
    rng = np.random.default_rng()
    return PrefillInputs(
        input_ids=rng.integers(8, 40, tokens),
        position_ids=np.arange(tokens),
        probe_positions=probe_positions(tokens, 5, 3, 0),
        forced=np.arange(tokens) == tokens - 1,
        tau=0.5,
        ratio_min=ratio,
        ratio_max=ratio,
    )


@pytest.mark.parametrize("tokens", [1, 2, 37, 150])
def test_the_dense_graph_is_prefill_with_every_token(session: OnnxRuntimeSession, tokens: int) -> None:
    """Logits and KV of both graphs at a ratio floor of 1."""
    inputs = prompt(tokens, 1.0)
    dense = session.prefill(inputs, None)
    graph = session._graphs.pop("dense_prefill")
    try:
        selecting = session.prefill(inputs, None)  # as a bundle without the dense graph would
    finally:
        session._graphs["dense_prefill"] = graph
    np.testing.assert_allclose(dense.logits, selecting.logits, rtol=1e-4, atol=1e-4)
    assert dense.counts.tolist() == selecting.counts.tolist() == [tokens] * LAYERS
    for index, wanted in zip(dense.index, selecting.index, strict=True):
        assert index.dtype == np.int32
        assert index.tolist() == wanted.tolist() == list(range(tokens))
    for layer, wanted_layer in zip(dense.cache, selecting.cache, strict=True):
        for rows, wanted in zip(layer, wanted_layer, strict=True):
            assert rows.shape == wanted.shape
            np.testing.assert_allclose(rows, wanted, rtol=1e-4, atol=1e-4)


def test_only_a_floor_of_one_takes_the_dense_graph(
    session: OnnxRuntimeSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    for name in ("prefill", "dense_prefill"):
        graph = session._graphs[name]  # type: ignore[index]

        class Recorded:
            def run(self, names: object, feed: object, name: str = name, graph: object = graph) -> object:
                ran.append(name)
                return graph.run(names, feed)  # type: ignore[attr-defined]

        monkeypatch.setitem(session._graphs, name, Recorded())
    for ratio in (0.5, 0.999, 1.0):
        session.prefill(prompt(20, ratio), None)
    assert ran == ["prefill", "prefill", "dense_prefill"]


def test_packed_weights_decode_the_same(tiny_bundle: Path, session: OnnxRuntimeSession) -> None:
    """To rounding: packed or not, and one row without packed weights runs as two."""
    shape = session.bundle.manifest.model.shape
    rng = np.random.default_rng()
    pages = rng.standard_normal((2, 6, PAGE_SIZE, shape.kv_heads, shape.head_dim)).astype(np.float32)
    inputs = DecodeInputs(
        input_ids=np.array([9, 11]),
        position_ids=np.array([40, 41]),
        key_pages=pages[0],
        value_pages=pages[1],
        block_tables=np.tile(np.array([[0, 1], [2, 3]], dtype=np.int32), (LAYERS, 1, 1)),
        context=np.full((LAYERS, 2), PAGE_SIZE + 3, dtype=np.int32),
    )
    plain = open_session(Bundle.open(tiny_bundle), threads=1, prepack=False)
    assert (session.invariant_rows, plain.invariant_rows) == (1, 2)
    for packed, unpacked in zip(session.decode(inputs), plain.decode(inputs), strict=True):
        np.testing.assert_allclose(packed, unpacked, rtol=1e-4, atol=1e-4)
