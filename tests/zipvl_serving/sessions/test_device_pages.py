"""Pages in torch tensors hold what pages in numpy arrays hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.bundles import refusal

from zipvl_serving.errors import ZipvlError
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.page_storage import HostPages
from zipvl_serving.sessions.device_index import DeviceIndex
from zipvl_serving.sessions.device_pages import DevicePages

SHAPE = (40, 4, 2, 3)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_device_and_host_agree(dtype: str) -> None:
    rng = np.random.default_rng()
    host, device = KVPool(HostPages(SHAPE, dtype)), KVPool(DevicePages(SHAPE, getattr(torch, dtype), CPU))
    assert (device.pages, device.page_size, device.page_bytes) == (host.pages, host.page_size, host.page_bytes)
    sequences = []
    for rows in rng.integers(1, 14, (3, 2)).tolist():
        layers = [tuple(rng.standard_normal((2, count, 2, 3)).astype(dtype)) for count in rows]
        on_device = [tuple(torch.from_numpy(array) for array in layer) for layer in layers]
        sequences.append((host.store(layers), device.store(on_device)))
    for _ in range(5):
        keys, values = rng.standard_normal((2, 2, 5, 2, 3)).astype(dtype)  # two rows past the batch
        host.append([own for own, _ in sequences], keys, values)
        device.append([own for _, own in sequences], torch.from_numpy(keys), torch.from_numpy(values))
    assert np.array_equal(device.keys.numpy(), host.keys) and np.array_equal(device.values.numpy(), host.values)


def test_half_precision_that_numpy_lacks() -> None:
    pages = DevicePages(SHAPE, torch.bfloat16, CPU)
    rows = torch.randn(6, 2, 3).bfloat16()
    pages.store(np.array([7, 3], dtype=np.int32), rows, -rows)
    assert torch.equal(pages.keys[7], rows[:4]) and torch.equal(pages.values[3, :2], -rows[4:])


def test_a_cache_that_fits_nowhere_is_refused() -> None:
    with refusal(ZipvlError, f"{2 * 2**50 * 64} bytes", "cannot be allocated here", "target.limits.kv_bytes"):
        DevicePages((2**50, 4, 2, 4), torch.float16, CPU)


def test_an_index_comes_to_the_host_when_asked_for() -> None:
    tensors = [torch.arange(9, dtype=torch.int32), torch.arange(9, dtype=torch.int32) * 2]
    index = DeviceIndex(tensors, [3, 9])
    assert [tokens.tolist() for tokens in index] == [[0, 1, 2], list(range(0, 18, 2))]
    assert len(index) == 2 and index[-1].dtype == np.int32 and len(index[:1]) == 1
