"""Functions written out in place, for parsers that are not to be trusted with them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass


def inline_functions(model: ir.Model) -> None:
    """Replace every call of a local function by its body, in place; names become unique, absent trailing inputs go.

    TensorRT-RTX's parser would take functions too, but leaks names from inside them from one call to the next, and
    knows no absent input: not of a function, and not as an empty name at the end of a node.
    """
    InlinePass()(model)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        given = len(node.inputs)
        while given and node.inputs[given - 1] is None:
            given -= 1
        if given < len(node.inputs):
            node.resize_inputs(given)
