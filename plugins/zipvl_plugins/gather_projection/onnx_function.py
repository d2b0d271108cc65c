"""gather_projection as an ONNX function. Its result has `count` rows, not n."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function


def function() -> onnx.FunctionProto:
    return parse_function("""
    gather_projection (x, weight, bias, index, count) => (projected) {
        start = Constant <value = int32[1] {0}> ()
        chosen = Slice (index, start, count)
        rows = Gather <axis = 0> (x, chosen)
        projected = Gemm <transB = 1> (rows, weight, bias)
    }""")
