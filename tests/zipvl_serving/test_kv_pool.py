"""The page pool against a plain dictionary: no page owned twice, none lost, every row read back as it was stored."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.bundles import refusal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from zipvl_serving.errors import ZipvlError
from zipvl_serving.kv_pool import CachedSequence, KVPool, block_tables, page_bytes

LAYERS, PAGES, PAGE_SIZE, ROW = 3, 12, 3, (2, 2)  # ROW: kv_heads, head_dim

Rows = list[tuple[np.ndarray, np.ndarray]]
"""Per layer, keys and values [rows, kv_heads, head_dim]."""


def make_pool() -> KVPool:
    return KVPool.create(PAGES * page_bytes(PAGE_SIZE, *ROW), PAGE_SIZE, *ROW)


def pages_for(rows: int) -> int:
    return -(-rows // PAGE_SIZE)


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow and go in any order; `model` says what each of them must hold."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool()
        self.model: dict[int, tuple[CachedSequence, Rows]] = {}
        self.names = itertools.count()
        self.numbers = itertools.count(1)

    def fresh(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values that nothing else in the pool has."""
        keys = np.array([next(self.numbers) for _ in range(rows * ROW[0] * ROW[1])], np.float32).reshape(rows, *ROW)
        return keys, -keys

    @rule(target=sequences, rows=st.lists(st.integers(0, 2 * PAGE_SIZE + 1), min_size=LAYERS, max_size=LAYERS))
    def store(self, rows: list[int]) -> object:
        layers = [self.fresh(count) for count in rows]
        if sum(map(pages_for, rows)) > len(self.pool.free):
            self.refuses_and_changes_nothing(lambda: self.pool.store(layers))
            return multiple()
        name = next(self.names)
        self.model[name] = self.pool.store(layers), layers
        return name

    @rule(name=sequences)
    def append(self, name: int) -> None:
        sequence, layers = self.model[name]
        keys, values = self.fresh(LAYERS)
        if sum(len(layer) % PAGE_SIZE == 0 for layer, _ in layers) > len(self.pool.free):
            self.refuses_and_changes_nothing(lambda: self.pool.append([sequence], keys[:, None], values[:, None]))
            return
        self.pool.append([sequence], keys[:, None], values[:, None])
        self.grow(layers, keys, values)

    @rule()
    def append_to_all(self) -> None:
        """A decode step: one row for every sequence at once."""
        batch = list(self.model.values())
        if not batch:
            return
        new = [self.fresh(LAYERS) for _ in batch]
        keys, values = (np.stack([rows[which] for rows in new], axis=1) for which in (0, 1))
        sequences = [sequence for sequence, _ in batch]
        wanting = sum(len(rows) % PAGE_SIZE == 0 for _, layers in batch for rows, _ in layers)
        if wanting > len(self.pool.free):
            self.refuses_and_changes_nothing(lambda: self.pool.append(sequences, keys, values))
            return
        self.pool.append(sequences, keys, values)
        for (_, layers), rows in zip(batch, new, strict=True):
            self.grow(layers, *rows)

    def grow(self, layers: Rows, keys: np.ndarray, values: np.ndarray) -> None:
        for layer, (old_keys, old_values) in enumerate(layers):
            grown = np.concatenate([old_keys, keys[layer, None]]), np.concatenate([old_values, values[layer, None]])
            layers[layer] = grown

    @rule(name=consumes(sequences))
    def release(self, name: int) -> None:
        sequence, _ = self.model.pop(name)
        self.pool.release(sequence)
        assert sequence.rows.tolist() == [0] * LAYERS and sequence.pages == 0

    def refuses_and_changes_nothing(self, call: object) -> None:
        before = list(self.pool.free), self.pool.keys.copy(), self.pool.values.copy()
        with refusal(ZipvlError, "KV cache", f"{len(self.pool.free)} of {PAGES} are free", "target.limits.kv_bytes"):
            call()
        assert self.pool.free == before[0]
        assert np.array_equal(self.pool.keys, before[1]) and np.array_equal(self.pool.values, before[2])

    @invariant()
    def every_page_has_one_owner(self) -> None:
        owned = [page for sequence, _ in self.model.values() for blocks in sequence.blocks for page in blocks]
        assert sorted(owned + self.pool.free) == list(range(PAGES))

    @invariant()
    def only_the_pages_needed_are_used(self) -> None:
        needed = sum(pages_for(len(keys)) for _, layers in self.model.values() for keys, _ in layers)
        assert self.pool.pages_used == needed <= self.pool.high_water

    @invariant()
    def everything_reads_back(self) -> None:
        if not self.model:
            return
        tables, rows = block_tables([sequence for sequence, _ in self.model.values()])
        assert tables.dtype == rows.dtype == np.int32
        assert tables.shape[:2] == rows.shape == (LAYERS, len(self.model))
        for at, (_, layers) in enumerate(self.model.values()):
            for layer, (keys, values) in enumerate(layers):
                blocks, count = tables[layer, at], rows[layer, at]
                assert count == len(keys)
                assert np.array_equal(self.pool.keys[blocks].reshape(-1, *ROW)[:count], keys)
                assert np.array_equal(self.pool.values[blocks].reshape(-1, *ROW)[:count], values)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_pool_has_as_many_pages_as_the_budget_holds() -> None:
    assert page_bytes(16, 2, 8) == 2 * 16 * 2 * 8 * 4
    for budget, pages in ((10 * 2048, 10), (10 * 2048 - 1, 9), (2047, 0)):
        pool = KVPool.create(budget, 16, 2, 8)
        assert (pool.pages, pool.pages_used, pool.page_size) == (pages, 0, 16)
        assert pool.keys.nbytes + pool.values.nbytes == pages * 2048


def test_a_released_sequence_gives_its_pages_back_once() -> None:
    pool = make_pool()
    rows = np.zeros((PAGE_SIZE, *ROW), np.float32)
    sequence = pool.store([(rows, rows)])
    pool.release(sequence)
    pool.release(sequence)
    assert sorted(pool.free) == list(range(PAGES))


@pytest.mark.parametrize("short", [0, 1])
def test_tables_of_a_batch_are_as_wide_as_its_longest_layer(short: int) -> None:
    pool = make_pool()
    rows = np.ones((2 * PAGE_SIZE + 1, *ROW), np.float32)
    batch = [pool.store([(rows[:short],) * 2] * 2), pool.store([(rows[:1],) * 2, (rows,) * 2])]
    tables, counts = block_tables(batch)
    assert tables.shape == (2, 2, 3)
    assert counts.tolist() == [[short, 1], [short, len(rows)]]
    assert tables[1, 1].tolist() == batch[1].blocks[1]
    assert (tables[0, 1, 1:] == 0).all() and (tables[:, 0, 1:] == 0).all()
