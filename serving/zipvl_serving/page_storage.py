"""Where the pages of the KV pool lie: in this process's memory, or on a session's device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from zipvl_serving.arrays import Array
from zipvl_serving.errors import ZipvlError

ROOM = "a KV cache of {bytes} bytes cannot be allocated {where}; lower target.limits.kv_bytes"


class PageStorage(ABC):
    """Keys and values of all pages. Which page is whose is the pool's to say; nothing is checked here."""

    keys: Any
    """[pages, page_size, kv_heads, head_dim], of the kind that the session's decode takes; `values` alike."""
    values: Any

    @property
    def page_size(self) -> int:
        return int(self.keys.shape[1])

    @property
    def pages(self) -> int:
        return int(self.keys.shape[0])

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, keys and values together."""
        return int(2 * self.keys[:1].nbytes)

    @abstractmethod
    def store(self, page_ids: Array, keys: Any, values: Any) -> None:
        """Write one layer's rows [rows, kv_heads, head_dim] into pages int32 [ceil(rows / page_size)], in order."""

    @abstractmethod
    def append(self, page_ids: Array, slots: Array, keys: Any, values: Any) -> None:
        """Write one row for each layer and sequence.

        page_ids, slots int32 [layers, batch]; keys, values [layers, at least batch, kv_heads, head_dim]: rows past the
        batch are left out.
        """


class HostPages(PageStorage):
    """Pages in numpy arrays."""

    def __init__(self, shape: tuple[int, int, int, int], dtype: str = "float32") -> None:
        """Zeroed pages of `shape` [pages, page_size, kv_heads, head_dim]; ZipvlError where there is no memory."""
        try:
            self.keys, self.values = np.zeros(shape, dtype=dtype), np.zeros(shape, dtype=dtype)
        except (MemoryError, ValueError):
            size = 2 * int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
            raise ZipvlError(ROOM.format(bytes=size, where="here")) from None

    def store(self, page_ids: Array, keys: Array, values: Array) -> None:
        for pool, new in ((self.keys, keys), (self.values, values)):
            full = len(new) // self.page_size
            pool[page_ids[:full]] = new[: full * self.page_size].reshape(full, *pool.shape[1:])
            pool[page_ids[full:], : len(new) % self.page_size] = new[full * self.page_size :]

    def append(self, page_ids: Array, slots: Array, keys: Array, values: Array) -> None:
        batch = page_ids.shape[1]
        self.keys[page_ids, slots], self.values[page_ids, slots] = keys[:, :batch], values[:, :batch]
