"""Engines for GPUs that this machine does not have: what is built, what the builder says of it, what is refused."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from helpers import bundles
from helpers.bundles import build_recipe, refusal

from zipvl_compile.engines import tensorrt_rtx
from zipvl_compile.engines.base import Job, availabilities
from zipvl_compile.engines.gpus import compute_capability
from zipvl_compile.engines.profiles import Range, ranges, sizes
from zipvl_compile.engines.tensorrt_rtx_layers import layer_report
from zipvl_compile.graphs.inline import inline_functions
from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.schema import Target
from zipvl_plugins import ops
from zipvl_plugins.onnx_text import DOMAIN, OPSET
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GRAPHS, ModelShape, graph_spec
from zipvl_serving.errors import InputError, ZipvlError

RTX = "target.backend=tensorrt_rtx"
SHAPE = ModelShape(2, 32, 4, 2, 16, 51, 3, 48, 48, 36)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle's recipe beside a checkpoint with heads as narrow as TensorRT-RTX takes them."""
    folder = tmp_path_factory.mktemp("rtx")
    bundles.write_checkpoint(folder / "checkpoint", head_dim=16)
    file = folder / "tiny.yaml"
    file.write_text(bundles.RECIPE)
    return file


@dataclass(frozen=True)
class Case:
    """What is asked for, and what comes of it."""

    gpu: str
    dtype: str
    sm: str
    weights: str
    precision: str
    """As the builder calls the type of the weights."""

    def __str__(self) -> str:
        return f"{self.gpu}-{self.dtype}"


CASES = (Case("a100", "auto", "SM80", "float16", "Half"), Case("L4", "bfloat16", "SM89", "bfloat16", "BFloat16"))


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def bundle(recipe: Path, case: Case) -> Bundle:
    asked = (RTX, f"target.gpu={case.gpu}", f"model.dtype={case.dtype}", "zipvl.dense_layers=1")
    return Bundle.open(build_recipe(recipe, recipe.parent / case.sm, *asked, use_cache=False).bundle)


def test_a_bundle_for_a_gpu_that_is_not_here(bundle: Bundle, case: Case) -> None:
    engine, model = bundle.manifest.engine, bundle.manifest.model
    assert (engine.backend, engine.gpu, engine.weights) == ("tensorrt_rtx", case.sm, None)
    assert engine.backend_version == importlib.metadata.version("tensorrt-rtx-cu13")
    assert model.dtype == case.weights
    assert bundle.manifest.break_even.tokens is None, "nothing can be measured"
    assert {f"{graph}.engine" for graph in GRAPHS} <= set(bundle.manifest.files)
    assert not {name for name in bundle.manifest.files if name.endswith((".onnx", ".safetensors"))}


def test_attention_is_fused_and_the_device_waited_for_twice_a_layer(bundle: Bundle, case: Case) -> None:
    reports = bundle.manifest.engine.reports
    for graph in GRAPHS:
        report = reports[graph]
        assert report["bytes"] == bundle.manifest.files[f"{graph}.engine"].bytes
        assert report["seconds"] > 0 and report["network_layers"] > 0 and report["layers"] > 0
        assert report["precision"][case.precision] > 0
    assert reports["prefill"]["fused_attention"] == reports["decode"]["fused_attention"] == bundles.LAYERS
    assert "Float" in reports["prefill"]["precision"], "scores are float32"
    selecting = bundles.LAYERS - 1
    assert reports["prefill"]["host_copies"] == 2 * selecting, "the branch on ratio_min, and the count"
    assert reports["decode"]["host_copies"] == bundles.LAYERS, "the longest context"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["target.gpu=h200"], "target.gpu: tensorrt_rtx does not build for 'h200' (SM90); valid: a10, a100, "),
        (["target.gpu=sm90"], "target.gpu: tensorrt_rtx does not build for 'sm90' (SM90); valid: a10, a100, "),
        (["target.gpu=a101"], "target.gpu: unknown GPU 'a101'; did you mean "),
        (["target.gpu=a100", "model.dtype=float32"], "model.dtype: 'float32' cannot run on tensorrt_rtx; valid: auto"),
        (["target.gpu=t4", "model.dtype=bfloat16"], "model.dtype: SM75 has no attention kernel for bfloat16; valid: "),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(
    recipe: Path, tmp_path: Path, overrides: list[str], line: str
) -> None:
    with refusal(InputError, line):
        build_recipe(recipe, tmp_path / "out", RTX, *overrides)
    assert not (tmp_path / "out").exists()


def test_a_gpu_must_be_named_where_none_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(backend="tensorrt_rtx")
    monkeypatch.setattr(tensorrt_rtx, "gpu_here", lambda: None)
    with refusal(InputError, "target.gpu: tensorrt_rtx builds for a GPU, and this machine has none; name one, as a100"):
        tensorrt_rtx.TensorRTRTXBuilder.gpu(target)
    monkeypatch.setattr(tensorrt_rtx, "gpu_here", lambda: "SM86")
    assert tensorrt_rtx.TensorRTRTXBuilder.gpu(target) == "SM86"


def test_heads_too_narrow_are_refused_before_anything_is_built(tiny_recipe: Path, tmp_path: Path) -> None:
    with refusal(InputError, "head_dim is 8, for which TensorRT-RTX has no attention kernel"):
        build_recipe(tiny_recipe, tmp_path / "out", RTX, "target.gpu=a100")


