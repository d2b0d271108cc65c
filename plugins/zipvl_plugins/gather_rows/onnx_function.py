"""gather_rows as an ONNX function. Its result has `count` rows, not n: executors of functions do p-sized work."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function


def function() -> onnx.FunctionProto:
    return parse_function("""
    gather_rows (x, index, count) => (rows) {
        start = Constant <value = int32[1] {0}> ()
        chosen = Slice (index, start, count)
        rows = Gather <axis = 0> (x, chosen)
    }""")
