"""Decode steps on the tiny bundle: what a sequence gets does not depend on who else is in the batch."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
from helpers.bundles import LAYERS, PAGE_SIZE
from helpers.fake_session import text_prompt

from zipvl_serving.bundle import Bundle
from zipvl_serving.kv_pool import CachedSequence, KVPool
from zipvl_serving.method import MethodParams
from zipvl_serving.runner import Runner
from zipvl_serving.sessions.base import Session, open_session


@pytest.fixture(scope="module", params=[True, False], ids=["prepacked", "shared weights"])
def session(tiny_bundle: Path, request: pytest.FixtureRequest) -> Session:
    return open_session(Bundle.open(tiny_bundle), prepack=request.param)


def test_logits_are_the_same_bits_in_every_batch(session: Session) -> None:
    shape, rng = session.bundle.manifest.model.shape, np.random.default_rng()
    pool, runner = (
        KVPool.create(1 << 22, PAGE_SIZE, shape.kv_heads, shape.head_dim),
        Runner(session, session.bundle.manifest),
    )

    def cached(rows: int) -> CachedSequence:
        size = (rows, shape.kv_heads, shape.head_dim)
        keys, values = (rng.standard_normal(size).astype(np.float32) for _ in "kv")
        return pool.store([(keys, values)] * LAYERS)

    sequences = [cached(int(rows)) for rows in rng.integers(1, 90, 33)]
    tokens, positions = rng.integers(8, 40, 33).tolist(), rng.integers(1, 500, 33).tolist()

    def logits(rows: list[int]) -> np.ndarray:
        own_pool, own = copy.deepcopy((pool, [sequences[row] for row in rows]))  # a step adds rows
        return runner.decode(own_pool, own, [tokens[row] for row in rows], [positions[row] for row in rows])

    alone = [logits([row])[0] for row in range(33)]
    for size in (2, 3, 5, 8, 16, 33):
        rows = rng.permutation(33)[:size].tolist()
        for row, got in zip(rows, logits(rows), strict=True):
            assert np.array_equal(got, alone[row]), (size, row)


def test_a_lone_stream_may_run_as_one_row(session: Session) -> None:
    shape = session.bundle.manifest.model.shape
    pool = KVPool.create(1 << 20, PAGE_SIZE, shape.kv_heads, shape.head_dim)
    rows = np.random.default_rng().standard_normal((9, shape.kv_heads, shape.head_dim)).astype(np.float32)
    got = []
    for invariant in (True, False):
        runner = Runner(session, session.bundle.manifest, batch_invariant=invariant)
        sequence = pool.store([(rows, rows)] * LAYERS)
        got.append(runner.decode(pool, [sequence], [9], [20]))
        assert got[-1].shape == (1, shape.vocabulary)
        assert sequence.rows.tolist() == [10] * LAYERS
    np.testing.assert_allclose(got[0], got[1], atol=1e-4)


def test_no_prompt_leaves_more_rows_than_its_bound(session: Session) -> None:
    """The claim of a request rests on it; the graph rounds in float32, and not always as the host would."""
    runner = Runner(session, session.bundle.manifest)
    defaults = MethodParams.defaults(session.bundle.manifest.method)
    for ratio, tokens in (
        (0.15, 190),
        (0.004, 125),
        (0.5, 101),
        (0.37, 50),
        (0.0, 9),
        (1.0, 77),
        (0.999, 512),
        (0.1, 5),
    ):
        prompt = text_prompt([8 + place % 30 for place in range(tokens)])
        params = defaults.override(tau=1.0, ratio_max=ratio)
        result, _ = runner.prefill(prompt, None, params)
        for count, most in zip(result.counts, runner.most_rows(prompt, params), strict=True):
            assert count <= most <= count + 2, (ratio, tokens)
