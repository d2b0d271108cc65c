"""Which operators a graph is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto


def count_nodes(file: Path) -> Counter[str]:
    """Nodes of an ONNX file by operator, subgraphs and the bodies of its functions (each once) included.

    Operators of ONNX's own domain go by their names, others by `domain::name`.
    """
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    counts: Counter[str] = Counter()
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        _count(nodes, counts)
    return counts


def _count(nodes: Iterable[NodeProto], counts: Counter[str]) -> None:
    for node in nodes:
        counts[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                _count(graph.node, counts)
