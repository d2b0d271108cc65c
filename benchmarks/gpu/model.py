"""The cost model's tables in docs/gpu.md: calculated, never measured.

    python -m benchmarks.gpu.model [--write]                 # after `export PYTHONPATH=plugins:serving:.`

prints them, or writes them into the page between its two markers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from benchmarks.gpu.goals import GOAL_RATIO, SELECTION_SHARE, SPEEDUP
from benchmarks.gpu.report import table
from benchmarks.gpu.shapes import LENGTHS, decoder, length
from benchmarks.page import Section
from zipvl_compile.cost.decode import decode_step, parameters
from zipvl_compile.cost.hardware import EAGER_ELEMENTWISE, GPUS, Gpu
from zipvl_compile.cost.prediction import Prediction, predict, ttft
from zipvl_compile.cost.work import ITEM, Mode, Work, kept_tokens, prefill
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.planning.cache import row_bytes
from zipvl_compile.planning.memory import Claim, Room

SECTION = Section("gpu.md", "cost model")
SHOWN = ("a100-80gb", "h200")
SELECTION = ("probe_scores", "select_tokens")
DECODE_TOKENS = 16384
SHORT = (128, 256, 512, 768, 1024)


def page_section() -> str:
    """Markdown of every table."""
    lines = ["### Operations and bytes of a 13B prefill", ""]
    lines += ["TFLOP and GB of all 40 layers; select_tokens counts integer operations.", ""]
    lines += ["Dense:", "", *_work(decoder("13B"), "dense")]
    lines += [f"ZipVL at ratio {GOAL_RATIO:g}, lazy projections:", "", *_work(decoder("13B"), "zipvl")]
    lines += ["### Utilisation", "", *_utilisation()]
    lines += ["### Time to the first token", ""]
    for name in ("13B", "7B"):
        for key in SHOWN:
            lines += [f"{name} on an {GPUS[key].name}, ratio {GOAL_RATIO:g}:", "", *_ttft(decoder(name), GPUS[key])]
    lines += ["### Short prompts", "", *_short_prompts()]
    lines += ["### Goals, 13B", "", *_goals(decoder("13B"))]
    lines += [f"### Decode behind {length(DECODE_TOKENS)} tokens, at the most sequences", "", *_decode()]
    return "\n".join(lines).rstrip()


def _work(spec: DecoderSpec, mode: Mode) -> list[str]:
    """One row an op, of equal names together; in the order in which a prefill runs them."""
    cells: dict[str, list[str]] = {}
    for n in LENGTHS:
        sums: dict[str, Work] = {}
        for work in prefill(spec, n, mode, ratio=GOAL_RATIO):
            before = sums.get(work.op)
            sums[work.op] = work if before is None else _added(before, work)
        for op, work in sums.items():
            cells.setdefault(op, []).append(f"{_short(work.flops / 1e12)} / {_short(work.bytes / 1e9)}")
    return table(("op", *map(length, LENGTHS)), ((op, *row) for op, row in cells.items()))


def _added(one: Work, other: Work) -> Work:
    return dataclasses.replace(one, flops=one.flops + other.flops, bytes=one.bytes + other.bytes)


def _utilisation() -> list[str]:
    used = [dataclasses.asdict(GPUS[key].utilisation) for key in SHOWN]
    return table(("", *(GPUS[key].name for key in SHOWN)), ((name, *(u[name] for u in used)) for name in used[0]))


def _ttft(spec: DecoderSpec, gpu: Gpu) -> list[str]:
    rows = []
    for n in LENGTHS:
        dense, lazy, published = _predicted(spec, gpu, n)
        floors = [ttft(spec, gpu, n, mode, ratio=GOAL_RATIO, floor=True).total for mode in ("dense", "zipvl")]
        rows.append(
            (
                length(n), f"{_operations(spec, n):.2f}x", *(f"{floor:.3f}" for floor in floors),
                f"{floors[0] / floors[1]:.2f}x", *(f"{p.total:.3f}" for p in (dense, published, lazy)),
                f"{dense.total / lazy.total:.2f}x", f"{_eager_ratio(spec, gpu, n):.2f}x", _selection(spec, dense, lazy),
            )
        )  # fmt: skip
    header = (
        "tokens", "by operations alone", "floor: dense s", "floor: ZipVL s", "ratio", "predicted: dense s",
        "all projected s", "lazy s", "ratio", "ratio in eager PyTorch", "probe + select of dense (us a layer)",
    )  # fmt: skip
    return table(header, rows)


def _short_prompts() -> list[str]:
    """Where selection begins to pay; a bundle that was not measured on its GPU runs dense below the last column."""
    rows = []
    for key in (*SHOWN, "l40s"):
        for name in ("13B", "7B"):
            predicted = [_predicted(decoder(name), GPUS[key], n) for n in SHORT]
            ratios = (f"{dense.total / lazy.total:.2f}x" for dense, lazy, _ in predicted)
            rows.append((f"{name} on an {GPUS[key].name}", *ratios))
    return table((f"predicted dense / ZipVL at {GOAL_RATIO:g}", *map(str, SHORT)), rows)


def _selection(spec: DecoderSpec, dense: Prediction, lazy: Prediction) -> str:
    per_layer = " + ".join(f"{lazy.ops[op] / spec.layers * 1e6:.0f}" for op in SELECTION)
    return f"{_selection_share(dense, lazy):.1%} ({per_layer})"


def _goals(spec: DecoderSpec) -> list[str]:
    """Each goal against what perfect kernels on both sides would show, and the prediction."""
    return table(("goal", "GPU", "perfect kernels", "predicted", "verdict"), _goal_rows(spec))


def _goal_rows(spec: DecoderSpec) -> Iterator[tuple[str, str, str, str, str]]:
    for n, wanted in SPEEDUP.items():
        for key in SHOWN:
            gpu = GPUS[key]
            dense, lazy, _ = _predicted(spec, gpu, n)
            limit = _floor_ratio(spec, gpu, n)
            speedup = dense.total / lazy.total
            missed = "missed" if limit >= wanted else "missed, by perfect kernels too"
            verdict = "met" if speedup >= wanted else missed
            yield f"TTFT {wanted:g}x at {length(n)}", gpu.name, f"{limit:.2f}x", f"{speedup:.2f}x", verdict
    for key in SHOWN:
        gpu, n = GPUS[key], LENGTHS[0]
        dense, lazy, _ = _predicted(spec, gpu, n)
        share = _selection_share(dense, lazy)
        floor = ttft(spec, gpu, n, "zipvl", ratio=GOAL_RATIO, floor=True)
        least = sum(floor.ops[op] for op in SELECTION) / dense.total
        verdict = "met" if share <= SELECTION_SHARE else "missed"
        yield (
            f"probe + select <= {SELECTION_SHARE:.0%} at {length(n)}",
            gpu.name,
            f"{least:.1%}",
            f"{share:.1%}",
            verdict,
        )


def _decode() -> list[str]:
    """The bound that memory sets: all of it for weights and caches, and kernels without beginning and end."""
    rows = []
    for key in SHOWN:
        for name in ("13B", "7B"):
            spec, gpu = decoder(name), GPUS[key]
            per_token = spec.layers * row_bytes(spec, ITEM, None)
            cached = DECODE_TOKENS, kept_tokens(DECODE_TOKENS, GOAL_RATIO)
            bounds = [_decode_bound(spec, gpu, tokens, per_token) for tokens in cached]
            (_, full), (_, kept) = bounds
            size = f"{per_token / 1024:.0f} KiB"
            rows.append((f"{name} on an {gpu.name}", size, *map(_beside, bounds), f"{kept / full:.2f}x"))
    header = ("", "KV a token", "full cache", f"T only at {GOAL_RATIO:g}", "gain")
    return table(header, rows)


def _decode_bound(spec: DecoderSpec, gpu: Gpu, rows: int, per_token: float) -> tuple[int, float]:
    """(sequences, tokens a second) behind `rows` tokens of `per_token` bytes each."""
    cached = rows * per_token
    batch = Claim(cached, cached).most(Room(gpu.memory, ITEM * parameters(spec)).left())
    used = dataclasses.replace(gpu.utilisation, kernel_s=0)
    return batch, batch / predict(decode_step(spec, batch, spec.layers * rows, cached), gpu, used).total


def _beside(bound: tuple[int, float]) -> str:
    return f"{bound[0]} sequences, {bound[1]:.0f} tokens/s"


def _predicted(spec: DecoderSpec, gpu: Gpu, n: int) -> tuple[Prediction, Prediction, Prediction]:
    """Dense, lazy, and all tokens projected."""
    modes: tuple[Mode, ...] = ("dense", "zipvl", "zipvl_paper")
    dense, lazy, published = (ttft(spec, gpu, n, mode, ratio=GOAL_RATIO) for mode in modes)
    return dense, lazy, published


def _selection_share(dense: Prediction, lazy: Prediction) -> float:
    return sum(lazy.ops[op] for op in SELECTION) / dense.total


def _floor_ratio(spec: DecoderSpec, gpu: Gpu, n: int) -> float:
    dense, lazy = (ttft(spec, gpu, n, mode, ratio=GOAL_RATIO, floor=True).total for mode in ("dense", "zipvl"))
    return dense / lazy


def _eager_ratio(spec: DecoderSpec, gpu: Gpu, n: int) -> float:
    used = dataclasses.replace(gpu.utilisation, elementwise=EAGER_ELEMENTWISE)
    dense, lazy = (predict(prefill(spec, n, mode, ratio=GOAL_RATIO), gpu, used).total for mode in ("dense", "zipvl"))
    return dense / lazy


def _operations(spec: DecoderSpec, n: int) -> float:
    """Dense operations over ours: the ratio if nothing but tensor cores took time."""
    dense, lazy = (
        sum(work.flops for work in prefill(spec, n, mode, ratio=GOAL_RATIO) if work.kind != "search")
        for mode in ("dense", "zipvl")
    )
    return dense / lazy


def _short(value: float) -> str:
    """Three digits, without an exponent."""
    return "0" if not value else f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


if __name__ == "__main__":
    SECTION.main(__doc__, page_section)
