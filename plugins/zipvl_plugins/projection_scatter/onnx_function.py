"""projection_scatter as an ONNX function. Its first input arrives with `count` rows, its result has n."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function


def function() -> onnx.FunctionProto:
    return parse_function("""
    projection_scatter (o, weight, bias, index, count) => (scattered) {
        start = Constant <value = int32[1] {0}> ()
        chosen = Slice (index, start, count)
        projected = Gemm <transB = 1> (o, weight, bias)
        tokens = Shape (index)
        width = Shape <start = 0, end = 1> (weight)
        shape = Concat <axis = 0> (tokens, width)
        zero = Constant <value = float {0.0}> ()
        zero_alike = CastLike (zero, o)
        nothing = Expand (zero_alike, shape)
        column = Constant <value = int64[1] {1}> ()
        chosen_long = Cast <to = 7> (chosen)
        places = Unsqueeze (chosen_long, column)
        scattered = ScatterND (nothing, places, projected)
    }""")
