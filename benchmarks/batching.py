"""In-flight batching: tokens per second, ITL and the scheduler's own time against the number of concurrent streams.

    python benchmarks/batching.py BUNDLE [--streams 1 2 4 8 16 32] [--tokens 256] [--rounds 5] [--spinning]
        [--out FILE]

Every stream asks about an image of noise of its own and generates `--tokens` tokens whatever it says (ignore_eos), all
through the embedded engine: preprocessing, vision, prefill, decode. The levels are visited in turn, forwards and
backwards, `--rounds` times, so that a slow spell of the machine hits all of them; figures are medians over rounds.
Beside each level, decode with one copy of the weights (serving.prepack false).
"""

from __future__ import annotations

import argparse
import io
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from output import hand_over
from PIL import Image

from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import open_session
from zipvl_serving.wire import Chunk, Parameters, WireRequest

PACKED, SHARED = "packed weights", "shared weights"


def noise(seed: int) -> bytes:
    """An image file that no other stream sends."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def run_level(engine: Engine, streams: int, tokens: int, seed: int) -> dict[str, float]:
    """All streams start at once; the clock stops when the last one ends."""
    done, failed = threading.Semaphore(0), []

    def take(event: Chunk | ZipvlError) -> None:
        if isinstance(event, ZipvlError):
            failed.append(event)
        if isinstance(event, ZipvlError) or event.finish_reason:
            done.release()

    parameters = Parameters(max_tokens=tokens, ignore_eos=True)
    asked = [
        WireRequest("which digit is red ?", None, (noise(seed * 1000 + number),), parameters)
        for number in range(streams)
    ]
    engine.metrics.take()
    begun = time.perf_counter()
    for request in asked:
        engine.submit(request, take)
    for _ in asked:
        done.acquire()
    seconds = time.perf_counter() - begun
    if failed:
        raise failed[0]
    seen = engine.metrics.take().observations
    overheads = seen["step_overhead_seconds", ""]
    return {
        "tokens_per_s": streams * tokens / seconds,
        "ttft_ms": 1e3 * statistics.median(seen["ttft_seconds", ""]),
        "itl_ms": 1e3 * statistics.median(seen["itl_seconds", ""]),
        "step_overhead_ms": 1e3 * statistics.median(overheads),
        "step_overhead_p99_ms": 1e3 * float(np.percentile(overheads, 99)),
    }


def measure(bundle: Bundle, levels: list[int], tokens: int, rounds: int, *, spinning: bool) -> dict[str, Any]:
    """Figures of every level by whether weights are packed: medians over rounds."""
    engines = {
        name: Engine(bundle, session=open_session(bundle, spinning=spinning, prepack=name == PACKED))
        for name in (PACKED, SHARED)
    }
    plan = [(name, level) for level in levels for name in engines]
    samples: dict[tuple[str, int], list[dict[str, float]]] = {arm: [] for arm in plan}
    for name, level in plan:  # warm-up
        run_level(engines[name], level, min(tokens, 32), 0)
    for turn in range(rounds):
        for name, level in plan if turn % 2 == 0 else reversed(plan):
            samples[name, level].append(run_level(engines[name], level, tokens, turn + 1))
    for engine in engines.values():
        engine.close()
    figures: dict[str, dict[str, Any]] = {name: {} for name in engines}
    for (name, level), runs in samples.items():
        figures[name][str(level)] = {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--spinning", action="store_true", help="as serving.spinning does")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    figures = measure(bundle, options.streams, options.tokens, options.rounds, spinning=options.spinning)
    base = figures[PACKED][str(options.streams[0])]["tokens_per_s"]
    result = {
        "bundle": bundle.manifest.name,
        "tokens_per_stream": options.tokens,
        "rounds": options.rounds,
        "spinning": options.spinning,
        "streams": figures,
        "over_one": {name: round(row["tokens_per_s"] / base, 2) for name, row in figures[PACKED].items()},
    }
    hand_over(result, options.out)


if __name__ == "__main__":
    main()
