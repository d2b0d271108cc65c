"""One benchmark from its target to its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from zipvl_compile.bench import throughput, ttft
from zipvl_compile.bench.fingerprint import fingerprint, finished
from zipvl_compile.bench.inputs import check_lengths
from zipvl_compile.bench.results import Cell, Results
from zipvl_compile.bench.target import RANDOM_WEIGHTS_NOTE, Opened, open_target, stop_spinning
from zipvl_compile.bench.ttft import Profile, Report
from zipvl_compile.bench.workload import TTFT, Throughput
from zipvl_compile.bench.writer import check_folder, keeping, write_results

OnStep = Callable[[str, str], None]
"""on_step(step, detail) of a build"""
_OF_TTFT = (
    "TTFT here is one request alone, from its encoded prompt to the last token's logits: vision and prefill, "
    "no image decoding, no tokenising, no queue, no sampling"
)


def open_for_bench(target: str, out: Path, on_step: OnStep) -> Opened:
    """Open a target for `run`, `out` made; InputError for either that cannot be."""
    check_folder(out)
    stop_spinning()
    return open_target(target, out, on_step)


def run(
    opened: Opened,
    workload: TTFT | Throughput,
    out: Path,
    report: Report,
    on_left: Callable[[Path], None] = lambda file: None,
) -> Results:
    """Measure, and leave results.json, results.md and pictures in `out`.

    After every length what is finished is kept in partial.json, which an interrupted or failed run leaves and of which
    on_left is told; an earlier run's results stay until this one's replace them.
    """
    environment = fingerprint()
    cells: list[Cell] = []
    with keeping(out, on_left) as keep:
        for found in _measure(opened, workload, report):
            cells += found
            notes = ["interrupted: not every length was measured", *_notes(opened, workload, cells)]
            keep(Results.of(workload, opened.describe(), environment, cells, notes))
        notes = _notes(opened, workload, cells)
        results = Results.of(workload, opened.describe(), finished(environment), cells, notes)
        keep(results)
        write_results(out, results)
    return results


def _measure(opened: Opened, workload: TTFT | Throughput, report: Report) -> Iterator[list[Cell]]:
    check_lengths(workload.input, workload.lengths, opened.manifest)
    if isinstance(workload, Throughput):
        return throughput.measure(opened, workload, report)
    return ttft.measure(opened, workload, report, profile=_profile(opened, workload))


def _profile(opened: Opened, workload: TTFT) -> Profile | None:
    """Makes profiled prefills; None where the runtime has no profile."""
    if not workload.breakdown or opened.manifest.engine.backend != "onnxruntime":
        return None
    from zipvl_compile.bench.breakdown import Profiled

    return partial(Profiled, opened.bundle, threads=opened.threads, spinning=opened.manifest.serving.spinning)


def _notes(opened: Opened, workload: TTFT | Throughput, cells: list[Cell]) -> list[str]:
    """What a reader must know to read the figures right."""
    notes = [_OF_TTFT] if isinstance(workload, TTFT) else []
    if opened.weights == "random":
        notes.append(RANDOM_WEIGHTS_NOTE)
    elif workload.input == "random":
        notes.append("random token ids: ratios are those of noise, which the model was not trained on")
    selecting = {mode.name for mode in workload.modes if mode.kind not in ("dense", "transformers")}
    dense: dict[str, list[str]] = {}
    for cell in cells:
        if cell.mode in selecting and cell.facts.get("dense"):
            dense.setdefault(cell.mode, []).append(str(cell.at["tokens"]))
    below = opened.manifest.method.dense_below
    if isinstance(workload, TTFT) and workload.dense_below is not None:
        below = workload.dense_below
    for mode, lengths in dense.items():
        notes.append(f"{mode} ran dense at {', '.join(lengths)} tokens: inputs below {below} do (dense_below)")
    if any(mode.kind == "transformers" for mode in workload.modes):
        notes.append(
            "transformers computes the decoder with the bundle's weights in float32, on as many threads as the engine, "
            "whose vision it uses"
        )
    capped = [cell for cell in cells if cell.facts.get("stopped_by") == "max_batch"]
    for cell in capped:
        notes.append(f"{cell.mode} at {cell.at['tokens']} tokens could hold more: max_batch stopped its admission")
    return notes
