"""The torch session on a CPU against ONNX Runtime's on the same checkpoint, and what it refuses."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.bundles import LAYERS, PAGE_SIZE, QUESTION, build_recipe, edit_manifest, random_image, refusal
from helpers.interpreter import interpret_call
from helpers.kernel_session import prefill_then_decode

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import KVPool, block_tables
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.probes import probe_positions
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session, open_session
from zipvl_serving.sessions.torch import TorchSession


def _error(out: Array, reference: Array) -> float:
    out, reference = (np.asarray(array, dtype=np.float64) for array in (out, reference))
    return float(np.linalg.norm(out - reference) / np.linalg.norm(reference))


def _prompt(tokens: int, ratio: float, rng: np.random.Generator, tau: float = 0.8) -> PrefillInputs:
    """Random words of which the method keeps `ratio`, or what tau asks for where that is 0."""
    places = np.arange(tokens)
    return PrefillInputs(
        input_ids=rng.integers(8, 40, tokens),
        position_ids=places,
        probe_positions=probe_positions(tokens, 8, 8, 0),
        forced=places == tokens - 1,
        tau=tau,
        ratio_min=ratio,
        ratio_max=ratio or 1.0,
    )


def _same(got: PrefillOutputs, wanted: PrefillOutputs) -> None:
    assert np.array_equal(got.counts, wanted.counts)
    assert len(got.index) == len(wanted.index) == LAYERS
    for ours, theirs in zip(got.index, wanted.index, strict=True):
        assert ours.dtype == np.int32 and np.array_equal(ours, theirs)
    assert _error(got.logits, wanted.logits) <= 1e-4
    for ours, theirs in zip(got.cache, wanted.cache, strict=True):
        for tensor, array in zip(ours, theirs, strict=True):
            assert tuple(tensor.shape) == array.shape and _error(tensor.numpy(), array) <= 1e-4


@pytest.mark.parametrize("tokens", [1, 2, 45, 300])
def test_dense_prefill_equals_onnxruntime(on_torch: Session, on_onnxruntime: Session, tokens: int) -> None:
    inputs = _prompt(tokens, 1.0, np.random.default_rng())
    got = on_torch.prefill(inputs, None)
    assert got.counts.tolist() == [tokens] * LAYERS
    _same(got, on_onnxruntime.prefill(inputs, None))


@pytest.mark.parametrize(("tokens", "ratio"), [(1, 0.5), (45, 0.37), (300, 0.5), (300, 0.0)])
def test_sparse_prefill_equals_onnxruntime(
    on_torch: Session, on_onnxruntime: Session, tokens: int, ratio: float
) -> None:
    # Seeded: where two scores all but tie, either token may be in T.
    inputs = _prompt(tokens, ratio, np.random.default_rng(tokens))
    _same(on_torch.prefill(inputs, None), on_onnxruntime.prefill(inputs, None))


def test_images_equal_onnxruntime(on_torch: Session, on_onnxruntime: Session) -> None:
    rng, shape = np.random.default_rng(), on_torch.bundle.manifest.model.shape
    pixels = rng.standard_normal((2, 3, shape.image_height, shape.image_width), dtype=np.float32)
    features = on_onnxruntime.vision(pixels)
    assert on_torch.vision(pixels).shape == features.shape == (2 * shape.tokens_per_image, shape.hidden)
    assert _error(on_torch.vision(pixels), features) <= 1e-4
    inputs = _prompt(150, 1.0, rng)
    inputs.input_ids[10 : 10 + len(features)] = on_torch.bundle.manifest.model.image_token
    _same(on_torch.prefill(inputs, features), on_onnxruntime.prefill(inputs, features))


@pytest.mark.parametrize("batch", [1, 5])
def test_decode_equals_onnxruntime(on_torch: Session, on_onnxruntime: Session, batch: int) -> None:
    rng, shape = np.random.default_rng(), on_torch.bundle.manifest.model.shape
    prefilled = [
        [rng.standard_normal((2, rows, shape.kv_heads, shape.head_dim), dtype=np.float32) for rows in lengths]
        for lengths in rng.integers(1, 60, (batch, LAYERS)).tolist()
    ]
    ids, positions = rng.integers(8, 40, (3, batch)), rng.integers(100, 200, batch)
    results = []
    for session, kind in ((on_torch, torch.from_numpy), (on_onnxruntime, np.asarray)):
        pool, steps = KVPool(session.page_storage(500)), []
        cached = [pool.store([(kind(keys), kind(values)) for keys, values in layers]) for layers in prefilled]
        for step, tokens in enumerate(ids):
            tables, context = block_tables(cached)
            logits, keys, values = session.decode(
                DecodeInputs(tokens, positions + step, pool.keys, pool.values, tables, context)
            )
            pool.append(cached, keys, values)
            steps.append(logits)
        results.append(steps)
    for ours, theirs in zip(*results, strict=True):
        assert ours.shape == (batch, shape.vocabulary) and _error(ours, theirs) <= 1e-4


def test_answers_are_those_of_onnxruntime_token_for_token(on_torch: Session, on_onnxruntime: Session) -> None:
    for seed in range(3):
        answers = []
        for session in (on_torch, on_onnxruntime):
            generator = Generator(session.bundle, session)
            generator.processor.eos_token_ids = frozenset()
            prompt = generator.prepare(QUESTION, [random_image(seed)])
            answers.append(generator.answer(prompt, SamplingParams(max_new_tokens=12)))
        assert answers[0].token_ids == answers[1].token_ids and len(answers[0].token_ids) == 12
        assert answers[0].prompt.counts == answers[1].prompt.counts


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-2), ("bfloat16", 1e-1)])
def test_half_precision_runs_on_a_cpu(
    tiny_recipe: Path, tmp_path: Path, on_torch: Session, dtype: str, tolerance: float
) -> None:
    """And so does a full cache below a dense layer."""
    settings = ("target.backend=torch", f"model.dtype={dtype}", "zipvl.cache=full", "zipvl.dense_layers=1")
    session = open_session(Bundle.open(build_recipe(tiny_recipe, tmp_path / dtype, *settings).bundle), threads=1)
    generator = Generator(session.bundle, session)
    answer = generator.answer(generator.prepare(QUESTION, [random_image(0)]), SamplingParams(max_new_tokens=4))
    assert answer.token_ids
    rng = np.random.default_rng()
    prompts = [_prompt(60, 1.0, rng) for _ in range(15)]
    errors = [_error(*(each.prefill(inputs, None).logits for each in (session, on_torch))) for inputs in prompts]
    assert np.median(errors) <= tolerance  # random weights: some prompt's last token is always ill-conditioned
    sparse = session.prefill(_prompt(60, 0.5, rng), None)
    assert sparse.counts[0] == 60 > sparse.counts[1]
    assert all(len(keys) == len(values) == 60 and keys.dtype == getattr(torch, dtype) for keys, values in sparse.cache)


def test_programs_share_one_mapped_copy_of_the_weights(on_torch: TorchSession) -> None:
    weights, vision = (
        {tensor.data_ptr() for tensor in program.held if tensor is not None and tensor.numel() > 64}
        for program in (on_torch._prefill, on_torch._vision)
    )
    for program in (on_torch._decode, on_torch._dense_prefill):
        assert {tensor.data_ptr() for tensor in program.held if tensor is not None and tensor.numel() > 64} == weights
    file = on_torch.bundle.path / "weights.safetensors"
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    spans = [tuple(int(end, 16) for end in span.split("-")) for span, *_ in mapped]
    assert len(spans) == 1
    assert all(spans[0][0] <= address < spans[0][1] for address in weights | vision)


def test_the_dense_program_computes_no_score(on_torch: TorchSession) -> None:
    sparse, dense = (
        [str(node.target) for node in program._graph.nodes] for program in (on_torch._prefill, on_torch._dense_prefill)
    )
    assert "zipvl.probe_scores.default" in sparse
    assert not any(target.startswith("zipvl.") for target in dense)
    # A layer multiplies by seven matrices; a sparse one by q_proj for the probes, and by three inside ops.
    assert dense.count("aten.linear.default") == sparse.count("aten.linear.default") - LAYERS


def test_a_long_prompt_keeps_the_memory_of_t_alone(on_torch: TorchSession, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _prompt(300, 0.37, np.random.default_rng(1))
    wanted = on_torch.prefill(inputs, None)
    monkeypatch.setattr("zipvl_serving.sessions.torch.TRIM_FROM", 300)
    got = on_torch.prefill(inputs, None)
    _same(got, replace(wanted, cache=[(k.numpy(), v.numpy()) for k, v in wanted.cache]))
    for layers, rows in ((wanted.cache, 300), (got.cache, got.counts[0])):
        for tensor in (tensor for layer in layers for tensor in layer):
            assert tensor.untyped_storage().nbytes() == rows * tensor[0].nbytes


def test_openmp_spins_where_it_is_asked_to(torch_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for spinning, already, wanted in ((True, None, None), (False, None, "0"), (False, "7", "7")):
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        if already:
            monkeypatch.setenv("GOMP_SPINCOUNT", already)
        open_session(Bundle.open(torch_bundle), threads=1, spinning=spinning)
        assert os.environ.get("GOMP_SPINCOUNT") == wanted


def test_threads_are_bounded(torch_bundle: Path) -> None:
    before = torch.get_num_threads()
    try:
        open_session(Bundle.open(torch_bundle), threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


SERVE = """
import sys

