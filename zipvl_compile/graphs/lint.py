"""Traps of the parsers that will read a graph, found before they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from zipvl_plugins.onnx_text import DOMAIN, PLUGIN_ATTRIBUTES


def lint(model: ir.Model, *, weights_open: bool = False) -> list[str]:
    """What is wrong with a graph, a line each; empty where nothing is.

    - a zipvl node without its function (no executor could run it) or without the plugin attributes (TensorRT's parser
      would take the function even where a plugin is registered);
    - a function named like an ONNX operator (TensorRT-RTX's parser dispatches by name alone);
    - a value inside a function without the function's prefix, or a node name there (that parser leaks both);
    - opset versions that differ between function and graph;
    - an initializer without data (unless `weights_open`: before the weights are placed), or a name defined twice.
    """
    found = []
    functions = {function.name: function for function in model.functions.values()}
    for node in model.graph:
        if node.domain != DOMAIN:
            continue
        if node.op_type not in functions:
            found.append(f"node {node.op_type}: no function of that name in the model")
        for key, value in PLUGIN_ATTRIBUTES.items():
            if key not in node.attributes or node.attributes[key].as_string() != value:
                found.append(f"node {node.op_type}: attribute {key} is not {value!r}")
    for function in functions.values():
        found += _lint_function(function, dict(model.opset_imports))
    for name, initializer in model.graph.initializers.items():
        if initializer.const_value is None and not weights_open:
            found.append(f"initializer {name}: has no data")
    defined = Counter(
        value.name
        for value in (
            *model.graph.inputs,
            *model.graph.initializers.values(),
            *(o for n in model.graph for o in n.outputs),
        )
        if value.name
    )
    found += [f"value {name}: defined {times} times" for name, times in defined.items() if times > 1]
    return found


def _lint_function(function: ir.Function, graph_opsets: dict[str, int]) -> Iterator[str]:
    if onnx.defs.has(function.name):
        yield f"function {function.name}: is named like an ONNX operator"
    for domain, version in function.opset_imports.items():
        if graph_opsets.get(domain) != version:
            yield f"function {function.name}: imports {domain or 'ai.onnx'} {version}, the graph does not"
    public = {value.name for value in (*function.inputs, *function.outputs)}
    for node in ir.traversal.RecursiveGraphIterator(function.graph):
        if node.name:
            yield f"function {function.name}: node {node.op_type} has a name, {node.name!r}"
        bodies = (a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH)
        for value in (*node.outputs, *(value for body in bodies for value in body.inputs)):
            if value.name and value.name not in public and not value.name.startswith(f"{function.name}_"):
                yield f"function {function.name}: value {value.name!r} lacks the prefix {function.name}_"
