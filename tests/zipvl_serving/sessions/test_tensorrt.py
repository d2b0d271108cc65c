"""Sessions of TensorRT and TensorRT-RTX over engines that ONNX Runtime computes: the answers of its own session."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bundles import QUESTION, random_image, refusal
from helpers.fake_trt_runtime import SCRATCH_BYTES, Context, Engine, FakeTrt, write_engine
from helpers.tensorrt_stub import in_stub
from helpers.trt_api import missing, offered

from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GRAPHS, GraphName, graph_spec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import KVPool, block_tables
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions import tensorrt
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, open_session
from zipvl_serving.sessions.device_session import DeviceSession
from zipvl_serving.sessions.trt_engine import DTYPES

BUCKETS: dict[GraphName, tuple[str, list[int]]] = {
    "vision": ("images", [1]),
    "prefill": ("tokens", [32, 128, 512]),
    "decode": ("batch", [2, 32]),
}
OTHERS = {"visual": 512, "probes": 16, "pages": 10**6, "blocks": 136}


def engine_bundle(folder: Path, onnx: Bundle, backend: str, **engine: Any) -> Bundle:
    """The bundle with engines in the place of its graphs, and no weights file."""
    manifest = onnx.manifest
    folder.mkdir()
    for graph in GRAPHS:
        spec = graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)
        bucketed, tops = BUCKETS[graph]
        profiles, least = [], 1
        for top in tops:
            sizes = {name: (1, most) for name, most in OTHERS.items()} | {bucketed: (least, top)}
            profiles.append(
                {
                    tensor.name: tuple([sizes.get(d, (d, d))[end] for d in tensor.shape] for end in (0, 1))
                    for tensor in spec.inputs
                }
            )
            least = top + 1
        write_engine(folder / f"{graph}.engine", onnx.graph_path(graph), profiles, host=("tau",))
    files = {graph: f"{graph}.engine" for graph in GRAPHS}
    described = {"backend": backend, "gpu": "SM80", "graphs": files, "weights": None} | engine
    changed = manifest.model_copy(update={"engine": manifest.engine.model_copy(update=described), "files": {}})
    (folder / "processor").symlink_to(onnx.processor_folder)
    return Bundle(folder, changed)


@pytest.fixture(scope="module")
def onnx_bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def trt(backend: str, monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    """A machine with an A100, its memory this process's."""
    fake = FakeTrt(rows_of_t=backend == "tensorrt_rtx")
    monkeypatch.setitem(sys.modules, backend, fake)
    monkeypatch.setattr(tensorrt._EngineSession, "_find_device", classmethod(lambda cls, bundle: torch.device("cpu")))
    monkeypatch.setattr(tensorrt, "cuda_capture", lambda: fake.capture)
    return fake


@pytest.fixture
def bundle(tmp_path: Path, onnx_bundle: Bundle, backend: str) -> Bundle:
    return engine_bundle(tmp_path / "engines", onnx_bundle, backend)


@pytest.fixture
def session(trt: FakeTrt, bundle: Bundle) -> DeviceSession:
    opened = open_session(bundle)
    assert isinstance(opened, DeviceSession)
    return opened


def prefill_inputs(tokens: int, rng: np.random.Generator) -> PrefillInputs:
    probes = np.sort(rng.choice(tokens, min(tokens, 5), replace=False))
    probes[-1] = tokens - 1
    return PrefillInputs(
        input_ids=rng.integers(8, 40, tokens),
        position_ids=np.arange(tokens),
        probe_positions=np.unique(probes),
        forced=np.arange(tokens) == tokens - 1,
        tau=0.6,
        ratio_min=0.0,
        ratio_max=1.0,
    )


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 200, 512])
def test_prefill_is_the_graphs_own(session: DeviceSession, trt: FakeTrt, onnx_bundle: Bundle, tokens: int) -> None:
    inputs = prefill_inputs(tokens, np.random.default_rng())
    wanted = open_session(onnx_bundle).prefill(inputs, None)
    found = session.prefill(inputs, None)
    np.testing.assert_array_equal(found.logits, wanted.logits)
    assert found.counts.tolist() == wanted.counts.tolist()
    for layer, count in enumerate(wanted.counts):
        np.testing.assert_array_equal(found.index[layer], wanted.index[layer])
        for mine, theirs in zip(found.cache[layer], wanted.cache[layer], strict=True):
            assert len(mine) == count
            np.testing.assert_array_equal(mine.numpy(), theirs)
    (call,) = trt.calls
    assert call.profile == [tokens <= 32, tokens <= 128, True].index(True)


