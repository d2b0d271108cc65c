"""docs/contract.md says what contract.py says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from zipvl_serving.contract import GRAPHS, GraphName, ModelShape, graph_spec

DOC = (Path(__file__).resolve().parents[2] / "docs" / "contract.md").read_text()
# Primes, so that every number in a shape names one dimension of the model.
DIMENSIONS = {
    "layers": 2, "hidden": 3, "heads": 5, "kv_heads": 7, "head_dim": 11, "vocabulary": 13, "channels": 17,
    "height": 19, "width": 23, "tokens_per_image": 29, "page_size": 31,
}  # fmt: skip


def _documented(graph: GraphName) -> list[tuple[str, str, str]]:
    section = DOC.split(f"\n## {graph}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\S+?)` \| (\w+) \| \[(.*?)\] \|", section, flags=re.MULTILINE)


@pytest.mark.parametrize("graph", GRAPHS)
def test_documented_tensors(graph: GraphName) -> None:
    numbers = dict(DIMENSIONS)
    page_size = numbers.pop("page_size")
    image = {f"image_{name}": numbers.pop(name) for name in ("channels", "height", "width")}
    spec = graph_spec(graph, ModelShape(**numbers, **image), page_size, "bfloat16")  # the model's: no other is of it
    names = {size: name for name, size in DIMENSIONS.items()}
    wanted = []
    for tensor in (*spec.inputs, *spec.outputs):
        name = re.sub(r"_(\d+)$", "_{layer}", tensor.name)
        shape = [
            re.sub(r"_\d+$", "", dim) if isinstance(dim, str) else names.get(dim, str(dim)) for dim in tensor.shape
        ]
        row = (name, "model" if tensor.dtype == "bfloat16" else tensor.dtype, ", ".join(shape))
        if row not in wanted:
            wanted.append(row)
    assert _documented(graph) == wanted
