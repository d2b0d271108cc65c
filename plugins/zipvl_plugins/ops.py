"""The ops of the method and where each one's faces are. Adding an op is adding a folder and its name here."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from zipvl_plugins.gpu.launch import Choose, Stage, best, run_stage

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
"""Who executes the functions: any ONNX executor, or one for which some ops have a body of its own."""


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


def stages(op: str) -> tuple[Stage, ...]:
    """The op's GPU kernels, in order; needs triton."""
    found: tuple[Stage, ...] = importlib.import_module(f"zipvl_plugins.{op}.kernel").STAGES
    return found


def run_kernels(op: str, *arguments: Any, choose: Choose = best, **named: Any) -> Any:
    """The op by its GPU kernels, on CUDA tensors (or CPU tensors in Triton's interpreter): arguments and results as
    the reference's; `choose` takes one of every stage's tunings. Never waits for the device."""
    import torch

    reference(op)  # registers torch.ops.zipvl.<op>
    schema = getattr(torch.ops.zipvl, op).default._schema
    values = dict(zip((a.name for a in schema.arguments), arguments, strict=False)) | named
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            values[name] = value.contiguous()
    for stage in stages(op):
        made = run_stage(stage, [values[name] for name in stage.inputs], values, choose)
        values |= dict(zip(stage.outputs, made, strict=True))
    results = tuple(values[name] for name in outputs(op))
    return results if len(results) > 1 else results[0]


def outputs(op: str) -> tuple[str, ...]:
    """Names of the op's outputs, as its kernels' stages call them."""
    found: tuple[str, ...] = importlib.import_module(f"zipvl_plugins.{op}.kernel").OUTPUTS
    return found


def use_kernels() -> None:
    """From here on torch.ops.zipvl.<op> on CUDA tensors is the op's GPU kernels; needs triton."""
    for op in OPS:
        reference(op).register_kernel("cuda")(partial(run_kernels, op))
