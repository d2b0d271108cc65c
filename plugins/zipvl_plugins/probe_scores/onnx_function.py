"""probe_scores as an ONNX function: q, k, positions, ratio_min -> accumulated, normalised."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function


def function() -> onnx.FunctionProto:
    """Column sums are matrix products with a row of ones: reducing along the outer axis is slow on every executor."""
    return parse_function("""
    probe_scores <scale> (q, k, positions, ratio_min) => (accumulated, normalised) {
        one = Constant <value = float[1] {1.0}> ()
        no_axis = Constant <value = int64[1] {0}> ()
        last_axis = Constant <value = int64[1] {-1}> ()
        minus_one = Constant <value = int64[1] {-1}> ()
        tokens = Shape <start = 0, end = 1> (k)
        all_kept = GreaterOrEqual (ratio_min, one)
        accumulated, normalised = If (all_kept) <
            then_branch = dense () => (float[n] none_a, float[n] none_b) {
                none_a = ConstantOfShape <value = float[1] {0.0}> (tokens)
                none_b = Identity (none_a)
            },
            else_branch = sparse () => (float[n] sums, float[n] means) {
                probes = Shape <start = 0, end = 1> (q)
                kv_heads = Shape <start = 1, end = 2> (k)
                width = Shape <start = 2, end = 3> (k)
                factor = Constant <value_float: float = @scale> ()
                q_scaled = Mul (q, factor)
                q_heads = Transpose <perm = [1, 0, 2]> (q_scaled)
                q_shape = Concat <axis = 0> (kv_heads, minus_one, width)
                q_grouped = Reshape (q_heads, q_shape)
                k_columns = Transpose <perm = [1, 2, 0]> (k)
                products = MatMul (q_grouped, k_columns)
                score_shape = Concat <axis = 0> (minus_one, probes, tokens)
                scores = Reshape (products, score_shape)
                n_scalar = Squeeze (tokens, no_axis)
                zero_scalar = Constant <value = int64 {0}> ()
                one_scalar = Constant <value = int64 {1}> ()
                columns = Range (zero_scalar, n_scalar, one_scalar)
                places = Unsqueeze (positions, last_axis)
                seen = GreaterOrEqual (places, columns)
                open = Constant <value = float[1] {0.0}> ()
                closed = Constant <value = float[1] {-1e30}> ()
                mask = Where (seen, open, closed)
                masked = Add (scores, mask)
                attention = Softmax <axis = -1> (masked)
                row_shape = Concat <axis = 0> (minus_one, tokens)
                rows = Reshape (attention, row_shape)
                row_count = Shape <start = 0, end = 1> (rows)
                one_row = Constant <value = int64[1] {1}> ()
                ones_shape = Concat <axis = 0> (one_row, row_count)
                ones = ConstantOfShape <value = float[1] {1.0}> (ones_shape)
                sums_row = MatMul (ones, rows)
                sums = Reshape (sums_row, tokens)
                probes_shape = Concat <axis = 0> (one_row, probes)
                ones_probes = ConstantOfShape <value = float[1] {1.0}> (probes_shape)
                seen_float = Cast <to = 1> (seen)
                seen_row = MatMul (ones_probes, seen_float)
                seen_count = Reshape (seen_row, tokens)
                seen_some = Max (seen_count, one)
                means = Div (sums, seen_some)
            }>
    }""")
