"""Torch programs to ONNX graphs that meet the contract; no weight is ever materialised here.

Initializers come out as names, which `weights.externalise` then points into the bundle's weights file.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import onnx_ir as ir
import torch
from onnx_ir.passes import Sequential, common
from onnxscript.optimizer._constant_folding import FoldConstantsPass
from torch._subclasses.fake_tensor import FakeTensor

from zipvl_compile.graphs.nodes import translation_table
from zipvl_compile.graphs.trace import trace
from zipvl_compile.graphs.weights import fill_computed, fold_transposes
from zipvl_plugins import ops
from zipvl_plugins.onnx_text import DOMAIN, OPSET
from zipvl_serving.contract import GraphSpec, TensorSpec


def export_graph(
    build: Callable[[], torch.nn.Module], spec: GraphSpec, executor: ops.Executor = "portable"
) -> ir.Model:
    """Trace the module that `build` makes and return its ONNX graph, boundary as `spec` says.

    The graph keeps zipvl nodes as nodes and carries their functions, in the executor's own bodies where it has them.
    Initializers of the module's parameters are named by their qualified names and have no data.
    """
    with _quiet():
        model = _translate(trace(build, spec), spec)
        _name_boundary(model.graph, spec)
        _forget_inner_shapes(model.graph)
        _leave_weights_open(model.graph)
        Sequential(
            FoldConstantsPass(shape_inference=False, input_size_limit=1024, output_size_limit=1024),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(),
            common.CommonSubexpressionEliminationPass(),
            common.ClearMetadataAndDocStringPass(),
            common.RemoveUnusedNodesPass(),
        )(model)
    fill_computed(model.graph)
    fold_transposes(model.graph)
    _add_functions(model, executor)
    return model


def _translate(program: torch.export.ExportedProgram, spec: GraphSpec) -> ir.Model:
    exported = torch.onnx.export(
        program,
        custom_translation_table=translation_table(),
        opset_version=OPSET,
        dynamo=True,
        optimize=False,
        verbose=False,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[tensor.name for tensor in spec.outputs],
    )
    assert exported is not None
    return exported.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says of itself: absent torchvision, parameters without data (as meant)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_boundary(graph: ir.Graph, spec: GraphSpec) -> None:
    """Give inputs and outputs the contract's dimension names; the traced program must agree on every number."""
    for values, tensors in ((graph.inputs, spec.inputs), (graph.outputs, spec.outputs)):
        assert len(values) == len(tensors), (len(values), len(tensors))
        for value, tensor in zip(values, tensors, strict=True):
            _check(value, tensor)
            value.shape = ir.Shape(tensor.shape)


def _check(value: ir.Value, tensor: TensorSpec) -> None:
    assert value.name == tensor.name, (value.name, tensor.name)
    assert value.dtype == ir.DataType[{"float32": "FLOAT"}.get(tensor.dtype, tensor.dtype.upper())], (
        tensor,
        value.dtype,
    )
    traced = value.shape
    assert traced is not None and len(traced) == len(tensor.shape), tensor
    for axis, (got, wanted) in enumerate(zip(traced, tensor.shape, strict=True)):
        assert not isinstance(wanted, int) or got == wanted, (tensor.name, axis, got, wanted)


def _forget_inner_shapes(graph: ir.Graph) -> None:
    """Drop traced shapes inside: tracing says n rows where functions give `count`, and executors believe it."""
    boundary = {id(value) for value in (*graph.inputs, *graph.outputs)}
    for node in graph:
        for value in node.outputs:
            if id(value) not in boundary:
                value.shape = None


def _leave_weights_open(graph: ir.Graph) -> None:
    """Parameters were traced as fakes: keep their names, dtypes and shapes, drop the data they never had."""
    for value in graph.initializers.values():
        held = value.const_value
        if isinstance(getattr(held, "raw", None), FakeTensor):
            value.const_value = None


def _add_functions(model: ir.Model, executor: ops.Executor) -> None:
    used = {node.op_type for node in model.graph if node.domain == DOMAIN}
    for op in ops.OPS:
        if op in used:
            function = ir.serde.deserialize_function(ops.onnx_function(op, executor))
            model.functions[function.identifier()] = function
            for domain, version in function.opset_imports.items():
                model.opset_imports.setdefault(domain, version)
