"""Weights of graphs: stored once in a safetensors file that every graph's initializers point into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from zipvl_compile.checkpoint.base import Weights
from zipvl_compile.weights_file import WEIGHTS_FILE, write_safetensors
from zipvl_serving.errors import InputError

TRANSPOSED = ".T"
_FLOATS = ("F32", "F16", "BF16", "F64")
_SAFETENSORS_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def fill_computed(graph: ir.Graph) -> None:
    """Give position-id buffers their data; they are counted, not learnt, and no checkpoint needs to hold them."""
    for name in open_weights(graph):
        value = graph.initializers[name]
        if name.endswith(".position_ids") and value.shape is not None:
            value.const_value = ir.tensor(np.arange(value.shape.numpy()[-1]).reshape(value.shape.numpy()), name=name)


def open_weights(graph: ir.Graph) -> list[str]:
    """Names of the initializers that still lack their data."""
    return [name for name, value in graph.initializers.items() if value.const_value is None]


def fold_transposes(graph: ir.Graph) -> None:
    """Store a weight the way a MatMul wants it, instead of transposing it when a session is made.

    The matrix transpose of an open initializer becomes an open initializer of its own, named with the suffix `.T`.
    """
    weights = set(open_weights(graph))
    for node in list(graph):
        swaps = node.op_type == "Transpose" and node.domain == "" and tuple(node.attributes["perm"].as_ints()) == (1, 0)
        source = node.inputs[0] if swaps else None
        if source is None or source.name not in weights or source.shape is None:
            continue
        result = node.outputs[0]
        swapped = ir.Value(name=source.name + TRANSPOSED, shape=ir.Shape(reversed(source.shape)), type=source.type)
        graph.initializers[str(swapped.name)] = swapped
        result.replace_all_uses_with(swapped)
        graph.remove(node, safe=True)
        if not source.uses():
            del graph.initializers[source.name]


def write_weights(
    weights: Weights, names: Iterable[str], path: Path, dtype: torch.dtype, on_tensor: Callable[[str], None]
) -> dict[str, tuple[int, int]]:
    """Copy tensors by canonical name (suffix `.T`: transposed) into one safetensors file, one at a time, as `dtype`.

    Returns the (offset, bytes) of each within the file.
    """

    def entry(name: str) -> tuple[str, str, tuple[int, ...], Callable[[], torch.Tensor]]:
        stored = name.removesuffix(TRANSPOSED)
        shape, held = weights.shape(stored), weights.dtype(stored)
        if held not in _FLOATS:
            raise InputError(f"tensor {stored!r} is stored as {held}; valid: {', '.join(_FLOATS)}")

        def load() -> torch.Tensor:
            on_tensor(name)
            tensor = weights.load(stored, dtype)
            return tensor if stored == name else tensor.t().contiguous()

        return name, _SAFETENSORS_DTYPE[dtype], shape if stored == name else shape[::-1], load

    return write_safetensors(path, (entry(name) for name in names))


def externalise(graph: ir.Graph, stored_name: Callable[[str], str], places: Mapping[str, tuple[int, int]]) -> None:
    """Point every open initializer at its tensor in the weights file and give it the checkpoint's name."""
    for name in open_weights(graph):
        value = graph.initializers[name]
        stored = stored_name(name)
        offset, length = places[stored]
        assert value.shape is not None and value.dtype is not None, name
        value.name = stored
        value.const_value = ir.ExternalTensor(
            WEIGHTS_FILE, offset, length, value.dtype, shape=value.shape, name=stored, base_dir=""
        )
