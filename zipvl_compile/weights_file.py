"""safetensors files: check and read a header, and write a file one tensor at a time.

A file is an 8-byte little-endian header length, a JSON header that may end in blanks, and the tensors without holes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zipvl_serving.errors import ZipvlError

if TYPE_CHECKING:
    import torch

WEIGHTS_FILE = "weights.safetensors"
"""Its name in a bundle."""
_LENGTH_BYTES = 8
_PAGE = 4096
_CACHE_LINE = 64
_DTYPES = {  # safetensors' name: (numpy's and torch's name, bytes per element)
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
}


@dataclass(frozen=True)
class StoredTensor:
    """What a header says of one tensor; `dtype` is safetensors' spelling, such as "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by stored name, from its header alone.

    Raises ZipvlError (one line that names the file) when it cannot be read, is shorter or longer than its header
    says, or has a header that the safetensors library refuses.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH_BYTES)
            if prefix == b"version ":
                raise ZipvlError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
            start = _LENGTH_BYTES + int.from_bytes(prefix, "little")
            if len(prefix) < _LENGTH_BYTES or start > size:
                raise ZipvlError(f"{path} is truncated or damaged: no whole header in its {size} bytes")
            header = json.loads(file.read(start - _LENGTH_BYTES))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        declared = start + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if declared != size:
            raise ZipvlError(f"{path} is truncated or damaged: header says {declared} bytes, the file has {size}")
        with safe_open(path, framework="numpy"):  # checks dtypes, shapes and offsets against each other
            return {name: StoredTensor(entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except OSError as error:
        raise ZipvlError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise ZipvlError(f"{path} is truncated or damaged: its header is not one of safetensors") from error


def write_safetensors(
    path: Path,
    tensors: Iterable[tuple[str, str, tuple[int, ...], Callable[[], NDArray[Any] | torch.Tensor]]],
) -> dict[str, tuple[int, int]]:
    """Write (name, dtype, shape, make) tensors to `path`, calling each `make` just before its bytes are written.

    dtype is one of F32, F16, BF16, I64, I32; `make()` returns a numpy array or a torch tensor on any device of
    exactly that dtype and shape, and is dropped before the next call. The data starts at a multiple of 4096 bytes.
    The format allows no holes, so tensors are reordered: those of whole cache lines (64 bytes) come first, at
    multiples of 64, then the others, larger elements first, aligned to their elements.

    Returns {name: (absolute offset in the file, bytes)} in file order. Raises ValueError for a repeated name, an
    unsupported dtype, or an array that is not what was announced. Until all is written the file is called
    `<name>.partial`, which goes on any error; OSError (a full disk) passes through.
    """
    announced = list(tensors)
    for name, dtype, _, _ in announced:
        if dtype not in _DTYPES:
            raise ValueError(f"tensor {name!r} has dtype {dtype!r}; valid: {', '.join(_DTYPES)}")
    sizes = {name: math.prod(shape) * _DTYPES[dtype][1] for name, dtype, shape, _ in announced}
    if len(sizes) != len(announced):
        raise ValueError("two tensors have the same name")
    announced.sort(key=lambda tensor: (sizes[tensor[0]] % _CACHE_LINE != 0, -_DTYPES[tensor[1]][1]))

    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, dtype, shape, _ in announced:
        offsets[name] = end
        end += sizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offsets[name], end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    start = -(-(_LENGTH_BYTES + len(encoded)) // _PAGE) * _PAGE
    encoded = encoded.ljust(start - _LENGTH_BYTES)

    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little"))
            file.write(encoded)
            for name, dtype, shape, make in announced:
                file.write(_as_bytes(make(), name, _DTYPES[dtype][0], shape))
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return {name: (start + offset, sizes[name]) for name, offset in offsets.items()}


def _as_bytes(tensor: NDArray[Any] | torch.Tensor, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
    """The elements in row-major order, without a copy where they lie so already."""
    found = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if found != (dtype, tuple(shape)):
        raise ValueError(f"tensor {name!r} is {found[0]} {found[1]}, announced as {dtype} {tuple(shape)}")
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
    import torch

    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
