"""The TensorRT builder: what it asks of the library, and what it says where that cannot be."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from helpers.fake_trt_builder import Config, FakeTrt, Flag, Network, Profile, TimingCache
from helpers.tensorrt_stub import in_stub
from helpers.trt_api import missing, offered, values_of

from zipvl_compile.engines import tensorrt
from zipvl_compile.engines.base import Availability, EngineFile, Job
from zipvl_compile.engines.profiles import Range, Ranges
from zipvl_compile.engines.tensorrt import TensorRTBuilder
from zipvl_compile.engines.tensorrt_profiles import buckets
from zipvl_compile.models.decoder import Decode, Decoder, Prefill
from zipvl_compile.models.dtype import in_dtype
from zipvl_compile.models.spec import DecoderSpec, MethodSpec, Rope
from zipvl_compile.recipe.schema import Recipe, Target
from zipvl_plugins.gpu import tensorrt_plugins
from zipvl_serving.contract import GraphName, ModelShape
from zipvl_serving.errors import InputError, ZipvlError

SPEC = DecoderSpec(
    layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocabulary=40, norm_eps=1e-6,
    rope=Rope((1.0, 0.1, 0.01, 0.001)), qkv_bias=True, tied_embeddings=True, image_token=4,
)  # fmt: skip
SHAPE = ModelShape(2, 32, 4, 2, 8, 40, 3, 48, 48, 36)
RECIPE = {
    "name": "case",
    "model": {"source": "checkpoint", "dtype": "float16"},
    "target": {"backend": "tensorrt", "limits": {"max_input_tokens": 3000, "max_batch": 24}},
}


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeTrt:
    """A machine with TensorRT and an A100."""
    fake = FakeTrt()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: "SM80")
    monkeypatch.setattr(tensorrt_plugins, "register", fake.registered.append)
    monkeypatch.setenv("ZIPVL_CACHE_DIR", str(tmp_path / "cache"))
    return fake


def builder() -> TensorRTBuilder:
    return TensorRTBuilder(Job(Recipe.model_validate(RECIPE), SHAPE, lambda name: name))


@functools.cache
def exported(graph: GraphName) -> ir.Model:
    def decoder() -> Decoder:
        return in_dtype(torch.float16, lambda: Decoder(SPEC))

    modules = {"prefill": lambda: Prefill(decoder(), MethodSpec()), "decode": lambda: Decode(decoder())}
    return builder().export(graph, modules[graph])


def build(graph: GraphName, folder: Path, said: list[str] | None = None) -> EngineFile:
    model = exported(graph).clone()
    places = {name: (0, 2 * prod(model.graph.initializers[name].shape)) for name in builder().weights(model)}
    said = [] if said is None else said
    return builder().build(graph, model, places, folder, said.append)


def test_an_engine_is_built_with_plugins_profiles_and_a_report(trt: FakeTrt, tmp_path: Path) -> None:
    said: list[str] = []
    made = build("prefill", tmp_path, said)
    assert (tmp_path / made.name).read_bytes() == b"engine" and made.name == "prefill.engine"
    assert not list(tmp_path.glob("*.onnx"))
    assert trt.registered == [80]
    (network,), (config,) = trt.networks, trt.configs
    assert network.flags == 1 << Flag.STRONGLY_TYPED | 1 << Flag.PREFER_AOT_PYTHON_PLUGINS
    assert made.report["plugins"]["probe_scores_sums"] == made.report["plugins"]["sparse_attention"] == SPEC.layers
    assert made.report["plugins"]["gather_rows"] == 2 * SPEC.layers
    assert sum(made.report["plugins"].values()) < made.report["network_layers"] == network.num_layers
    assert made.report["bytes"] == len(b"engine") and made.report["seconds"] >= 0
    assert made.report["profiles"] == len(config.profiles) == 3
    inputs = {"input_ids", "image_features", "position_ids", "probe_positions", "forced"}
    for profile in config.profiles:
        assert set(profile.shapes) == inputs | {"tau", "ratio_min", "ratio_max"}
        assert profile.shapes["tau"] == ([1], [1], [1])
        least, usual, most = (sizes[0] for sizes in profile.shapes["input_ids"])
        assert profile.shapes["forced"] == profile.shapes["position_ids"] == ([least], [usual], [most])
        assert profile.shapes["image_features"][2] == [most, SPEC.hidden]
    assert said == ["Building Engine", "Tactics", "Building Engine, 1 of 2"]


def test_decode_has_profiles_by_batch_over_one_pool_of_pages(trt: FakeTrt, tmp_path: Path) -> None:
    made = build("decode", tmp_path)
    assert made.report["plugins"] == {
        "paged_attention_splits": SPEC.layers,
        "paged_attention_combine": SPEC.layers,
    }
    profiles = trt.configs[0].profiles
    assert [profile.shapes["input_ids"][2] for profile in profiles] == [[2], [8], [24]]
    for profile in profiles:
        (layers, batch, blocks), pages = profile.shapes["block_tables"][2], profile.shapes["key_pages"]
        assert (layers, batch) == (SPEC.layers, profile.shapes["input_ids"][2][0])
        assert blocks * 16 >= 3000 + 256 and pages[1][1:] == pages[2][1:] == [16, 2, 8]
        assert pages[0][0] == 1 <= pages[1][0] <= pages[2][0]  # usual: timed on, so no whole pool


def ranges(tokens: int) -> Ranges:
    some = {name: Range(1, 7, 7) for name in ("images", "batch", "pages", "blocks")}
    return {**some, "tokens": Range(1, tokens, tokens), "visual": Range(1, 576, tokens), "probes": Range(1, 128, 128)}


@pytest.mark.parametrize("tokens", [1, 100, 255, 256, 257, 1024, 4096, 5000, 131072])
def test_every_prompt_has_one_bucket(tokens: int) -> None:
    found = buckets("prefill", ranges(tokens))
    assert 1 <= len(found) <= 4
    least = 1
    for bucket in found:
        own = bucket["tokens"]
        assert own.least == least and own.usual == own.most >= own.least
        assert bucket["visual"].usual <= bucket["visual"].most == own.most
        assert bucket["probes"].most == min(128, own.most)
        least = own.most + 1
    assert found[-1]["tokens"].most == tokens
    for bucket in found[:-1]:
        assert bucket["tokens"].most.bit_count() == 1
    assert len(found) > 1 or tokens <= 1024
    assert buckets("vision", ranges(tokens)) == [ranges(tokens)]


def test_timings_are_kept_from_build_to_build(trt: FakeTrt, tmp_path: Path) -> None:
    build("decode", tmp_path)
    (file,) = (tmp_path / "cache" / "timings").iterdir()
    assert re.fullmatch(rf"tensorrt-{FakeTrt.__version__}-SM80-[0-9a-f]{{12}}\.bin", file.name)
    assert file.read_bytes() == b"timed "
    build("decode", tmp_path)
    assert file.read_bytes() == b"timed timed "
    trt.takes_timings = False  # those of another GPU of the same capability
    build("decode", tmp_path)
    assert file.read_bytes() == b"timed "


def test_timings_that_cannot_be_kept_are_done_without(
    trt: FakeTrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ZIPVL_CACHE_DIR", str(tmp_path / "file"))
    assert build("decode", tmp_path).report["bytes"] == 6


def test_what_the_library_refuses_is_one_line(trt: FakeTrt, tmp_path: Path) -> None:
    trt.refused_node = "CumSum"
    with pytest.raises(ZipvlError, match=r"^TensorRT cannot parse prefill: node .* \(CumSum\): not like this$"):
        build("prefill", tmp_path)
    trt.refused_node, trt.build_error = None, "no\nroom"
    with pytest.raises(ZipvlError, match=r"^TensorRT cannot build prefill: no room$"):
        build("prefill", tmp_path)


def test_a_node_that_became_no_plugin_is_refused(trt: FakeTrt, tmp_path: Path) -> None:
    trt.no_plugin = "gather_rows"
    with pytest.raises(ZipvlError, match=r"made no plugin of gather_rows_\d+ \(\+3 more\)$"):
        build("prefill", tmp_path)


def test_the_gpu_is_the_one_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: "SM80")
    assert TensorRTBuilder.gpu(Target()) == TensorRTBuilder.gpu(Target(gpu="a100")) == "SM80"
    with pytest.raises(InputError, match=r"for the GPU at hand \(SM80\), not for 'h100' \(SM90\)"):
        TensorRTBuilder.gpu(Target(gpu="h100"))
    monkeypatch.setattr(tensorrt, "gpu_here", lambda: None)
    with pytest.raises(InputError, match=r"torch finds none here; target\.backend=tensorrt_rtx builds without one"):
        TensorRTBuilder.gpu(Target())


@pytest.mark.parametrize(
    ("modules", "driver", "says"),
    [
        ({"tensorrt", "triton"}, True, None),
        ({"triton"}, True, "tensorrt is missing: pip install -e '.[tensorrt]' in the checkout"),
        ({"triton", "tensorrt_bindings"}, True, "libraries are missing (its bindings alone are here): pip install"),
        ({"tensorrt"}, True, "triton is missing, which compiles its plugins: pip install triton"),
        ({"tensorrt", "triton"}, False, "no NVIDIA driver (libcuda.so.1); target.backend=tensorrt_rtx builds without"),
    ],
)
def test_what_is_missing_is_one_line(
    modules: set[str], driver: bool, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    optional = {"tensorrt", "triton", "tensorrt_bindings"}

    def with_modules(name: str, *arguments: Any) -> Any:
        return name in modules or None if name in optional else find(name, *arguments)

    missing = Availability(False, "tensorrt is missing: pip install -e '.[tensorrt]' in the checkout")
    state = Availability(True, "11.4") if "tensorrt" in modules else missing
    monkeypatch.setattr(importlib.util, "find_spec", with_modules)
    monkeypatch.setattr(tensorrt, "installed", lambda backend: state)
    monkeypatch.setattr(tensorrt, "_driver_is_here", lambda: driver)
    found = TensorRTBuilder.availability()
    assert found.usable == (says is None) and "\n" not in found.detail
    assert says is None or says in found.detail


def test_the_fakes_offer_what_the_library_has() -> None:
    wanted = {
        "": ["Builder", "OnnxParser", "ILogger", "IProgressMonitor"],
        "NetworkDefinitionCreationFlag": [flag.name for flag in Flag],
        "ProfilingVerbosity": ["DETAILED"],
        "LayerType": ["PLUGIN_V3"],
        "ILayer": ["name", "type"],
        "IProgressMonitor": ["phase_start", "step_complete", "phase_finish"],
        "IOptimizationProfile": offered(Profile),
        "INetworkDefinition": offered(Network),
        "ITimingCache": offered(TimingCache),
        "IBuilderConfig": [*offered(Config), "profiling_verbosity", "progress_monitor"],
        "Builder": [
            "create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network",
        ],
        "OnnxParser": ["parse_from_file", "num_errors", "get_error"],
    }  # fmt: skip
    assert in_stub(missing, "tensorrt", wanted) == []
    assert in_stub(values_of, "tensorrt", "NetworkDefinitionCreationFlag") == {flag.name: flag.value for flag in Flag}
