"""select_tokens as an ONNX function.

The portable body searches two thresholds and compacts: no sort, no NonZero. It is made for GPUs, where a round of the
search is one pass over the scores. ONNX Runtime's own body sorts, which on a CPU costs less: its TopK has no limit.
"""

from __future__ import annotations

import onnx

from zipvl_plugins.onnx_text import largest_threshold, parse_function, search_constants

_BOUNDS = """
                retain_all = GreaterOrEqual (tau, one)
                p_wanted = Where (retain_all, n_float, p_adaptive)
                least_exact = Mul (ratio_min, n_float)
                least_rounded = Round (least_exact)
                least = Max (least_rounded, one)
                most_exact = Mul (ratio_max, n_float)
                most_rounded = Round (most_exact)
                most = Max (most_rounded, one)
                p_least = Max (p_wanted, least)
                p = Min (p_least, most)
"""
"""From p_adaptive to p: tau >= 1 retains all, then the two ratios hold it."""

_COUNT_SEARCH = largest_threshold("accumulated", "accumulated", "target", "mass_low", "mass_high")
_RANK_SEARCH = largest_threshold("normalised", "ones", "p", "rank_low", "rank_high")
_BY_SEARCH = f"""
                tiny = Constant <value = float[1] {{1.1754944e-38}}> (){search_constants()}
                nearly_one = Constant <value = float[1] {{0.99999905}}> ()
                ones = ConstantOfShape <value = float[1] {{1.0}}> (tokens)
                total = ReduceSum (accumulated)
                target = Mul (total, tau)
                {_COUNT_SEARCH}
                above = GreaterOrEqual (accumulated, mass_high)
                above_mass_values = Where (above, accumulated, zero)
                above_mass = ReduceSum (above_mass_values)
                above_ones = Cast <to = 1> (above)
                above_count = ReduceSum (above_ones)
                reached = GreaterOrEqual (accumulated, mass_low)
                reached_mass_values = Where (reached, accumulated, zero)
                reached_mass = ReduceSum (reached_mass_values)
                reached_ones = Cast <to = 1> (reached)
                reached_count = ReduceSum (reached_ones)
                tied_count = Sub (reached_count, above_count)
                tied_some = Max (tied_count, one)
                tied_mass = Sub (reached_mass, above_mass)
                tied_mean = Div (tied_mass, tied_some)
                tied_value = Max (tied_mean, tiny)
                missing_mass = Sub (target, above_mass)
                missing_exact = Div (missing_mass, tied_value)
                missing_rounded = Mul (missing_exact, nearly_one)
                missing = Ceil (missing_rounded)
                missing_one = Max (missing, one)
                missing_count = Min (missing_one, tied_some)
                p_adaptive = Add (above_count, missing_count)
                {_BOUNDS}
                {_RANK_SEARCH}
                better = GreaterOrEqual (normalised, rank_high)
                better_ones = Cast <to = 1> (better)
                better_count = ReduceSum (better_ones)
                open_places = Sub (p, better_count)
                at_least = GreaterOrEqual (normalised, rank_low)
                not_better = Not (better)
                tied = And (at_least, not_better)
                tied_ones = Cast <to = 1> (tied)
                axis = Constant <value = int64 {{0}}> ()
                tied_rank = CumSum (tied_ones, axis)
                within = LessOrEqual (tied_rank, open_places)
                tied_in = And (tied, within)
                selected = Or (better, tied_in)
"""
"""The threshold that retains tau of the mass (its count is p), then the one that p tokens reach.

Values that tie at a threshold are taken in order of index until enough are in.
"""

_BY_SORT = f"""
                largest_first, order = TopK <axis = 0, largest = 1, sorted = 1> (accumulated, tokens)
                largest_double = Cast <to = 11> (largest_first)
                axis = Constant <value = int64 {{0}}> ()
                retained = CumSum (largest_double, axis)
                total = ReduceMax (retained)
                tau_double = Cast <to = 11> (tau)
                target = Mul (total, tau_double)
                too_little = Less (retained, target)
                too_little_ints = Cast <to = 1> (too_little)
                too_little_count = ReduceSum (too_little_ints)
                p_adaptive = Add (too_little_count, one)
                {_BOUNDS}
                p_long = Cast <to = 7> (p)
                best_values, best = TopK <axis = 0, largest = 1, sorted = 1> (normalised, p_long)
                nobody = ConstantOfShape <value = bool[1] {{0}}> (tokens)
                ticks = ConstantOfShape <value = bool[1] {{1}}> (p_long)
                selected = ScatterElements <axis = 0> (nobody, best, ticks)
"""


def function() -> onnx.FunctionProto:
    return _function(_BY_SEARCH)


def onnxruntime_function() -> onnx.FunctionProto:
    return _function(_BY_SORT)


def _function(choose: str) -> onnx.FunctionProto:
    """`choose` defines selected, bool [n], from the scores and `tokens`, `one`, `zero`, `n_float`.

    The count is n less an element read from a running sum: TensorRT-RTX takes shapes from the device only behind such a
    read (through a ReduceSum it would want tau as a host tensor), and tunes its kernels for that element being 1, which
    is better said of the tokens dropped than of those kept.
    """
    return parse_function(f"""
    select_tokens (accumulated, normalised, forced, tau, ratio_min, ratio_max) => (index, count) {{
        zero = Constant <value = float[1] {{0.0}}> ()
        one = Constant <value = float[1] {{1.0}}> ()
        one_slot = Constant <value = int64[1] {{1}}> ()
        tokens = Shape (accumulated)
        slots = Add (tokens, one_slot)
        all_kept = GreaterOrEqual (ratio_min, one)
        kept = If (all_kept) <
            then_branch = dense () => (bool[n] everything) {{
                everything = ConstantOfShape <value = bool[1] {{1}}> (tokens)
            }},
            else_branch = sparse () => (bool[n] chosen) {{
                n_float = Cast <to = 1> (tokens)
                {choose}
                chosen = Or (selected, forced)
            }}>
        first = Constant <value = int64[1] {{0}}> ()
        kept_ints = Cast <to = 6> (kept)
        first_axis = Constant <value = int64 {{0}}> ()
        rank = CumSum (kept_ints, first_axis)
        one_int = Constant <value = int32[1] {{1}}> ()
        place = Sub (rank, one_int)
        n_int = Cast <to = 6> (tokens)
        slot = Where (kept, place, n_int)
        empty = ConstantOfShape <value = int32[1] {{0}}> (slots)
        n_scalar = Squeeze (n_int)
        zero_int = Constant <value = int32 {{0}}> ()
        step_int = Constant <value = int32 {{1}}> ()
        ids = Range (zero_int, n_scalar, step_int)
        filled = ScatterElements <axis = 0> (empty, slot, ids)
        index = Slice (filled, first, tokens)
        last = Sub (tokens, one_slot)
        dropped_before = Sub (ids, place)
        dropped = Gather <axis = 0> (dropped_before, last)
        count = Sub (n_int, dropped)
    }}""")