def test_vision_is_the_graphs_own(session: DeviceSession, onnx_bundle: Bundle) -> None:
    pixels = np.random.default_rng().standard_normal((1, 3, 48, 48), dtype=np.float32)
    np.testing.assert_array_equal(session.vision(pixels), open_session(onnx_bundle).vision(pixels))


def decode_inputs(pool: KVPool, sequences: list[Any], rng: np.random.Generator) -> DecodeInputs:
    tables, context = block_tables(sequences)
    batch = len(sequences)
    ids, positions = rng.integers(8, 40, batch), np.full(batch, 40)
    return DecodeInputs(ids, positions, pool.keys, pool.values, tables, context)


def test_decode_repeats_a_capture_for_every_bucket(session: DeviceSession, trt: FakeTrt, onnx_bundle: Bundle) -> None:
    rng = np.random.default_rng()
    reference = open_session(onnx_bundle)
    pools = [KVPool.of(onnx_bundle.manifest, each) for each in (session, reference)]
    prompts = [prefill_inputs(tokens, rng) for tokens in (9, 30, 30, 100, 7)]
    cached = [[pool.store(each.prefill(prompt, None).cache) for prompt in prompts]
              for pool, each in zip(pools, (session, reference), strict=True)]  # fmt: skip
    trt.calls.clear()
    shapes = []
    for batch in (1, 1, 2, 3, 5, 4, 1):
        seed = int(rng.integers(1 << 30))
        found, wanted = (
            each.decode(decode_inputs(pool, sequences[:batch], np.random.default_rng(seed)))
            for each, pool, sequences in zip((session, reference), pools, cached, strict=True)
        )
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-4, atol=1e-5)
        for mine, theirs in zip(found[1:], wanted[1:], strict=True):
            np.testing.assert_allclose(mine[:, :batch].numpy(), theirs, rtol=1e-4, atol=1e-5)
        for pool, sequences, (_, keys, values) in zip(pools, cached, (found, wanted), strict=True):
            pool.append(sequences[:batch], keys, values)
        call = trt.calls[-1]
        shapes.append(call.shapes["block_tables"])
        assert call.profile == (call.shapes["input_ids"][0] > 2)
    assert [shape[1] for shape in shapes] == [1, 1, 2, 4, 8, 4, 1]
    assert all(shape[2].bit_count() == 1 for shape in shapes)
    # A context holds what its captured graph needs: no two sizes share one.
    for context in trt.contexts:
        assert len(context.placed) == 1 or context.engine.graph == "prefill"
    by_shape = {call.shapes["block_tables"]: call.context for call in trt.calls}
    assert len(set(by_shape.values())) == len(by_shape) == len(set(shapes))


def test_prefill_and_decode_share_their_scratch(session: DeviceSession, trt: FakeTrt) -> None:
    rng = np.random.default_rng()
    pool = KVPool.of(session.bundle.manifest, session)
    session.vision(rng.standard_normal((1, 3, 48, 48), dtype=np.float32))
    sequence = pool.store(session.prefill(prefill_inputs(9, rng), None).cache)
    session.decode(decode_inputs(pool, [sequence], rng))
    vision, prefill, *_, decode = trt.calls
    assert prefill.scratch == decode.scratch != vision.scratch
    assert (vision.scratch[1], prefill.scratch[1]) == (SCRATCH_BYTES["vision"], SCRATCH_BYTES["prefill"])


