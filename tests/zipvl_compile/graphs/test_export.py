"""What an exported graph is, whatever it computes."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import pytest

from zipvl_compile.graphs.export import export_graph
from zipvl_compile.graphs.lint import lint
from zipvl_compile.graphs.weights import open_weights
from zipvl_compile.models.decoder import Decoder, Prefill
from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope
from zipvl_serving.contract import ModelShape, TensorSpec, graph_spec

SPEC = DecoderSpec(
    layers=3, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=40, norm_eps=1e-6,
    rope=Rope((1.0, 0.1, 0.01, 0.001)), qkv_bias=True, tied_embeddings=True, image_token=4,
)  # fmt: skip
SHAPE = ModelShape(3, 32, 4, 2, 8, 40, 3, 48, 48, 36)


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return export_graph(lambda: Prefill(Decoder(SPEC), MethodSpec(dense_layers=1)), graph_spec("prefill", SHAPE, 16))


def test_ops_stay_nodes_with_functions(model: ir.Model) -> None:
    used = [node.op_type for node in model.graph if node.domain == "zipvl"]
    assert used.count("probe_scores") == used.count("select_tokens") == SPEC.layers - 1
    assert used.count("sparse_attention") == SPEC.layers
    assert {function.name for function in model.functions.values()} == set(used)
    for function in model.functions.values():
        assert function.opset_imports[""] == model.opset_imports[""] == 23


def test_the_portable_graph_passes_the_lint(model: ir.Model) -> None:
    assert lint(model, weights_open=True) == []


def test_no_inner_shape_says_n(model: ir.Model) -> None:
    boundary = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            assert value in boundary or value.shape is None
    names = {str(dim) for value in boundary for dim in value.shape if not isinstance(dim, int)}
    assert names == {"tokens", "visual", "probes", "cached_0", "cached_1", "cached_2"}


def test_parameters_are_open_and_nothing_else_is(model: ir.Model) -> None:
    # Q, V and O of every layer too: a lazily projected weight is an input of its op.
    wanted = {f"decoder.{name}" for name in Decoder(SPEC).state_dict()}
    assert set(open_weights(model.graph)) == wanted
    for name in set(model.graph.initializers) - wanted:
        assert model.graph.initializers[name].const_value.size <= 16


def test_a_graph_off_the_contract_is_not_written() -> None:
    spec = graph_spec("prefill", SHAPE, 16)
    wrong = replace(spec, outputs=(TensorSpec("logits", "float32", (41,)), *spec.outputs[1:]))
    with pytest.raises(AssertionError, match="logits"):
        export_graph(lambda: Prefill(Decoder(SPEC), MethodSpec()), wrong)
