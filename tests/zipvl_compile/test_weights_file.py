"""The safetensors writer against the safetensors library, and the header's checks."""

from __future__ import annotations

import errno
import json
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zipvl_compile.weights_file import StoredTensor, read_header, write_safetensors
from zipvl_serving.errors import ZipvlError

TORCH_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


def example(dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.arange(max(1, int(np.prod(shape))))[: int(np.prod(shape))] - 3
    return values.reshape(shape).to(TORCH_DTYPES[dtype])


@pytest.mark.parametrize("as_numpy", [False, True])
def test_the_library_reads_every_dtype_and_shape_at_the_returned_offsets(tmp_path: Path, as_numpy: bool) -> None:
    shapes = [(), (0, 4), (1,), (3, 5), (32, 2), (8,)]
    tensors = {f"{dtype}{shape}": (dtype, example(dtype, shape)) for dtype in TORCH_DTYPES for shape in shapes}

    def made(dtype: str, tensor: torch.Tensor) -> Any:
        if not as_numpy:
            return tensor
        return tensor.float().numpy().astype(ml_dtypes.bfloat16) if dtype == "BF16" else tensor.numpy()

    path = tmp_path / "weights.safetensors"
    where = write_safetensors(
        path, [(name, dtype, tuple(t.shape), partial(made, dtype, t)) for name, (dtype, t) in tensors.items()]
    )

    assert sorted(where) == sorted(tensors)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    content = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        assert sorted(file.keys()) == sorted(tensors)
        for name, (_, tensor) in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == tensor.dtype and torch.equal(read, tensor), name
            offset, size = where[name]
            assert content[offset : offset + size] == tensor.reshape(-1).view(torch.uint8).numpy().tobytes(), name
            assert offset % (64 if size % 64 == 0 else tensor.itemsize) == 0, name
    assert read_header(path) == {n: StoredTensor(d, tuple(t.shape)) for n, (d, t) in tensors.items()}


@pytest.mark.parametrize("count", [0, 1, 5, 60, 200])
def test_data_starts_on_a_page(tmp_path: Path, count: int) -> None:
    path = tmp_path / "weights.safetensors"
    where = write_safetensors(
        path, [(f"t{i}", "F16", (2, 2), lambda: np.ones((2, 2), np.float16)) for i in range(count)]
    )
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert start % 4096 == 0
    assert min((offset for offset, _ in where.values()), default=start) == start
    assert len(read_header(path)) == count


def test_views_are_written_row_major(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    path = tmp_path / "weights.safetensors"
    write_safetensors(
        path,
        [
            ("torch", "F32", (4, 3), base.T.requires_grad_),
            ("numpy", "F32", (4, 3), lambda: base.numpy().T),
            ("strided", "F32", (3, 2), lambda: base[:, ::2]),
        ],
    )
    with safe_open(path, framework="pt") as file:
        assert torch.equal(file.get_tensor("torch"), base.T)
        assert torch.equal(file.get_tensor("numpy"), base.T)
        assert torch.equal(file.get_tensor("strided"), base[:, ::2])


def test_one_tensor_is_alive_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray[Any, Any]]] = []

    def make() -> np.ndarray[Any, Any]:
        assert all(ref() is None for ref in made)
        made.append(weakref.ref(array := np.zeros(1000, np.float32)))
        return array

    write_safetensors(tmp_path / "weights.safetensors", [(f"t{i}", "F32", (1000,), make) for i in range(3)])
    assert len(made) == 3


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("x", "F8_E4M3", (1,))], "tensor 'x' has dtype 'F8_E4M3'; valid: F32, F16, BF16, I64, I32"),
        ([("x", "F32", (1,)), ("x", "F32", (1,))], "two tensors have the same name"),
        ([("x", "F16", (1,))], r"tensor 'x' is float32 \(1,\), announced as float16 \(1,\)"),
        ([("x", "F32", (1, 1))], r"tensor 'x' is float32 \(1,\), announced as float32 \(1, 1\)"),
    ],
)
def test_announcements_are_checked(tmp_path: Path, tensors: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "w", [(*tensor, lambda: np.zeros(1, np.float32)) for tensor in tensors])
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_the_callers_to_report(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(b"earlier")
    (tmp_path / "w.partial").symlink_to("/dev/full")
    with pytest.raises(OSError) as caught:
        write_safetensors(path, [("x", "F32", (1,), lambda: np.zeros(1, np.float32))])
    assert caught.value.errno == errno.ENOSPC
    assert [entry.name for entry in tmp_path.iterdir()] == ["w"]
    assert path.read_bytes() == b"earlier"


def _file(header: bytes, data: int = 4) -> bytes:
    return len(header).to_bytes(8, "little") + header + bytes(data)


def _entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> bytes:
    return json.dumps({"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


NOT_SAFETENSORS = "is truncated or damaged: its header is not one of safetensors"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated or damaged: no whole header in its 0 bytes"),
        (b"1234567", "is truncated or damaged: no whole header in its 7 bytes"),
        (_file(_entry())[:30], "is truncated or damaged: no whole header in its 30 bytes"),
        (_file(_entry(), 3), f"truncated or damaged: header says {len(_file(_entry()))} bytes, the file has"),
        (_file(_entry(), 5), f"truncated or damaged: header says {len(_file(_entry()))} bytes, the file has"),
        (_file(b"{", 0), NOT_SAFETENSORS),
        (_file(b"\xff\xfe", 0), NOT_SAFETENSORS),
        (_file(b"[]", 0), NOT_SAFETENSORS),
        (_file(b'{"x": 1}', 0), NOT_SAFETENSORS),
        (_file(_entry(shape=(2,))), NOT_SAFETENSORS),
        (_file(_entry(dtype="float")), NOT_SAFETENSORS),
        (_file(_entry(offsets=(0, "4"))), "truncated or damaged"),
        (_file(_entry(offsets=(4, 8)), 8), NOT_SAFETENSORS),
        (_file(_entry(shape=(-1,))), NOT_SAFETENSORS),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ZipvlError) as caught:
        read_header(path)
    assert message in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_of_a_real_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.bfloat16)}, path)
    content = path.read_bytes()
    assert len(read_header(path)) == 2
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ZipvlError, match="truncated or damaged"):
            read_header(path)
