"""An exported graph made ready for TensorRT's parser: every zipvl node becomes the plugins of its kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from zipvl_plugins.gpu.launch import Stage
from zipvl_plugins.gpu.tensorrt_plugins import face, plugin_names
from zipvl_plugins.onnx_text import DOMAIN, PLUGIN_ATTRIBUTES

AHEAD_OF_TIME = "aot"
"""Node attribute by which TensorRT's parser asks a plugin for its PTX, and never for Python at run time."""


def use_plugins(model: ir.Model) -> dict[str, str]:
    """Put plugins in the place of zipvl nodes and drop the functions; returns every plugin node's name and plugin.

    In this form tensors of T have n rows, at the graph's outputs too: the caches' rows at or after `counts[layer]` are
    undefined.
    """
    inputs_of = {function.name: [str(v.name) for v in function.inputs] for function in model.functions.values()}
    graph = model.graph
    casts: dict[ir.Value, ir.Value] = {}
    plugins: dict[str, str] = {}
    for node in [node for node in graph if node.domain == DOMAIN]:
        described = face(node.op_type)
        given: dict[str, Any] = dict(zip(inputs_of[node.op_type], node.inputs, strict=True))
        made: list[ir.Node] = []
        for name in described.as_int32:
            if given[name] not in casts:
                made.append(_to_int32(given[name]))
                casts[given[name]] = made[-1].outputs[0]
            given[name] = casts[given[name]]
        for name, weight in described.zeros.items():
            if given[name] is None:
                given[name] = _zeros(graph, given[weight])
        for stage in described.stages:
            plugin = _plugin(stage, f"{stage.name}_{len(plugins)}", given, node.attributes)
            plugins[str(plugin.name)] = stage.name
            made.append(plugin)
            given |= dict(zip(stage.outputs, plugin.outputs, strict=True))
        results = [given[name] for name in described.outputs]
        ir.convenience.replace_nodes_and_values(graph, node, [node], made, node.outputs, results)
    model.functions.clear()
    _cache_has_every_row(graph)
    return plugins


def lint_plugins(model: ir.Model) -> list[str]:
    """What is wrong with a prepared graph, a line each: TensorRT would refuse it, or take a node for something else."""
    known = plugin_names()
    found = [f"function {function.name}: is left" for function in model.functions.values()]
    wanted = {**PLUGIN_ATTRIBUTES, AHEAD_OF_TIME: 1}
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type not in known:
            found.append(f"node {node.op_type}: is no plugin")
        found += [f"node {node.op_type}: input {i} is absent" for i, value in enumerate(node.inputs) if value is None]
        for key, value in wanted.items():
            if key not in node.attributes or node.attributes[key].value != value:
                found.append(f"node {node.op_type}: attribute {key} is not {value!r}")
    return found


def _plugin(stage: Stage, name: str, given: Mapping[str, ir.Value], attributes: Mapping[str, ir.Attr]) -> ir.Node:
    fixed = ir.convenience.convert_attributes({**PLUGIN_ATTRIBUTES, AHEAD_OF_TIME: 1})
    own = [attributes[key] for key in stage.attributes]
    outputs = [ir.Value(name=f"{name}_{output}") for output in stage.outputs]
    return ir.Node(DOMAIN, stage.name, [given[key] for key in stage.inputs], [*own, *fixed], outputs=outputs, name=name)


def _to_int32(value: ir.Value) -> ir.Node:
    to = ir.AttrInt64("to", ir.DataType.INT32)
    return ir.Node("", "Cast", [value], [to], outputs=[ir.Value(name=f"{value.name}_int32")])


def _zeros(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """An initializer of a zero for every row of a weight, one for all weights of its height."""
    assert weight.shape is not None and weight.dtype is not None, weight.name
    rows = weight.shape.numpy()[0]
    name = f"no_bias_{rows}"
    if name not in graph.initializers:
        zeros = ir.tensor(np.zeros(rows, dtype=weight.dtype.numpy()), dtype=weight.dtype, name=name)
        value = ir.Value(name=name, shape=ir.Shape([rows]), type=ir.TensorType(weight.dtype), const_value=zeros)
        graph.register_initializer(value)
    return graph.initializers[name]


def _cache_has_every_row(graph: ir.Graph) -> None:
    """Say so in the shapes of outputs: `cached_<layer>` rows become `tokens`."""
    for value in graph.outputs:
        assert value.shape is not None
        dims = ["tokens" if str(dim).startswith("cached_") else dim for dim in value.shape]
        value.shape = ir.Shape(dims)
