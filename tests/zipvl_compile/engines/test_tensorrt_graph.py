"""Graphs with plugins in the place of ops: complete, and the same numbers when every plugin is its kernel."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from helpers.interpreter import interpret_call
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from zipvl_compile.engines.tensorrt_graph import lint_plugins, use_plugins
from zipvl_compile.graphs.export import export_graph
from zipvl_compile.graphs.weights import open_weights
from zipvl_compile.models.decoder import Decode, Decoder, Prefill
from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope
from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import Stage, run_stage
from zipvl_plugins.onnx_text import DOMAIN
from zipvl_serving.contract import GraphName, ModelShape, graph_spec

SPEC = DecoderSpec(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=40, norm_eps=1e-6,
    rope=Rope((1.0, 0.1, 0.01, 0.001)), qkv_bias=True, tied_embeddings=True, image_token=4,
)  # fmt: skip
SHAPE = ModelShape(2, 32, 4, 2, 8, 40, 3, 48, 48, 36)
PAGE_SIZE = 4


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(torch.seed() % 2**31)
    return Decoder(SPEC).eval().requires_grad_(False)


def export(graph: GraphName, build: Callable[[], torch.nn.Module]) -> ir.Model:
    model = export_graph(build, graph_spec(graph, SHAPE, PAGE_SIZE))
    model.graph.name = graph
    return model


@functools.cache
def exported() -> ir.Model:
    return export("prefill", lambda: Prefill(Decoder(SPEC), MethodSpec(dense_layers=1)))


def prefill_graph() -> ir.Model:
    return exported().clone()


def _run_stage(op: str, name: str, inputs: list[Any], attributes: dict[str, Any]) -> list[Any]:
    stage = next(stage for stage in ops.stages(op) if stage.name == name)
    tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs]
    return [made.numpy() for made in run_stage(stage, tensors, attributes)]


def plugin_class(op: str, stage: Stage) -> type[OpRun]:
    """An operator of ONNX's reference evaluator that runs a stage's kernel in Triton's interpreter."""

    def run(self: OpRun, *inputs: Any, **attributes: Any) -> tuple[Any, ...]:
        taken = {name: attributes[name] for name in stage.attributes}
        return tuple(interpret_call(_run_stage, op, stage.name, list(inputs), taken))

    return type(stage.name, (OpRun,), {"op_domain": DOMAIN, "_run": run})


def evaluate(model: ir.Model, decoder: Decoder, inputs: dict[str, Any]) -> dict[str, Any]:
    for name in open_weights(model.graph):
        weight = decoder.get_parameter(name.removeprefix("decoder.")).numpy()
        model.graph.initializers[name].const_value = ir.tensor(weight, name=name)
    plugins = [plugin_class(op, stage) for op in ops.OPS for stage in ops.stages(op)]
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=plugins)
    return dict(zip((value.name for value in model.graph.outputs), evaluator.run(None, inputs), strict=True))


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("ratios", [(0.0, 1.0), (0.3, 0.3), (1.0, 1.0)], ids=["adaptive", "forced", "dense"])
def test_prefill_of_plugins_is_the_decoders(decoder: Decoder, ratios: tuple[float, float]) -> None:
    rng = np.random.default_rng()
    n, probes = 29, 6
    inputs = {
        "input_ids": rng.integers(5, 40, n),
        "image_features": np.zeros((1, SPEC.hidden), dtype=np.float32),
        "position_ids": np.arange(n),
        "probe_positions": np.append(np.sort(rng.choice(n - 1, probes - 1, replace=False)), n - 1),
        "forced": np.arange(n) == n - 1,
        "tau": np.array([0.8], dtype=np.float32),
        "ratio_min": np.array([ratios[0]], dtype=np.float32),
        "ratio_max": np.array([ratios[1]], dtype=np.float32),
    }
    model = prefill_graph()
    use_plugins(model)
    found = evaluate(model, decoder, inputs)
    wanted = Prefill(decoder, MethodSpec(dense_layers=1))(*(torch.from_numpy(value) for value in inputs.values()))
    logits, counts, *kept = (value.numpy() for value in wanted)
    assert found["counts"].tolist() == counts.tolist()
    assert relative(found["logits"], logits) < 1e-4
    for layer, count in enumerate(counts):
        index, key, value = kept[3 * layer : 3 * layer + 3]
        assert found[f"index_{layer}"][:count].tolist() == index[:count].tolist()
        assert len(found[f"key_{layer}"]) == len(found[f"value_{layer}"]) == n
        assert relative(found[f"key_{layer}"][:count], key[:count]) < 1e-4
        assert relative(found[f"value_{layer}"][:count], value[:count]) < 1e-4


