"""Memory of an open bundle against the size of its weights: one copy, and a packed one for decode unless refused.

    python benchmarks/weights_memory.py [--hidden 1024] [--layers 8] [--out FILE]

Builds a LLaVA with random weights, opens it in a fresh process, runs prefill and a decode step and reads the process's
own accounting. `proportional` (PSS) counts a page once however often it is mapped; `anonymous` is what is not backed by
the bundle's file: a second copy of the weights would be there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from output import hand_over

PROBE = """
import json, sys
from pathlib import Path
import numpy as np
from zipvl_serving.bundle import Bundle
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, open_session

def memory():
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    figures = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}
    return {"proportional": figures["Pss"], "anonymous": figures["Anonymous"]}

bundle = Bundle.open(sys.argv[1])
before = memory()
session = open_session(bundle, threads=1, prepack=sys.argv[2] == "True")
shape, page = bundle.manifest.model.shape, bundle.manifest.limits.page_size
n = 64
session.prefill(
    PrefillInputs(np.full(n, 9), np.arange(n), np.arange(n), np.arange(n) == n - 1, 0.975, 0.0, 1.0), None
)
pages = np.zeros((4, page, shape.kv_heads, shape.head_dim), np.float32)
tables = np.zeros((shape.layers, 1, 1), np.int32)
rows = np.full((shape.layers, 1), 3, np.int32)
session.decode(DecodeInputs(np.array([9]), np.array([n]), pages, pages, tables, rows))
after = memory()
weights = bundle.manifest.files[bundle.manifest.engine.weights].bytes
print(json.dumps({"weights": weights, **{key: after[key] - before[key] for key in after}}))
"""


def measure(bundle: Path, *, prepack: bool) -> dict[str, float]:
    """Bytes of the weights file and what opening and running the bundle added, in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", PROBE, str(bundle), str(prepack)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    figures: dict[str, float] = json.loads(run.stdout)
    return {**figures, "proportional_over_weights": round(figures["proportional"] / figures["weights"], 3)}


def build_random(folder: Path, hidden: int, layers: int) -> Path:
    """A bundle of a LLaVA with random weights."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers.llava import compile_case

    compile_case(
        folder, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=hidden * 11 // 4,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, head_dim=64,
    )  # fmt: skip
    return folder / "bundle"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = build_random(Path(folder), options.hidden, options.layers)
        figures = {f"prepack {prepack}": measure(bundle, prepack=prepack) for prepack in (True, False)}
    hand_over({"hidden": options.hidden, "layers": options.layers, **figures}, options.out)


if __name__ == "__main__":
    main()
