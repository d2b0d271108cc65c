"""Pages of the KV pool in torch tensors, on a session's device."""

from __future__ import annotations

import math

import numpy as np
import torch

from zipvl_plugins.pages.reference import append_rows, store_rows
from zipvl_serving.arrays import Array
from zipvl_serving.errors import ZipvlError
from zipvl_serving.page_storage import ROOM, PageStorage


class DevicePages(PageStorage):
    """Zeroed pages of `shape` [pages, page_size, kv_heads, head_dim]; ZipvlError where there is no memory.

    Keys and values to write are tensors on the same device; page ids and slots come from the host, and nothing is
    read back.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        try:
            self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        except (RuntimeError, MemoryError):  # a CPU's allocator raises the former
            where = "here" if device.type == "cpu" else "on the GPU beside the weights"
            raise ZipvlError(ROOM.format(bytes=2 * math.prod(shape) * dtype.itemsize, where=where)) from None

    @torch.inference_mode()
    def store(self, page_ids: Array, keys: torch.Tensor, values: torch.Tensor) -> None:
        store_rows(self.keys, self.values, keys, values, put(page_ids, self.keys.device), len(keys))

    @torch.inference_mode()
    def append(self, page_ids: Array, slots: Array, keys: torch.Tensor, values: torch.Tensor) -> None:
        pages, places = (put(array, self.keys.device) for array in (page_ids, slots))
        append_rows(self.keys, self.values, keys, values, pages, places)


def put(array: Array, device: torch.device) -> torch.Tensor:
    """The array on a device, in order with its work; on a CPU the array itself."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device, non_blocking=True)
