"""sparse_attention as an ONNX function: inputs arrive with `count` rows.

The canonical body is ONNX's own Attention. ONNX Runtime's CPU kernel for it holds the whole score matrix, so its
engine gets a body with GroupQueryAttention instead, which is causal and works in blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from zipvl_plugins.onnx_text import parse_function

_FLATTEN = """
        batch = Constant <value = int64[1] {0}> ()
        q_flat = Flatten <axis = 1> (q)
        k_flat = Flatten <axis = 1> (k)
        v_flat = Flatten <axis = 1> (v)
        q_batch = Unsqueeze (q_flat, batch)
        k_batch = Unsqueeze (k_flat, batch)
        v_batch = Unsqueeze (v_flat, batch)"""


def function() -> onnx.FunctionProto:
    return parse_function(f"""
    sparse_attention <scale, heads, kv_heads> (q, k, v, count) => (attended) {{{_FLATTEN}
        attended_batch = Attention <is_causal = 1, scale: float = @scale, q_num_heads: int = @heads,
            kv_num_heads: int = @kv_heads> (q_batch, k_batch, v_batch)
        attended = Squeeze (attended_batch, batch)
    }}""")


def onnxruntime_function() -> onnx.FunctionProto:
    text = f"""
    sparse_attention <scale, heads, kv_heads> (q, k, v, count) => (attended) {{{_FLATTEN}
        rows = Shape <start = 1, end = 2> (q_batch)
        rows_int = Cast <to = 6> (rows)
        one = Constant <value = int32[1] {{1}}> ()
        last = Sub (rows_int, one)
        length = Squeeze (rows_int)
        attended_batch, keys, values = com.microsoft.GroupQueryAttention <scale: float = @scale,
            num_heads: int = @heads, kv_num_heads: int = @kv_heads> (q_batch, k_batch, v_batch, , , last, length)
        attended = Squeeze (attended_batch, batch)
    }}"""
    return parse_function(text, domains={"com.microsoft": 1})


def shape_attributes(q: Sequence[int], k: Sequence[int], v: Sequence[int], count: Sequence[int]) -> dict[str, int]:
    """Node attributes read off the static dimensions of the inputs."""
    return {"heads": int(q[1]), "kv_heads": int(k[1])}
