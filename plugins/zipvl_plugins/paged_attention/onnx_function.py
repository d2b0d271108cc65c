"""paged_attention as an ONNX function: gather the pages in use, one softmax over them and the new row."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function


def function() -> onnx.FunctionProto:
    """Only blocks below the longest context are gathered, so the work follows this layer's own lengths."""
    return parse_function("""
    paged_attention <scale> (q, k, v, key_pages, value_pages, block_table, context) => (attended) {
        minus_one = Constant <value = int64[1] {-1}> ()
        zero = Constant <value = int64[1] {0}> ()
        one = Constant <value = int64[1] {1}> ()
        batch = Shape <start = 0, end = 1> (q)
        page_size = Shape <start = 1, end = 2> (key_pages)
        kv_heads = Shape <start = 2, end = 3> (key_pages)
        width = Shape <start = 3, end = 4> (key_pages)
        context_long = Cast <to = 7> (context)
        longest = ReduceMax (context_long)
        page_less_one = Sub (page_size, one)
        padded = Add (longest, page_less_one)
        blocks = Div (padded, page_size)
        table = Slice (block_table, zero, blocks, one)
        row_shape = Concat <axis = 0> (batch, minus_one, kv_heads, width)
        key_blocks = Gather <axis = 0> (key_pages, table)
        value_blocks = Gather <axis = 0> (value_pages, table)
        cached_keys = Reshape (key_blocks, row_shape)
        cached_values = Reshape (value_blocks, row_shape)
        new_key = Unsqueeze (k, one)
        new_value = Unsqueeze (v, one)
        keys = Concat <axis = 1> (cached_keys, new_key)
        values = Concat <axis = 1> (cached_values, new_value)
        key_columns = Transpose <perm = [0, 2, 3, 1]> (keys)
        value_rows = Transpose <perm = [0, 2, 1, 3]> (values)
        factor = Constant <value_float: float = @scale> ()
        q_scaled = Mul (q, factor)
        group_shape = Concat <axis = 0> (batch, kv_heads, minus_one, width)
        q_grouped = Reshape (q_scaled, group_shape)
        scores = MatMul (q_grouped, key_columns)
        rows = Shape <start = 1, end = 2> (cached_keys)
        rows_scalar = Squeeze (rows)
        zero_scalar = Constant <value = int64 {0}> ()
        one_scalar = Constant <value = int64 {1}> ()
        columns = Range (zero_scalar, rows_scalar, one_scalar)
        lengths = Unsqueeze (context_long, one)
        in_cache = Less (columns, lengths)
        itself_shape = Concat <axis = 0> (batch, one)
        itself = ConstantOfShape <value = bool[1] {1}> (itself_shape)
        readable = Concat <axis = 1> (in_cache, itself)
        inner_axes = Constant <value = int64[2] {1, 2}> ()
        readable_heads = Unsqueeze (readable, inner_axes)
        closed = Constant <value = float {-1e30}> ()
        masked = Where (readable_heads, scores, closed)
        attention = Softmax <axis = -1> (masked)
        attended_heads = MatMul (attention, value_rows)
        flat_shape = Concat <axis = 0> (batch, minus_one)
        attended = Reshape (attended_heads, flat_shape)
    }""")
