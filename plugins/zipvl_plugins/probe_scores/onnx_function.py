"""probe_scores as an ONNX function: q, k, positions, ratio_min -> accumulated, normalised."""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function

_BY_PRODUCT = """
                row_count = Shape <start = 0, end = 1> (rows)
                one_row = Constant <value = int64[1] {1}> ()
                ones_shape = Concat <axis = 0> (one_row, row_count)
                ones = ConstantOfShape <value = float[1] {1.0}> (ones_shape)
                sums_row = MatMul (ones, rows)
                sums = Reshape (sums_row, tokens)
                probes_shape = Concat <axis = 0> (one_row, probes)
                ones_probes = ConstantOfShape <value = float[1] {1.0}> (probes_shape)
                seen_row = MatMul (ones_probes, seen_float)
                seen_count = Reshape (seen_row, tokens)"""
_BY_REDUCTION = """
                outer = Constant <value = int64[1] {0}> ()
                sums = ReduceSum <keepdims = 0> (rows, outer)
                seen_count = ReduceSum <keepdims = 0> (seen_float, outer)"""


def function() -> onnx.FunctionProto:
    """Column sums are matrix products with a row of ones: ONNX Runtime is slow to reduce along the outer axis."""
    return _function(_BY_PRODUCT)


def tensorrt_rtx_function() -> onnx.FunctionProto:
    """Column sums are reductions, which TensorRT-RTX does in the kernel that ends the softmax: the probabilities, 2 GiB
    at 128 probes, 32 heads and 131072 tokens, are never written."""
    return _function(_BY_REDUCTION)


def _function(column_sums: str) -> onnx.FunctionProto:
    """`column_sums` defines sums and seen_count, float32 [n], from rows [heads * probes, n] and seen_float [probes, n].

    All of it is float32, whatever q and k are: a half holds neither large logits nor a sum over probes and heads.
    TF32, in which TensorRT multiplies float32, holds every float16 and bfloat16 exactly.
    """
    return parse_function(f"""
    probe_scores <scale> (q, k, positions, ratio_min) => (accumulated, normalised) {{
        one = Constant <value = float[1] {{1.0}}> ()
        no_axis = Constant <value = int64[1] {{0}}> ()
        last_axis = Constant <value = int64[1] {{-1}}> ()
        minus_one = Constant <value = int64[1] {{-1}}> ()
        tokens = Shape <start = 0, end = 1> (k)
        all_kept = GreaterOrEqual (ratio_min, one)
        accumulated, normalised = If (all_kept) <
            then_branch = dense () => (float[n] none_a, float[n] none_b) {{
                none_a = ConstantOfShape <value = float[1] {{0.0}}> (tokens)
                none_b = Identity (none_a)
            }},
            else_branch = sparse () => (float[n] sums, float[n] means) {{
                probes = Shape <start = 0, end = 1> (q)
                kv_heads = Shape <start = 1, end = 2> (k)
                width = Shape <start = 2, end = 3> (k)
                factor = Constant <value_float: float = @scale> ()
                q_float = Cast <to = 1> (q)
                k_float = Cast <to = 1> (k)
                q_scaled = Mul (q_float, factor)
                q_heads = Transpose <perm = [1, 0, 2]> (q_scaled)
                q_shape = Concat <axis = 0> (kv_heads, minus_one, width)
                q_grouped = Reshape (q_heads, q_shape)
                k_columns = Transpose <perm = [1, 2, 0]> (k_float)
                products = MatMul (q_grouped, k_columns)
                score_shape = Concat <axis = 0> (minus_one, probes, tokens)
                scores = Reshape (products, score_shape)
                n_scalar = Squeeze (tokens, no_axis)
                zero_scalar = Constant <value = int64 {{0}}> ()
                one_scalar = Constant <value = int64 {{1}}> ()
                columns = Range (zero_scalar, n_scalar, one_scalar)
                places = Unsqueeze (positions, last_axis)
                seen = GreaterOrEqual (places, columns)
                seen_float = Cast <to = 1> (seen)
                open = Constant <value = float[1] {{0.0}}> ()
                closed = Constant <value = float[1] {{-1e30}}> ()
                mask = Where (seen, open, closed)
                masked = Add (scores, mask)
                attention = Softmax <axis = -1> (masked)
                row_shape = Concat <axis = 0> (minus_one, tokens)
                rows = Reshape (attention, row_shape)
                {column_sums}
                seen_some = Max (seen_count, one)
                means = Div (sums, seen_some)
            }}>
    }}""")
