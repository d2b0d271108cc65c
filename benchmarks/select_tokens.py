"""Time the two bodies of select_tokens in ONNX Runtime: threshold search (portable) and sort (onnxruntime).

    python benchmarks/select_tokens.py [--out FILE]

One session each, runs interleaved, medians of 15 in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from output import hand_over

from zipvl_plugins import ops
from zipvl_plugins.onnx_text import DOMAIN, OPSET

LENGTHS = (46, 512, 4096, 16384, 131072)
NAMES = ("accumulated", "normalised", "forced", "tau", "ratio_min", "ratio_max")


def session(executor: ops.Executor) -> ort.InferenceSession:
    """One node, its function in the executor's body."""
    inputs = [onnx.helper.make_tensor_value_info(name, 9 if name == "forced" else 1, [None]) for name in NAMES]
    outputs = [onnx.helper.make_tensor_value_info(name, 6, [None]) for name in ("index", "count")]
    node = onnx.helper.make_node("select_tokens", NAMES, ["index", "count"], domain=DOMAIN)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "select_tokens", inputs, outputs),
        functions=[ops.onnx_function("select_tokens", executor)],
        ir_version=10,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
    )
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    sessions = {"search": session("portable"), "sort": session("onnxruntime")}
    result: dict[str, dict[str, float]] = {}
    for n in LENGTHS:
        scores = (rng.random((2, n)) ** 6).astype(np.float32)
        scalars = {name: np.array([value], np.float32) for name, value in zip(NAMES[3:], (0.975, 0, 1), strict=True)}
        feed = {"accumulated": scores[0], "normalised": scores[1], "forced": np.arange(n) == n - 1, **scalars}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(18):
            for name, one in sessions.items():
                started = time.perf_counter()
                one.run(None, feed)
                times[name].append((time.perf_counter() - started) * 1000)
        result[str(n)] = {name: round(statistics.median(values[3:]), 3) for name, values in times.items()}
    hand_over(result, options.out)


if __name__ == "__main__":
    main()