def test_what_the_parser_cannot_take_is_named_in_one_line(recipe: Path, tmp_path: Path) -> None:
    node = onnx.helper.make_node("NoSuchOperator", ["input_ids"], ["y"], name="culprit")
    tensors = [onnx.helper.make_tensor_value_info(name, 7, ["tokens"]) for name in ("input_ids", "y")]
    graph = onnx.helper.make_graph([node], "g", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
    loaded = load_recipe(recipe, (RTX, "target.gpu=a100", "model.dtype=float16")).recipe
    builder = tensorrt_rtx.TensorRTRTXBuilder(Job(loaded, SHAPE, str))
    with refusal(ZipvlError, "TensorRT-RTX cannot parse prefill: node culprit (NoSuchOperator): "):
        builder.build_graph("prefill", ir.serde.deserialize_model(model), tmp_path, lambda detail: None)


@pytest.mark.parametrize(("here", "why"), [("SM80", None), (None, "no CUDA GPU"), ("SM89", "SM89")])
def test_engines_run_on_their_own_gpu_only(
    here: str | None, why: str | None, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_rtx, "gpu_here", lambda: here)
    loaded = load_recipe(recipe, (RTX, "target.gpu=a100", "model.dtype=float16")).recipe
    reason = tensorrt_rtx.TensorRTRTXBuilder(Job(loaded, SHAPE, str)).runs_here()
    assert reason == (f"the engines are for SM80, this machine has {why}" if why else None)


def test_names_of_gpus() -> None:
    for name in ("a100", "A100", "NVIDIA A100", "a100-80gb", "A100 80GB", "sm80", "SM80", "sm_80", " a30 "):
        assert compute_capability(name) == "SM80"
    assert compute_capability("rtx4090") == compute_capability("L40S") == "SM89"
    for name in ("sm089", "sm8"):
        with pytest.raises(InputError, match=f"unknown GPU '{name}'"):
            compute_capability(name)
    with pytest.raises(InputError, match="unknown GPU 'a1000'; did you mean 'a100'"):
        compute_capability("a1000")


def test_ranges_cover_what_the_recipe_promises(recipe: Path) -> None:
    loaded = load_recipe(recipe, (RTX, "model.dtype=float16")).recipe
    found = ranges(loaded, SHAPE)
    assert found["tokens"] == Range(1, bundles.MAX_INPUT_TOKENS // 2, bundles.MAX_INPUT_TOKENS)
    assert found["probes"].most == 16
    assert found["blocks"].most * bundles.PAGE_SIZE >= bundles.MAX_INPUT_TOKENS + bundles.MAX_NEW_TOKENS
    assert found["pages"].most == (1 << 20) // (2 * bundles.PAGE_SIZE * SHAPE.kv_heads * SHAPE.head_dim * 2)
    for graph in GRAPHS:
        for tensor in graph_spec(graph, SHAPE, bundles.PAGE_SIZE, "float16").inputs:
            least, usual, most = sizes(tensor.shape, found)
            assert len(least) == len(tensor.shape)
            assert all(1 <= a <= b <= c for a, b, c in zip(least, usual, most, strict=True))


def test_the_report_counts_the_builders_listing() -> None:
    listing = """Layers:
Name: copy_d2h_1, LayerType: copy, Inputs: [], Constants: [], Outputs: [ { Name: x, Datatype: Bool }], TacticName:
Name: n[DevicetoShapeHostCopy], LayerType: DeviceToShapeHost, Inputs: [], Outputs: [], TacticName:
Name: _gemm_mha_v2_5, LayerType: kgen, Inputs: [ { Datatype: Float }], Outputs: [ { Name: a, Datatype: Half }],
Name: proj, LayerType: gemm, Inputs: [], Outputs: [ { Name: b, Dimensions: [-1,8], Datatype: Half, Format: f }],
Name: sums, LayerType: kgen, Inputs: [], Outputs: [ { Name: c, Datatype: Float }, { Name: d, Datatype: Half }],
Name: w, LayerType: wait, Inputs: [], Outputs: []
I/O Tensors:
 Name: q, IOMode: Input"""
    assert layer_report(listing) == {
        "layers": 6,
        "kernels": {"gemm": 1, "kgen": 2, "copy": 1},
        "fused_attention": 1,
        "precision": {"Half": 2, "Float": 1},
        "host_copies": 2,
    }


def test_functions_are_written_out_and_absent_inputs_go() -> None:
    node = onnx.helper.make_node("gather_projection", ["x", "w", "", "index", "count"], ["y"], domain=DOMAIN)
    graph = onnx.helper.make_graph([node, node], "g", [], [])
    graph.node[1].output[0] = "z"
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)]
    function = ops.onnx_function("gather_projection")
    model = ir.serde.deserialize_model(onnx.helper.make_model(graph, functions=[function], opset_imports=imports))
    inline_functions(model)
    products = [node for node in model.graph if node.op_type == "Gemm"]
    assert [len(node.inputs) for node in products] == [2, 2]
    names = [value.name for node in model.graph for value in node.outputs]
    assert len(names) == len(set(names)) and {"y", "z"} <= set(names)
    assert not model.functions and {node.domain for node in model.graph} == {""}


def test_doctor_says_the_version() -> None:
    state = availabilities()["tensorrt_rtx"]
    assert state.usable and state.detail == importlib.metadata.version("tensorrt-rtx-cu13")
