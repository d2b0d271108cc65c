"""A plan as rows of text, which the terminal and Markdown show alike."""

from __future__ import annotations

from collections.abc import Sequence

from zipvl_compile.planning.figures import Bound, ModeFigures, Plan, Row
from zipvl_compile.planning.units import show_bytes, show_rate, show_seconds

HEADER = ("tokens", "mode", "ratio", "KV/seq", "max batch", "device", "TTFT", "decode tok/s", "with prefill")
MODE_HEADER = ("mode", "ratio", "KV/token", "smaller by", "longest input", "bounded by", "device")
_NONE: dict[Bound, str] = {"memory": "OOM", "pool": "> pool", "positions": "> positions"}
"""Of a row to which nothing is admitted."""


def summary(plan: Plan) -> list[str]:
    """The lines above the tables."""
    weights, device, assumed = plan.weights, plan.device, plan.assumptions
    copies = ", decoder twice" if weights.copies > 1 else ""
    lines = [
        f"{plan.recipe} on {device.name}, {show_bytes(device.memory_bytes)}, backend {assumed.backend}",
        f"weights: {show_bytes(weights.total_bytes)} in {weights.dtype} (decoder {show_bytes(weights.decoder_bytes)}, "
        f"vision {show_bytes(weights.vision_bytes)}{copies}) of {show_bytes(device.usable_bytes)} usable",
    ]
    if not weights.fits:
        lines.append("weights do not fit: every row is OOM")
    most = max(plan.rows, key=lambda row: row.activation_bytes)
    lines.append(
        f"a prefill of {most.tokens} tokens: {show_bytes(most.activation_bytes)} of activations and "
        f"{show_bytes(most.prompt_kv_bytes)} of K and V beside the pages"
    )
    return lines


def cells(row: Row) -> tuple[str, ...]:
    """One row under HEADER; what it exceeds where nothing is admitted."""
    device = str(row.device_batch or "-")
    head = (str(row.tokens), row.mode, _ratio(row), show_bytes(row.kv_bytes))
    if row.ttft_s is None or row.decode_tokens_per_s is None or row.request_tokens_per_s is None:
        return *head, _NONE[row.bounded_by], device, "-", "-", "-"
    batch = str(row.max_batch) if row.batch == row.max_batch else f"{row.max_batch} (at {row.batch})"
    return (
        *head, batch, device, show_seconds(row.ttft_s), show_rate(row.decode_tokens_per_s),
        show_rate(row.request_tokens_per_s),
    )  # fmt: skip


def mode_cells(mode: ModeFigures) -> tuple[str, ...]:
    """One row under MODE_HEADER."""
    compression = f"{mode.compression:.2f}x"
    lengths = str(mode.max_context or "-"), mode.bounded_by, str(mode.device_context or "OOM")
    return mode.mode, _ratio(mode), show_bytes(mode.kv_bytes_per_token), compression, *lengths


def markdown(plan: Plan) -> str:
    """The whole plan as a page, without the picture."""
    lines = [f"# Plan: {plan.recipe} on {plan.device.name}", "", *(f"- {line}" for line in summary(plan)), ""]
    lines += _table(MODE_HEADER, [mode_cells(mode) for mode in plan.modes])
    lines += _table(HEADER, [cells(row) for row in plan.rows])
    if plan.limits:
        lines += ["What of target.limits does not fit:", "", *(f"- {line}" for line in plan.limits), ""]
    return "\n".join([*lines, "Assumptions:", "", *(f"- {note}" for note in plan.notes), ""])


def _ratio(row: Row | ModeFigures) -> str:
    return "-" if row.mode == "dense" else f"{row.ratio:g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(line)} |" for line in lines] + [""]