blocked = ("zipvl_compile", "transformers", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
sys.modules.update(dict.fromkeys(blocked))  # None: as if not installed

from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.vision.images import load_image

generator = Generator(Bundle.open(sys.argv[1]))
prompt = generator.prepare(sys.argv[3], [load_image(sys.argv[2])])
print(*generator.answer(prompt, SamplingParams(max_new_tokens=8)).token_ids)
"""


def test_serving_needs_torch_and_no_build_tool(on_torch: Session, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    random_image(0).save(image)
    generator = Generator(on_torch.bundle, on_torch)
    expected = generator.answer(generator.prepare(QUESTION, [random_image(0)]), SamplingParams(max_new_tokens=8))
    command = [sys.executable, "-c", SERVE, str(on_torch.bundle.path), str(image), QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(token) for token in expected.token_ids]


def test_a_machine_without_torch_is_told_what_to_install(torch_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with refusal(ZipvlError, torch_bundle, "needs torch", "pip install torch"):
        Bundle.open(torch_bundle)


def test_a_bundle_that_insists_on_cuda_is_refused_without(
    torch_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bundle = Path(shutil.copytree(torch_bundle, tmp_path / "bundle"))
    edit_manifest(bundle, lambda body: body["recipe"]["target"].update(gpu="cuda"), seal=True)
    with refusal(ZipvlError, bundle, "target.gpu cuda", "no CUDA device"):
        open_session(Bundle.open(bundle))


def _garbage(folder: Path) -> None:
    (folder / "decode.pt2").write_bytes(b"no program")


def _another_graph(folder: Path) -> None:
    shutil.copy(folder / "prefill.pt2", folder / "decode.pt2")


def _no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"no weights at all")


def _other_weights(folder: Path) -> None:
    file = folder / "weights.safetensors"
    data = file.read_bytes()
    file.write_bytes(data.replace(b'"shape":[', b'"shape":[1,', 1))


@pytest.mark.parametrize(
    ("damage", "file", "said"),
    [
        (_garbage, "decode.pt2", "torch cannot load it"),
        (_another_graph, "decode.pt2", "breaks the contract"),
        (_no_weights, "weights.safetensors", "not readable as safetensors"),
        (_other_weights, "pt2", "the program takes"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    torch_bundle: Path, tmp_path: Path, damage: Callable[[Path], None], file: str, said: str
) -> None:
    folder = Path(shutil.copytree(torch_bundle, tmp_path / "bundle"))
    bundle = Bundle.open(folder)
    damage(folder)
    with refusal(ZipvlError, folder, file, said):
        open_session(bundle)


def test_another_page_size_breaks_the_contract(torch_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(torch_bundle, tmp_path / "bundle"))
    edit_manifest(folder, lambda body: body["limits"].update(page_size=2 * PAGE_SIZE), seal=True)
    with refusal(ZipvlError, "decode.pt2", "breaks the contract", "key_pages"):
        open_session(Bundle.open(folder))


def test_a_prompt_that_does_not_fit_the_gpu_fails_in_one_line(
    on_torch: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate much")

    monkeypatch.setattr(on_torch, "_prefill", full)
    with refusal(ZipvlError, "no room for a prompt of 20 tokens", "target.limits"):
        on_torch.prefill(_prompt(20, 0.5, np.random.default_rng()), None)


@pytest.mark.parametrize("ratio", [0.37, 0.0])
def test_programs_by_their_gpu_kernels_give_what_references_give(torch_bundle: Path, ratio: float) -> None:
    """The interpreter fills what kernels leave unwritten with NaN: no row past a count reaches a result."""
    inputs = _prompt(45, ratio, np.random.default_rng(45))
    outputs, step = interpret_call(prefill_then_decode, torch_bundle, inputs, kernels=True)
    expected, expected_step = prefill_then_decode(torch_bundle, inputs, kernels=False)
    assert np.array_equal(outputs["counts"], expected["counts"]) and 1 < outputs["counts"][0] < 45
    assert all(np.array_equal(*pair) for pair in zip(outputs["index"], expected["index"], strict=True))
    assert _error(outputs["logits"], expected["logits"]) <= 1e-4
    for ours, theirs in zip((*outputs["cache"], *step), (*expected["cache"], *expected_step), strict=True):
        assert ours.shape == theirs.shape and _error(ours, theirs) <= 1e-4
