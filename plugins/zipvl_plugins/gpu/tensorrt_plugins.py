"""Kernels inside TensorRT engines: every stage of an op is a quickly deployable plugin, `zipvl::<stage>`.

TensorRT asks a plugin for its outputs' types and shapes, for the ways to run it (its tactics: the stage's tunings) and
for the kernel, PTX that the engine then holds: no plugin library is shipped. All of it is read off the stage's Launch.

A plugin takes no optional input, no BOOL (NvInfer.h, PluginTensorDesc) and has no workspace: what an op has to be given
instead is said by its Face, in <op>/tensorrt_plugin.py.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any

from zipvl_plugins.gpu.ahead_of_time import Compiled, compile_launch
from zipvl_plugins.gpu.launch import Choose, Launch, Operand, Size, Stage, Tuning, best, plan
from zipvl_plugins.ops import OPS

NAMESPACE = "zipvl"
UNKNOWN = 64
"""Taken for every size while TensorRT asks for types alone and knows no size: any that a kernel exists for would do."""


@dataclass(frozen=True)
class Face:
    """An op as TensorRT sees it."""

    stages: tuple[Stage, ...]
    """Plugins that take the op's place, in order."""
    outputs: tuple[str, ...]
    """Names of the op's outputs among those of its stages."""
    attributes: Mapping[str, type] = field(default_factory=dict)
    """Types of the op's attributes that its stages take."""
    as_int32: tuple[str, ...] = ()
    """BOOL inputs, which the graph must cast."""
    zeros: Mapping[str, str] = field(default_factory=dict)
    """Optional inputs, which the graph must give as zeros where absent: as many as the named weight has rows."""


def face(op: str) -> Face:
    """An op's plugins; needs triton."""
    found: Face = importlib.import_module(f"zipvl_plugins.{op}.tensorrt_plugin").FACE
    return found


def plugin_names() -> list[str]:
    """All that `register` registers."""
    return [stage.name for op in OPS for stage in face(op).stages]


_registered_for: list[int] = []


def register(sm: int) -> None:
    """Register every op's plugins with TensorRT's registry of this process, for compute capability sm.

    A process registers once: ValueError where it did for another compute capability. Needs tensorrt and triton.
    """
    import numpy.typing  # noqa: F401 - tensorrt.plugin reads numpy.typing where a plugin has attributes, unimported

    if _registered_for == [sm]:
        return
    if _registered_for:
        raise ValueError(f"plugins are registered for sm_{_registered_for[0]}; engines for sm_{sm} need a new process")
    _registered_for.append(sm)
    for op in OPS:
        described = face(op)
        for stage in described.stages:
            Plugin(stage, {name: described.attributes[name] for name in stage.attributes}, sm).register()