def test_a_bundle_of_engines_answers_as_its_graphs_do(trt: FakeTrt, bundle: Bundle, onnx_bundle: Bundle) -> None:
    image = random_image(int(np.random.default_rng().integers(1 << 30)))
    answers = []
    for each in (bundle, onnx_bundle):
        generator = Generator(each)
        answers.append(generator.answer(generator.prepare(QUESTION, [image]), SamplingParams(max_new_tokens=12)))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].prompt.counts == answers[1].prompt.counts


def test_a_prompt_that_no_profile_holds_is_one_line(session: DeviceSession) -> None:
    with refusal(ZipvlError, "the prefill engine was built for other sizes", "input_ids [513]"):
        session.prefill(prefill_inputs(513, np.random.default_rng()), None)


def test_a_gpu_without_room_is_one_line(session: DeviceSession, trt: FakeTrt) -> None:
    trt.full = True
    with refusal(ZipvlError, "the prefill engine cannot be started: out of memory"):
        session.prefill(prefill_inputs(5, np.random.default_rng()), None)


def test_an_engine_that_does_not_load_is_one_line(trt: FakeTrt, bundle: Bundle) -> None:
    bundle.graph_path("decode").write_bytes(b"torn")
    with refusal(ZipvlError, "decode.engine: cannot be loaded on this machine: no engine of mine"):
        open_session(bundle)


@pytest.mark.parametrize(
    ("graph", "other", "says"),
    [
        ("decode", "vision", "has or lacks block_tables, context, image_features"),
        ("prefill", "prefill", "logits is float32 [38], expected"),
    ],
)
def test_an_engine_off_the_contract_is_refused(
    trt: FakeTrt, bundle: Bundle, graph: GraphName, other: GraphName, says: str
) -> None:
    bundle.graph_path(graph).write_bytes(bundle.graph_path(other).read_bytes())
    shape = bundle.manifest.model.shape
    wrong = Bundle(bundle.path, bundle.manifest)
    if graph == other:
        model = bundle.manifest.model
        changed = model.model_copy(update={"shape": type(shape)(**{**vars(shape), "vocabulary": 39})})
        wrong = Bundle(bundle.path, bundle.manifest.model_copy(update={"model": changed}))
        says = says.replace("38", str(shape.vocabulary))
    with refusal(ZipvlError, f"{graph}.engine: breaks the contract: ", says):
        open_session(wrong)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_a_machine_without_the_gpu_is_told(bundle: Bundle, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with refusal(ZipvlError, "engines run on a GPU (SM80); torch finds none here"):
        open_session(bundle)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with refusal(ZipvlError, "engines are for SM80, this GPU is SM90; rebuild the bundle"):
        open_session(bundle)


@pytest.mark.parametrize("backend", ["tensorrt"])
def test_a_library_that_does_not_load_is_one_line(
    trt: FakeTrt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt")
    with refusal(ZipvlError, "needs TensorRT, which does not load here: No module named 'tensorrt'"):
        open_session(bundle)


def test_the_fakes_offer_what_the_libraries_have() -> None:
    shared = {
        "": ["Runtime", "ILogger", "IOutputAllocator"],
        "Runtime": ["deserialize_cuda_engine"],
        "ILogger": ["ERROR", "INTERNAL_ERROR", "log"],
        "TensorLocation": ["HOST", "DEVICE"],
        "ExecutionContextAllocationStrategy": ["USER_MANAGED"],
        "ICudaEngine": [
            *offered(Engine), "device_memory_size_v2", "num_optimization_profiles", "num_io_tensors",
        ],
        "IExecutionContext": offered(Context),
    }  # fmt: skip
    assert in_stub(missing, "tensorrt", shared) == []
    assert missing("tensorrt_rtx", shared) == []
    assert in_stub(missing, "tensorrt", {"DataType": DTYPES}) == missing("tensorrt_rtx", {"DataType": DTYPES}) == []
