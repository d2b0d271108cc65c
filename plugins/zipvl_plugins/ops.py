"""The ops of the method and where each one's faces are. Adding an op is adding a folder and its name here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx
    import torch

OPS = (
    "probe_scores",
    "select_tokens",
    "gather_rows",
    "gather_projection",
    "projection_scatter",
    "sparse_attention",
    "paged_attention",
)

Executor = Literal["portable", "onnxruntime"]
"""Who executes the functions: any ONNX executor, or ONNX Runtime with its own operators."""


def reference(op: str) -> torch.library.CustomOpDef:
    """The PyTorch definition, registered as torch.ops.zipvl.<op>."""
    module = importlib.import_module(f"zipvl_plugins.{op}.reference")
    definition: torch.library.CustomOpDef = getattr(module, op)
    return definition


def onnx_function(op: str, executor: Executor = "portable") -> onnx.FunctionProto:
    """The ONNX function in domain `zipvl`; the executor's own body where the op has one."""
    module = importlib.import_module(f"zipvl_plugins.{op}.onnx_function")
    own = getattr(module, f"{executor}_function", None)
    function: onnx.FunctionProto = (own or module.function)()
    return function


def shape_attributes(op: str, *shapes: Sequence[int]) -> dict[str, int]:
    """Attributes of an op's ONNX node that come from its inputs' static dimensions; most ops have none."""
    module = importlib.import_module(f"zipvl_plugins.{op}.onnx_function")
    derive = getattr(module, "shape_attributes", None)
    return dict(derive(*shapes)) if derive else {}
