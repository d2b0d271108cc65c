"""Whether the capacities that a recipe asks for fit the device."""

from __future__ import annotations

from zipvl_compile.planning.figures import ModeFigures, Row
from zipvl_compile.planning.units import show_bytes
from zipvl_compile.recipe.schema import Limits


def check_limits(limits: Limits, longest: Row, mode: ModeFigures, device: str) -> list[str]:
    """A line for each limit that does not fit; `longest` is the recipe's own mode at max_input_tokens."""
    if mode.device_context == 0 and mode.bounded_by == "memory":
        return [f"nothing fits {device}: weights and one token take more than there is"]
    how = f"({mode.mode} at ratio {mode.ratio:g})"
    if limits.max_input_tokens > mode.max_context:
        why = {
            "positions": f"the model has no more positions beside {limits.max_new_tokens} new tokens",
            "pool": "the page pool holds no more at worst",
        }.get(mode.bounded_by, f"no more fit {how}")
        return [f"limits.max_input_tokens {limits.max_input_tokens}: at most {mode.max_context}, {why}"]
    lines = []
    if limits.kv_bytes > longest.left_bytes:
        lines.append(
            f"limits.kv_bytes {show_bytes(limits.kv_bytes)}: {show_bytes(longest.left_bytes)} are left beside weights "
            f"and a prefill of {limits.max_input_tokens} tokens"
        )
    if limits.max_batch > longest.device_batch:
        lines.append(
            f"limits.max_batch {limits.max_batch}: {longest.device_batch} sequences of {limits.max_input_tokens} "
            f"tokens fit {how}"
        )
    return lines
