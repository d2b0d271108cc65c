"""What TensorRT's builder asks a plugin, in its order; runs in the stub's process (`in_stub`)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from helpers.tensorrt_stub.fakes import Expression, ExpressionBuilder
from zipvl_plugins.gpu import tensorrt_plugins
from zipvl_plugins.gpu.ahead_of_time import Compiled
from zipvl_plugins.gpu.launch import Operand


@dataclass(frozen=True)
class Answer:
    """All that an engine keeps of a plugin, its symbolic sizes computed for given ones."""

    outputs: tuple[Operand, ...]
    types: tuple[str, ...]
    """Of inputs and outputs, as the plugin supports them."""
    tactics: tuple[int, ...]
    kernel: str
    ptx: bytes
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    scalars: tuple[int, ...]


def registered(sm: int) -> list[str]:
    """Register all plugins; their names in TensorRT's registry, with version and namespace."""
    import tensorrt as trt

    tensorrt_plugins.register(sm)
    return ["::".join(key) for key in trt.get_plugin_registry().creators]


def ask(
    op: str,
    operands: Mapping[str, Operand],
    attributes: Mapping[str, float],
    sizes: Mapping[str, int],
    *,
    sm: int,
    tactic: int = 0,
    compiled: bool = True,
) -> dict[str, Answer]:
    """Every plugin of an op. Dynamic sizes of the operands are names; `tactic` counts from 0, and starts over for a
    plugin that has fewer; `compiled`: by the real compiler."""
    tensorrt_plugins.register(sm)
    if compiled:
        with TemporaryDirectory() as folder, mock.patch.dict(os.environ, TRITON_CACHE_DIR=folder):
            return _ask(op, operands, attributes, sizes, tactic)
    nothing = Compiled("kernel", b"", b"", 0, 128, 0, 0, 0, 0, static_shared=0, dynamic_shared=0)
    with mock.patch.object(tensorrt_plugins.Plugin, "_compile", lambda *_: nothing):
        return _ask(op, operands, attributes, sizes, tactic)


def _ask(
    op: str, operands: Mapping[str, Operand], attributes: Mapping[str, float], sizes: Mapping[str, int], tactic: int
) -> dict[str, Answer]:
    known = {name: Operand(o.dtype, tuple(map(Expression.of, o.shape))) for name, o in operands.items()}
    answers = {}
    for stage in tensorrt_plugins.face(op).stages:
        inputs = [known[name] for name in stage.inputs]
        taken = {name: attributes[name] for name in stage.attributes}
        made, answers[stage.name] = _ask_one(stage.name, inputs, taken, sizes, tactic)
        known |= dict(zip(stage.outputs, made, strict=True))
    return answers


def _ask_one(
    name: str, inputs: Sequence[Operand], attributes: Mapping[str, float], sizes: Mapping[str, int], tactic: int
) -> tuple[list[Operand], Answer]:
    import tensorrt as trt

    builder = ExpressionBuilder()
    types = [getattr(trt, operand.dtype) for operand in inputs]
    dims = [list(operand.shape) for operand in inputs]
    plugin = _create(name, attributes)
    made_types = plugin.get_output_data_types(types, [len(shape) for shape in dims])
    made_dims = plugin.get_output_shapes(dims, [], builder)
    made = [
        Operand(str(np.dtype(trt.nptype(dtype))) if dtype != trt.bfloat16 else "bfloat16", tuple(shape))
        for dtype, shape in zip(made_types, made_dims, strict=True)
    ]
    descs = [_desc(dtype, shape) for dtype, shape in zip([*types, *made_types], [*dims, *made_dims], strict=True)]
    supported = plugin.get_supported_format_combinations(descs, len(inputs))
    assert len(supported) == len(descs) and all(each.format == trt.TensorFormat.LINEAR for each in supported)
    plugin.configure_plugin(descs[: len(inputs)], descs[len(inputs) :])
    tactics = sorted(plugin.get_valid_tactics())
    plugin.set_tactic(tactics[tactic % len(tactics)])
    launch, scalars = SimpleNamespace(), _Scalars()
    plugin.get_launch_params(dims, descs, len(inputs), launch, scalars, builder)
    plain = [desc.desc for desc in descs]
    kernel, ptx = plugin.clone().get_kernel(plain[: len(inputs)], plain[len(inputs) :])

    def number(symbol: Any) -> int:
        assert symbol.dtype == trt.PluginArgDataType.INT32
        return symbol.expr.evaluate(sizes)

    answer = Answer(
        outputs=tuple(Operand(o.dtype, tuple(size.evaluate(sizes) for size in o.shape)) for o in made),
        types=tuple(each.type.name for each in supported),
        tactics=tuple(tactics),
        kernel=kernel,
        ptx=ptx,
        grid=tuple(number(getattr(launch, f"grid_{axis}")) for axis in "xyz"),
        block=tuple(number(getattr(launch, f"block_{axis}")) for axis in "xyz"),
        shared=number(launch.shared_mem),
        scalars=tuple(number(scalars.given[place]) for place in range(scalars.nbSymExprs)),
    )
    return made, answer


def _create(name: str, attributes: Mapping[str, float]) -> Any:
    """As the ONNX parser does for a node with the attribute `aot`: a FLOAT comes as one float32."""
    import tensorrt as trt

    fields = [
        trt.PluginField(key, np.array([value], dtype=np.float32), trt.PluginFieldType.FLOAT32)
        for key, value in attributes.items()
    ]
    creator = trt.get_plugin_registry().get_creator(name, "1", "zipvl")
    assert {field.name for field in creator.field_names} == set(attributes)
    request = trt.QuickPluginCreationRequest.STRICT_AOT
    phase = trt.TensorRTPhase.BUILD
    return creator.create_plugin(name, "zipvl", trt.PluginFieldCollection(fields), phase, request)


def _desc(dtype: Any, shape: Sequence[Expression]) -> Any:
    import tensorrt as trt

    desc = trt.DynamicPluginTensorDesc()
    desc.desc.type = dtype
    desc.desc.format = trt.TensorFormat.LINEAR
    desc.desc.dims = trt.Dims([size.get_constant_value() if size.is_constant() else -1 for size in shape])
    return desc


class _Scalars:
    """TensorRT's ISymExprs."""

    nbSymExprs = 0  # noqa: N815 - TensorRT's name

    def __init__(self) -> None:
        self.given: dict[int, Any] = {}

    def __setitem__(self, place: int, symbol: Any) -> None:
        self.given[place] = symbol