def test_decode_of_plugins_is_the_decoders(decoder: Decoder) -> None:
    rng = np.random.default_rng()
    batch, pages, blocks = 3, 9, 2
    pool = (pages, PAGE_SIZE, SPEC.kv_heads, SPEC.head_dim)
    inputs = {
        "input_ids": rng.integers(5, 40, batch),
        "position_ids": rng.integers(8, 20, batch),
        "key_pages": rng.standard_normal(pool, dtype=np.float32),
        "value_pages": rng.standard_normal(pool, dtype=np.float32),
        "block_tables": rng.integers(0, pages, (SPEC.layers, batch, blocks)).astype(np.int32),
        "context": rng.integers(1, blocks * PAGE_SIZE + 1, (SPEC.layers, batch)).astype(np.int32),
    }
    model = export("decode", lambda: Decode(Decoder(SPEC)))
    use_plugins(model)
    found = evaluate(model, decoder, inputs)
    wanted = Decode(decoder)(*(torch.from_numpy(value) for value in inputs.values()))
    for name, value in zip(("logits", "new_keys", "new_values"), wanted, strict=True):
        assert relative(found[name], value.numpy()) < 1e-4, name


def test_every_zipvl_node_becomes_its_plugins() -> None:
    model = prefill_graph()
    before = Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    made = use_plugins(model)
    plugins = [node for node in model.graph if node.domain == DOMAIN]
    wanted = Counter({stage.name: before[op] for op in before for stage in ops.stages(op)})
    assert Counter(node.op_type for node in plugins) == wanted
    assert {node.name: node.op_type for node in plugins} == made and len(made) == len(plugins)
    assert lint_plugins(model) == [] and not model.functions
    for node in plugins:
        assert set(node.attributes) - {"plugin_namespace", "plugin_version", "aot"} <= {"scale"}


def test_what_plugins_lack_is_in_the_graph() -> None:
    model = prefill_graph()
    use_plugins(model)
    (cast,) = {node.inputs[2].producer() for node in model.graph if node.op_type == "select_tokens"}
    assert cast.op_type == "Cast" and cast.inputs[0].name == "forced" and cast.attributes["to"].value == 6
    for node in model.graph:
        if node.op_type == "projection_scatter":  # this decoder's output projection has no bias
            zeros = node.inputs[2].const_value
            assert zeros.dtype == node.inputs[1].dtype and zeros.numpy().tolist() == [0.0] * SPEC.hidden


def test_the_boundary_keeps_its_names_and_says_n_rows() -> None:
    model, untouched = prefill_graph(), prefill_graph()
    use_plugins(model)
    for found, wanted in zip(
        (*model.graph.inputs, *model.graph.outputs),
        (*untouched.graph.inputs, *untouched.graph.outputs),
        strict=True,
    ):
        assert (found.name, found.dtype) == (wanted.name, wanted.dtype)
        assert [str(dim) for dim in found.shape] == [
            "tokens" if str(dim).startswith("cached_") else str(dim) for dim in wanted.shape
        ]
    onnx.checker.check_model(ir.to_proto(_filled(model)))


def _filled(model: ir.Model) -> ir.Model:
    for name in open_weights(model.graph):
        value = model.graph.initializers[name]
        value.const_value = ir.tensor(np.zeros(value.shape.numpy(), dtype=value.dtype.numpy()), name=name)
    return model


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda model, node: setattr(node, "op_type", "gather_row"), "node gather_row: is no plugin"),
        (lambda model, node: node.replace_input_with(1, None), "node gather_rows: input 1 is absent"),
        (lambda model, node: node.attributes.pop("aot"), "node gather_rows: attribute aot is not 1"),
    ],
)
def test_the_lint_sees(break_it: Callable[[ir.Model, ir.Node], object], says: str) -> None:
    model = prefill_graph()
    assert len(lint_plugins(model)) > len(model.functions)
    use_plugins(model)
    break_it(model, next(node for node in model.graph if node.op_type == "gather_rows"))
    assert lint_plugins(model) == [says]