class Plugin:
    """One stage's plugin for one compute capability."""

    def __init__(self, stage: Stage, attributes: Mapping[str, type], sm: int) -> None:
        self.stage = stage
        self.attributes = attributes
        self.sm = sm
        self._compiled: dict[Any, Compiled] = {}

    def register(self) -> None:
        """Hand TensorRT the three functions that it calls a quickly deployable plugin."""
        import tensorrt.plugin as trtp

        name = f"{NAMESPACE}::{self.stage.name}"
        tensors = dict.fromkeys(self.stage.inputs, trtp.TensorDesc)
        outputs = GenericAlias(tuple, (trtp.TensorDesc,) * len(self.stage.outputs))
        kernel = tuple[str, bytes, trtp.KernelLaunchParams, trtp.SymExprs]
        inputs = {**tensors, **self.attributes}
        trtp.register(name)(_typed(self.describe, inputs, outputs))
        trtp.autotune(name)(
            _typed(self.tactics, {**tensors, "outputs": outputs}, list[trtp.AutoTuneCombination]),
        )
        trtp.aot_impl(name)(_typed(self.kernel, {**inputs, "outputs": outputs, "tactic": int}, kernel))

    def describe(self, *arguments: Any) -> tuple[Any, ...]:
        """Inputs and attributes -> the outputs' types and shapes."""
        import tensorrt as trt
        import tensorrt.plugin as trtp

        launch, _ = self._plan(arguments, best)
        return tuple(trtp.from_shape_expr(out.shape, getattr(trt, out.dtype)) for out in launch.outputs)

    def tactics(self, *arguments: Any) -> list[Any]:
        """Inputs and outputs -> the types that the strongly typed network has, all linear, and every tuning."""
        import tensorrt.plugin as trtp

        *inputs, outputs = arguments
        types = ", ".join(_SPELLED.get(desc.dtype.name, desc.dtype.name) for desc in (*inputs, *outputs))
        tunings = self.stage.tunings(self.sm, *map(_operand, inputs))
        return [trtp.AutoTuneCombination(types, "LINEAR", list(range(1, len(tunings) + 1)))]

    def kernel(self, *arguments: Any) -> tuple[str, bytes, Any, Any]:
        """Inputs, attributes, outputs and tactic -> the kernel's name, its PTX, its grid and its scalars."""
        import tensorrt.plugin as trtp

        *given, _, tactic = arguments

        def choose(stage: Stage, tunings: Sequence[Tuning]) -> Tuning:
            return tunings[max(tactic, 1) - 1]  # 0 is TensorRT's default tactic

        launch, inputs = self._plan(given, choose)
        compiled = self._compile(launch, inputs)
        params = trtp.KernelLaunchParams(block_x=compiled.threads, shared_mem=compiled.dynamic_shared)
        for axis, size in zip("xyz", launch.grid, strict=False):
            setattr(params, f"grid_{axis}", size)
        scalars = trtp.SymIntExprs(len(launch.scalars))
        for place, scalar in enumerate(launch.scalars):
            scalars[place] = trtp.SymInt32(scalar)
        return compiled.name, compiled.ptx, params, scalars

    def _plan(self, arguments: Sequence[Any], choose: Choose) -> tuple[Launch, list[Operand]]:
        tensors = len(self.stage.inputs)
        inputs = [_operand(desc) for desc in arguments[:tensors]]
        attributes = dict(zip(self.attributes, arguments[tensors:], strict=True))
        return plan(self.stage, inputs, attributes, self.sm, choose), inputs

    def _compile(self, launch: Launch, inputs: Sequence[Operand]) -> Compiled:
        """Once for all layers that launch the same kernel: only sizes that it takes at run time may differ."""
        types = tuple(operand.dtype for operand in (*inputs, *launch.outputs))
        key = (launch.kernel, types, tuple(sorted(launch.constants.items())), launch.warps, launch.stages)
        if key not in self._compiled:
            self._compiled[key] = compile_launch(launch, inputs, self.sm)
        return self._compiled[key]


_SPELLED = {"FLOAT": "FP32", "HALF": "FP16"}
"""AutoTuneCombination's own names of two trt.DataType."""
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT32": "int32",
    "INT64": "int64",
}


def _operand(desc: Any) -> Operand:
    return Operand(_DTYPES[desc.dtype.name], tuple(map(_size, desc.shape_expr)))


def _size(size: Any) -> Size:
    """A number where TensorRT knows one, its expression where the dimension is dynamic."""
    if size.is_fake:
        return UNKNOWN
    return size.constant_value() if size.is_constant else size


def _typed(function: Callable[..., Any], parameters: Mapping[str, Any], returns: Any) -> Callable[..., Any]:
    """The function under a signature of its own: TensorRT reads names and types of a plugin's arguments off it."""

    def typed(*arguments: Any, **named: Any) -> Any:
        return function(*arguments, *(named[name] for name in parameters if name in named))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in parameters.items()]
    typed.__signature__ = inspect.Signature(signature, return_annotation=returns)  # type: ignore[attr-defined]
    return typed
