"""Paged KV cache: one pool of fixed-size pages that all layers of all sequences share.

Every (layer, sequence) owns ceil(rows / page_size) pages, so memory follows what each layer kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.contract import ITEM_BYTES
from zipvl_serving.errors import ZipvlError
from zipvl_serving.manifest import Manifest
from zipvl_serving.page_storage import HostPages, PageStorage
from zipvl_serving.sessions.base import Session


@dataclass
class CachedSequence:
    """Pages and rows of one sequence, layer by layer."""

    table: Array
    """int32 [layers, width], page ids of each layer in order of their rows; 0 past the layer's own pages."""
    rows: Array
    """int32 [layers], rows in use of each layer."""
    owned: list[int]
    """Pages of each layer."""

    @classmethod
    def empty(cls) -> CachedSequence:
        """A sequence that holds nothing."""
        return cls(np.zeros((0, 0), dtype=np.int32), np.zeros(0, dtype=np.int32), [])

    @property
    def pages(self) -> int:
        return sum(self.owned)

    @property
    def blocks(self) -> list[list[int]]:
        """Page ids of each layer."""
        return [self.table[layer, :count].tolist() for layer, count in enumerate(self.owned)]

    def _add(self, layer: int, page: int) -> None:
        width = self.table.shape[1]
        if self.owned[layer] == width:
            wider = np.zeros((len(self.owned), max(4, 2 * width)), dtype=np.int32)
            wider[:, :width] = self.table
            self.table = wider
        self.table[layer, self.owned[layer]] = page
        self.owned[layer] += 1


@dataclass
class KVPool:
    """Who owns which page of a storage. Not safe for several threads: one thread steps."""

    storage: PageStorage
    free: list[int] = field(default_factory=list)
    high_water: int = 0
    """Most pages ever in use at once."""

    def __post_init__(self) -> None:
        self.free = list(range(self.pages - 1, -1, -1))

    @classmethod
    def create(cls, budget_bytes: int, page_size: int, kv_heads: int, head_dim: int, dtype: str = "float32") -> KVPool:
        """A pool in this process's memory of as many pages as fit the budget, keys and values together."""
        pages = budget_bytes // page_bytes(page_size, kv_heads, head_dim, dtype)
        return cls(HostPages((pages, page_size, kv_heads, head_dim), dtype))

    @classmethod
    def of(cls, manifest: Manifest, session: Session) -> KVPool:
        """The pool that a bundle asks for, where its session keeps pages."""
        return cls(session.page_storage(manifest.limits.kv_bytes // page_bytes_of(manifest)))

    @property
    def keys(self) -> Any:
        """[pages, page_size, kv_heads, head_dim], of the kind that the session's decode takes; `values` alike."""
        return self.storage.keys

    @property
    def values(self) -> Any:
        return self.storage.values

    @property
    def page_size(self) -> int:
        return self.storage.page_size

    @property
    def pages(self) -> int:
        return self.storage.pages

    @property
    def pages_used(self) -> int:
        return self.pages - len(self.free)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, keys and values together."""
        return self.storage.page_bytes

    def pages_for(self, rows: int) -> int:
        """Pages that so many rows of one layer take."""
        return -(-rows // self.page_size)

    def store(self, layers: list[tuple[Any, Any]]) -> CachedSequence:
        """Copy a prefill's keys and values [rows, kv_heads, head_dim] per layer into fresh pages.

        Raises ZipvlError, with nothing allocated, where the pool has too few free pages.
        """
        owned = [self.pages_for(len(keys)) for keys, _ in layers]
        if sum(owned) > len(self.free):
            raise ZipvlError(
                f"the KV cache needs {sum(owned)} pages of {self.page_size} tokens, {len(self.free)} of {self.pages} "
                "are free; raise target.limits.kv_bytes in the recipe"
            )
        table = np.zeros((len(layers), max(owned)), dtype=np.int32)
        for layer, (keys, values) in enumerate(layers):
            pages = table[layer, : owned[layer]]
            pages[:] = self._take(owned[layer])
            self.storage.store(pages, keys, values)
        rows = np.array([len(keys) for keys, _ in layers], dtype=np.int32)
        return CachedSequence(table, rows, owned)

    def append(self, sequences: Sequence[CachedSequence], keys: Any, values: Any) -> None:
        """Add one row to every layer of each sequence: keys, values [layers, at least batch, kv_heads, head_dim].

        Raises ZipvlError, with nothing changed, where the pool has too few free pages.
        """
        rows = np.stack([sequence.rows for sequence in sequences], axis=1)
        wanting = np.argwhere(rows % self.page_size == 0)
        if len(wanting) > len(self.free):
            raise ZipvlError(
                f"the KV cache is full: {len(wanting)} more pages are needed, {len(self.free)} of {self.pages} are "
                "free; raise target.limits.kv_bytes in the recipe or ask for fewer tokens"
            )
        for (layer, at), page in zip(wanting.tolist(), self._take(len(wanting)), strict=True):
            sequences[at]._add(layer, page)
        blocks, slots = np.divmod(rows, self.page_size)
        layers = np.arange(len(rows))
        pages = np.stack([sequence.table[layers, blocks[:, at]] for at, sequence in enumerate(sequences)], axis=1)
        self.storage.append(pages, slots, keys, values)
        for sequence in sequences:
            sequence.rows += 1

    def release(self, sequence: CachedSequence) -> None:
        """Give all pages of a sequence back; the sequence must not be used again."""
        for blocks in sequence.blocks:
            self.free.extend(reversed(blocks))
        sequence.owned = [0] * len(sequence.owned)
        sequence.rows[:] = 0

    def _take(self, pages: int) -> list[int]:
        taken = self.free[len(self.free) - pages :]
        del self.free[len(self.free) - pages :]
        self.high_water = max(self.high_water, self.pages_used)
        return taken[::-1]


def page_bytes(page_size: int, kv_heads: int, head_dim: int, dtype: str = "float32") -> int:
    """Bytes of one page, keys and values together."""
    return 2 * page_size * kv_heads * head_dim * ITEM_BYTES[dtype]


def page_bytes_of(manifest: Manifest) -> int:
    """Bytes of one page of a bundle."""
    limits, shape = manifest.limits, manifest.model.shape
    return page_bytes(limits.page_size, shape.kv_heads, shape.head_dim, manifest.model.dtype)


def block_tables(sequences: Sequence[CachedSequence]) -> tuple[Array, Array]:
    """Tables of a batch, int32: block ids [layers, batch, blocks], padded with page 0, and rows [layers, batch]."""
    width = max(max(sequence.owned) for sequence in sequences)
    tables = np.zeros((len(sequences[0].rows), len(sequences), width), dtype=np.int32)
    for at, sequence in enumerate(sequences):
        own = sequence.table[:, :width]
        tables[:, at, : own.shape[1]] = own
    return tables, np.stack([sequence.rows for sequence in sequences], axis=1)
