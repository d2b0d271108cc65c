"""Weights of graphs, before they have data."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from zipvl_compile.graphs.weights import fold_transposes, open_weights


@pytest.mark.parametrize(("perm", "names"), [((1, 0), ["w.T"]), ((0, 1), ["w"])])
def test_only_a_matrix_transpose_is_folded(perm: tuple[int, int], names: list[str]) -> None:
    """A square weight shows no difference in shape: the permutation decides."""
    weight = ir.Value(name="w", shape=ir.Shape((4, 4)), type=ir.TensorType(ir.DataType.FLOAT))
    transpose = ir.node("Transpose", [weight], {"perm": perm})
    use = ir.node("Relu", [transpose.outputs[0]])
    graph = ir.Graph([], use.outputs, nodes=[transpose, use], initializers=[weight], opset_imports={"": 23})
    fold_transposes(graph)
    assert open_weights(graph) == names
    assert [node.op_type for node in graph] == (["Relu"] if perm == (1, 0) else ["Transpose", "Relu"])
