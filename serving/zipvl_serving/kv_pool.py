"""Paged KV cache: one pool of fixed-size pages that all layers of all sequences share.

Every (layer, sequence) owns ceil(rows / page_size) pages, so memory follows what each layer kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.errors import ZipvlError


@dataclass
class CachedSequence:
    """Pages and rows of one sequence, layer by layer."""

    blocks: list[list[int]]
    """Page ids of each layer, in order of their rows."""
    rows: list[int]
    """Rows in use of each layer."""


@dataclass
class KVPool:
    """Keys and values in pages.

    keys, values float32 [pages, page_size, kv_heads, head_dim]. Not safe for several threads: one thread steps.
    """

    keys: Array
    values: Array
    free: list[int] = field(default_factory=list)

    @classmethod
    def create(cls, budget_bytes: int, page_size: int, kv_heads: int, head_dim: int) -> KVPool:
        """A pool of as many pages as fit the budget, keys and values together."""
        pages = budget_bytes // page_bytes(page_size, kv_heads, head_dim)
        shape = (pages, page_size, kv_heads, head_dim)
        try:
            pool = cls(np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32))
        except (MemoryError, ValueError):
            raise ZipvlError(
                f"a KV cache of {budget_bytes} bytes cannot be allocated here; lower target.limits.kv_bytes"
            ) from None
        pool.free = list(range(pages - 1, -1, -1))
        return pool

    @property
    def page_size(self) -> int:
        return int(self.keys.shape[1])

    @property
    def pages(self) -> int:
        return int(self.keys.shape[0])

    @property
    def pages_used(self) -> int:
        return self.pages - len(self.free)

    def store(self, layers: list[tuple[Array, Array]]) -> CachedSequence:
        """Copy a prefill's keys and values [rows, kv_heads, head_dim] per layer into fresh pages.

        Raises ZipvlError, with nothing allocated, where the pool has too few free pages.
        """
        needed = sum(-(-len(keys) // self.page_size) for keys, _ in layers)
        if needed > len(self.free):
            raise ZipvlError(
                f"the KV cache needs {needed} pages of {self.page_size} tokens, {len(self.free)} of {self.pages} are "
                "free; raise target.limits.kv_bytes in the recipe"
            )
        sequence = CachedSequence([[] for _ in layers], [0] * len(layers))
        for layer, (keys, values) in enumerate(layers):
            for start in range(0, len(keys), self.page_size):
                page = self.free.pop()
                stop = min(start + self.page_size, len(keys))
                self.keys[page, : stop - start] = keys[start:stop]
                self.values[page, : stop - start] = values[start:stop]
                sequence.blocks[layer].append(page)
            sequence.rows[layer] = len(keys)
        return sequence

    def append(self, sequence: CachedSequence, keys: Array, values: Array) -> None:
        """Add one row to every layer: keys, values [layers, kv_heads, head_dim]."""
        wanting = sum(rows % self.page_size == 0 for rows in sequence.rows)
        if wanting > len(self.free):
            raise ZipvlError(
                f"the KV cache is full: {wanting} more pages are needed, {len(self.free)} of {self.pages} are free; "
                "raise target.limits.kv_bytes in the recipe or ask for fewer tokens"
            )
        for layer, rows in enumerate(sequence.rows):
            slot = rows % self.page_size
            if slot == 0:
                sequence.blocks[layer].append(self.free.pop())
            page = sequence.blocks[layer][-1]
            self.keys[page, slot], self.values[page, slot] = keys[layer], values[layer]
            sequence.rows[layer] = rows + 1

    def release(self, sequence: CachedSequence) -> None:
        """Give all pages of a sequence back; the sequence must not be used again."""
        for blocks in sequence.blocks:
            self.free.extend(reversed(blocks))
            blocks.clear()
        sequence.rows = [0] * len(sequence.rows)


def page_bytes(page_size: int, kv_heads: int, head_dim: int) -> int:
    """Bytes of one page, keys and values together."""
    return 2 * page_size * kv_heads * head_dim * np.dtype(np.float32).itemsize


def block_tables(sequences: list[CachedSequence]) -> tuple[Array, Array]:
    """Tables of a batch, int32: block ids [layers, batch, blocks], padded with page 0, and rows [layers, batch]."""
    layers = len(sequences[0].rows)
    width = max(len(blocks) for sequence in sequences for blocks in sequence.blocks)
    tables = np.zeros((layers, len(sequences), width), dtype=np.int32)
    for at, sequence in enumerate(sequences):
        for layer, blocks in enumerate(sequence.blocks):
            tables[layer, at, : len(blocks)] = blocks
    return tables, np.array([sequence.rows for sequence in sequences], dtype=np.int32).T.copy()
