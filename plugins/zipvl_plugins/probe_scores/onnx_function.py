"""probe_scores as an ONNX function: q, k, positions, ratio_min -> accumulated, normalised.

All of it is float32, whatever q and k are: a half holds neither large logits nor a sum over probes and heads. TF32, in
which TensorRT multiplies float32, holds every float16 and bfloat16 exactly.

The portable body scores all heads at once; TensorRT-RTX does its column sums in the kernel that ends the softmax, so
that the probabilities (2 GiB at 128 probes, 32 heads, 131072 tokens) are never written. ONNX Runtime writes them, and
is slow to reduce along the outer axis: its body goes from key head to key head, so that the scores of one group of
query heads are there at a time, and sums columns by a matrix product with a row of ones.
"""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import parse_function

_ALL_HEADS = """
                k_columns = Transpose <perm = [1, 2, 0]> (k_float)
                products = MatMul (q_grouped, k_columns)
                scores = Reshape (products, score_shape)
                masked = Add (scores, mask)
                attention = Softmax <axis = -1> (masked)
                rows = Reshape (attention, row_shape)
                sums = ReduceSum <keepdims = 0> (rows, outer)
                seen_count = ReduceSum <keepdims = 0> (seen_float, outer)"""
_HEAD_BY_HEAD = """
                nothing = ConstantOfShape <value = float[1] {0.0}> (tokens)
                one_row = Constant <value = int64[1] {1}> ()
                group_rows = Shape <start = 1, end = 2> (q_grouped)
                ones_shape = Concat <axis = 0> (one_row, group_rows)
                ones = ConstantOfShape <value = float[1] {1.0}> (ones_shape)
                trips = Squeeze (kv_heads, outer)
                always = Constant <value = bool {1}> ()
                sums = Loop (trips, always, nothing) <
                    body = head (int64 number, bool going, float[n] before) => (bool goes_on, float[n] after) {
                        goes_on = Identity (going)
                        q_head = Gather <axis = 0> (q_grouped, number)
                        k_head = Gather <axis = 1> (k_float, number)
                        products = com.microsoft.FusedMatMul <transB = 1> (q_head, k_head)
                        scores = Reshape (products, score_shape)
                        masked = Add (scores, mask)
                        attention = Softmax <axis = -1> (masked)
                        rows = Reshape (attention, row_shape)
                        column_sums = MatMul (ones, rows)
                        own = Reshape (column_sums, tokens)
                        after = Add (before, own)
                    }>
                probes_shape = Concat <axis = 0> (one_row, probes)
                ones_probes = ConstantOfShape <value = float[1] {1.0}> (probes_shape)
                seen_row = MatMul (ones_probes, seen_float)
                seen_count = Reshape (seen_row, tokens)"""


def function() -> onnx.FunctionProto:
    return _function(_ALL_HEADS)


def onnxruntime_function() -> onnx.FunctionProto:
    return _function(_HEAD_BY_HEAD, domains={"com.microsoft": 1})


def _function(sums: str, domains: dict[str, int] | None = None) -> onnx.FunctionProto:
    """`sums` defines sums and seen_count, float32 [n], from q_grouped [kv_heads, group * probes, head_dim], k_float
    [n, kv_heads, head_dim], mask and seen_float [probes, n]."""
    text = f"""
    probe_scores <scale> (q, k, positions, ratio_min) => (accumulated, normalised) {{
        one = Constant <value = float[1] {{1.0}}> ()
        outer = Constant <value = int64[1] {{0}}> ()
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
                score_shape = Concat <axis = 0> (minus_one, probes, tokens)
                row_shape = Concat <axis = 0> (minus_one, tokens)
                n_scalar = Squeeze (tokens, outer)
                zero_scalar = Constant <value = int64 {{0}}> ()
                one_scalar = Constant <value = int64 {{1}}> ()
                columns = Range (zero_scalar, n_scalar, one_scalar)
                places = Unsqueeze (positions, last_axis)
                seen = GreaterOrEqual (places, columns)
                seen_float = Cast <to = 1> (seen)
                open = Constant <value = float[1] {{0.0}}> ()
                closed = Constant <value = float[1] {{-1e30}}> ()
                mask = Where (seen, open, closed)
                {sums}
                seen_some = Max (seen_count, one)
                means = Div (sums, seen_some)
            }}>
    }}"""
    return parse_function(text, domains=domains)
