"""The torch program (reference ops) and the exported graphs (ONNX functions) compute the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.faces import relative_error
from helpers.llava import Case, compile_case

from zipvl_compile.models.decoder import Decode, Decoder, Prefill
from zipvl_compile.models.llava import LlavaFamily
from zipvl_compile.models.spec import MethodSpec
from zipvl_serving.kv_pool import KVPool, block_tables
from zipvl_serving.method import MethodParams
from zipvl_serving.probes import probe_positions
from zipvl_serving.sessions.base import DecodeInputs

METHODS = {
    "evict": (MethodSpec(), ()),
    "first layer dense": (MethodSpec(dense_layers=1), ("zipvl.dense_layers=1",)),
    "full cache": (MethodSpec(keep_full_cache=True), ("zipvl.cache=full",)),
}


@pytest.fixture(scope="module", params=METHODS)
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, MethodSpec]:
    method, overrides = METHODS[request.param]
    folder = tmp_path_factory.mktemp("case")
    return compile_case(folder, overrides, num_attention_heads=4, num_key_value_heads=2, attention_bias=True), method


def _decoder(case: Case) -> Decoder:
    family = LlavaFamily(case.model.config.to_dict())
    decoder = Decoder(family.decoder)
    state = case.model.state_dict()
    named = {name: state[family.checkpoint_name(f"decoder.{name}")] for name in decoder.state_dict()}
    decoder.load_state_dict(named)
    return decoder.eval()


@torch.no_grad()
def test_program_and_graph_agree(setup: tuple[Case, MethodSpec]) -> None:
    case, method = setup
    n = 333
    prompt = case.prompt(n, 3, np.random.default_rng())
    params = replace(MethodParams.defaults(case.generator.bundle.manifest.method), tau=0.9, seed=5)
    result, outputs = case.generator.prefill(prompt, params)
    decoder = _decoder(case)
    logits, counts, *kept = Prefill(decoder, method)(
        torch.from_numpy(prompt.input_ids),
        torch.from_numpy(case.generator.session.vision(prompt.pixel_values)),
        torch.arange(n),
        torch.from_numpy(probe_positions(n, 64, 64, params.seed)),
        torch.arange(n) == n - 1,
        *(torch.tensor([value], dtype=torch.float32) for value in (0.9, 0.0, 1.0)),
    )
    assert counts.tolist() == result.counts
    assert relative_error(torch.from_numpy(outputs.logits), logits) <= 1e-4
    for layer, (key, value) in enumerate(outputs.cache):
        count = result.counts[layer]
        assert (count == n) == (layer < method.dense_layers)
        assert kept[3 * layer][:count].tolist() == result.index[layer].tolist()
        rows = n if method.keep_full_cache else count
        assert len(key) == rows
        assert relative_error(torch.from_numpy(key), kept[3 * layer + 1][:rows]) <= 1e-4
        assert relative_error(torch.from_numpy(value), kept[3 * layer + 2][:rows]) <= 1e-4


@torch.no_grad()
def test_decode_of_a_batch(setup: tuple[Case, MethodSpec]) -> None:
    """Sequences of different lengths, with different counts per layer, in one step."""
    case, _ = setup
    shape = case.generator.bundle.manifest.model.shape
    pool = KVPool.create(1 << 22, 16, shape.kv_heads, shape.head_dim)
    params = replace(MethodParams.defaults(case.generator.bundle.manifest.method), tau=0.8)
    lengths = (5, 130, 47)
    sequences = []
    for n in lengths:
        _, outputs = case.generator.prefill(case.prompt(n, 0, np.random.default_rng()), params)
        sequences.append(pool.store(outputs.cache))
    tables, context = block_tables(sequences)
    ids, positions = np.array([9, 17, 30]), np.array(lengths)
    got = case.generator.session.decode(DecodeInputs(ids, positions, pool.keys, pool.values, tables, context))
    wanted = Decode(_decoder(case))(
        *(torch.from_numpy(array) for array in (ids, positions, pool.keys, pool.values, tables, context))
    )
    for out, reference in zip(got, wanted, strict=True):
        assert relative_error(torch.from_numpy(out), reference) <= 1e-4
