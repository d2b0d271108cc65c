"""The binary interface between graphs and runtime: every input and output, its dtype and shape.

The exporter writes graphs to this contract, sessions check them against it, docs/contract.md is its prose. A dimension
is a number, or a name where it differs from call to call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GraphName = Literal["vision", "prefill", "decode", "dense_prefill"]
GRAPHS: tuple[GraphName, ...] = ("vision", "prefill", "decode")
"""What every bundle has. `dense_prefill` runs prompts that keep every token, where a backend has it as a graph of its
own; elsewhere `prefill` does."""

Dtype = Literal["float32", "float16", "bfloat16"]
"""Of a model's weights and activations, and so of image features, keys and values."""
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Dim = int | str


@dataclass(frozen=True)
class TensorSpec:
    """One tensor at a graph's boundary."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph's boundary, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that its graphs' shapes depend on."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    image_channels: int
    image_height: int
    image_width: int
    tokens_per_image: int


def graph_spec(graph: GraphName, model: ModelShape, page_size: int, dtype: Dtype = "float32") -> GraphSpec:
    """The contract of one graph of a model whose weights are of `dtype`; pixels and logits are float32 in every one."""
    match graph:
        case "vision":
            return _vision(model, dtype)
        case "prefill":
            return _prefill(model, dtype)
        case "dense_prefill":
            return _dense_prefill(model, dtype)
        case "decode":
            return _decode(model, page_size, dtype)


def _vision(model: ModelShape, dtype: Dtype) -> GraphSpec:
    pixels = ("images", model.image_channels, model.image_height, model.image_width)
    return GraphSpec(
        inputs=(TensorSpec("pixel_values", "float32", pixels),),
        outputs=(TensorSpec("image_features", dtype, ("images", model.tokens_per_image, model.hidden)),),
    )


def _prefill(model: ModelShape, dtype: Dtype) -> GraphSpec:
    kept = []
    for layer in range(model.layers):
        rows = (f"cached_{layer}", model.kv_heads, model.head_dim)
        kept += [
            TensorSpec(f"index_{layer}", "int32", ("tokens",)),
            TensorSpec(f"key_{layer}", dtype, rows),
            TensorSpec(f"value_{layer}", dtype, rows),
        ]
    return GraphSpec(
        inputs=(
            TensorSpec("input_ids", "int64", ("tokens",)),
            TensorSpec("image_features", dtype, ("visual", model.hidden)),
            TensorSpec("position_ids", "int64", ("tokens",)),
            TensorSpec("probe_positions", "int64", ("probes",)),
            TensorSpec("forced", "bool", ("tokens",)),
            TensorSpec("tau", "float32", (1,)),
            TensorSpec("ratio_min", "float32", (1,)),
            TensorSpec("ratio_max", "float32", (1,)),
        ),
        outputs=(
            TensorSpec("logits", "float32", (model.vocabulary,)),
            TensorSpec("counts", "int32", (model.layers,)),
            *kept,
        ),
    )


def _dense_prefill(model: ModelShape, dtype: Dtype) -> GraphSpec:
    """The tensors of prefill that have a meaning where T is every token."""
    whole = _prefill(model, dtype)
    rows = [
        TensorSpec(tensor.name, dtype, ("tokens", *tensor.shape[1:]))
        for tensor in whole.outputs
        if tensor.name.startswith(("key_", "value_"))
    ]
    return GraphSpec(inputs=whole.inputs[:3], outputs=(whole.outputs[0], *rows))


def _decode(model: ModelShape, page_size: int, dtype: Dtype) -> GraphSpec:
    pages = ("pages", page_size, model.kv_heads, model.head_dim)
    rows = (model.layers, "batch", model.kv_heads, model.head_dim)
    return GraphSpec(
        inputs=(
            TensorSpec("input_ids", "int64", ("batch",)),
            TensorSpec("position_ids", "int64", ("batch",)),
            TensorSpec("key_pages", dtype, pages),
            TensorSpec("value_pages", dtype, pages),
            TensorSpec("block_tables", "int32", (model.layers, "batch", "blocks")),
            TensorSpec("context", "int32", (model.layers, "batch")),
        ),
        outputs=(
            TensorSpec("logits", "float32", ("batch", model.vocabulary)),
            TensorSpec("new_keys", dtype, rows),
            TensorSpec("new_values", dtype, rows),
        ),
    )
