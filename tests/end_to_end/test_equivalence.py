"""Compiled models against transformers (tau = 1) and against the paper's Algorithm 1 (tau < 1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import oracle_model
from helpers.faces import relative_error
from helpers.llava import Case, compile_case

from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.probes import probe_positions
from zipvl_serving.prompts.prompt import EncodedPrompt

MODELS = {
    "mha": {},
    "gqa 7:1, llama3 rope": {
        "hidden_size": 112,
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 1024,
        },
    },
    "biases, tied, yarn rope": {
        "attention_bias": True,
        "mlp_bias": True,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 1024,
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return compile_case(tmp_path_factory.mktemp("case"), **MODELS[request.param])


def _defaults(case: Case) -> MethodParams:
    return MethodParams.defaults(case.generator.bundle.manifest.method)


@pytest.mark.parametrize(("tokens", "images"), [(1, 0), (127, 0), (127, 3), (1000, 1), (2048, 5)])
def test_full_attention_equals_transformers(case: Case, tokens: int, images: int) -> None:
    prompt = case.prompt(tokens, images, np.random.default_rng())
    expected, continuation = case.reference(prompt, 32)
    params = replace(_defaults(case), tau=1.0)
    result, outputs = case.generator.prefill(prompt, params)
    assert result.counts == [tokens] * 3
    assert relative_error(torch.from_numpy(outputs.logits), expected) <= 1e-4
    _assert_same_tokens(case, prompt, _greedy(case, prompt, params, 32), continuation)


def _assert_same_tokens(case: Case, prompt: EncodedPrompt, got: list[int], wanted: list[int]) -> None:
    """Equal to the last token, unless transformers itself has two that tie to the precision asked of the logits."""
    assert len(got) == len(wanted)
    for at, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
        if ours != theirs:
            ids = np.concatenate([prompt.input_ids, np.array(wanted[:at], dtype=np.int64)])
            longer = replace(prompt, input_ids=ids)
            logits, _ = case.reference(longer, 1)
            assert logits[theirs] - logits[ours] <= 1e-4 * logits.norm() / len(logits) ** 0.5, (at, got, wanted)
            return


def _greedy(case: Case, prompt: EncodedPrompt, params: MethodParams, tokens: int) -> list[int]:
    case.generator.processor.eos_token_ids = frozenset()
    return case.generator.answer(prompt, SamplingParams(max_new_tokens=tokens), params).token_ids


@pytest.mark.parametrize(("tokens", "images", "tau"), [(1, 0, 0.9), (45, 1, 0.975), (127, 2, 0.8), (700, 4, 0.95)])
def test_selection_equals_algorithm_1(case: Case, tokens: int, images: int, tau: float) -> None:
    prompt = case.prompt(tokens, images, np.random.default_rng())
    params = replace(_defaults(case), tau=tau, seed=3)
    result, outputs = case.generator.prefill(prompt, params)
    method = case.generator.bundle.manifest.method
    probes = torch.from_numpy(probe_positions(tokens, method.probe_recent, method.probe_random, params.seed))
    forced = torch.arange(tokens) == tokens - 1
    given = [index.tolist() for index in result.index]
    wanted = oracle_model.prefill(
        case.model.config.text_config, _decoder_weights(case), _embeddings(case, prompt), probes, forced, tau, given
    )
    assert relative_error(torch.from_numpy(outputs.logits), wanted.logits) <= 1e-4
    for chosen, selection in zip(given, wanted.selections, strict=True):
        _assert_same_choice(chosen, selection, tau, forced)
    if tokens >= 127:
        assert max(result.ratios) < 1, "nothing was dropped: the case shows nothing"


def _assert_same_choice(chosen: list[int], selection: object, tau: float, forced: torch.Tensor) -> None:
    """T by the rule, up to what single precision can tell apart."""
    mass = selection.accumulated / selection.accumulated.sum()
    free = sum(1 for j in chosen if not forced[j])
    largest = mass.sort(descending=True).values.cumsum(0)
    # A forced token may or may not be among the p best: p is one of two numbers.
    candidates = [p for p in (free, free + int(forced.sum())) if 1 <= p <= len(mass)]
    assert any(largest[p - 1] >= tau - 1e-5 and (p == 1 or largest[p - 2] <= tau + 1e-5) for p in candidates), (
        len(chosen),
        selection.p,
    )
    outside = sorted(set(range(len(mass))) - set(chosen))
    if outside and free:
        worst_in = min(float(selection.normalised[j]) for j in chosen if not forced[j])
        best_out = max(float(selection.normalised[j]) for j in outside)
        assert worst_in >= best_out * (1 - 1e-4)
    if chosen != selection.important:
        assert len(set(chosen) ^ set(selection.important)) <= 2, "more than a rounding apart"


def _decoder_weights(case: Case) -> dict[str, torch.Tensor]:
    state = case.model.state_dict()
    weights = {k.removeprefix("model.language_model."): v for k, v in state.items() if "language_model" in k}
    return weights | {k: v for k, v in state.items() if k == "lm_head.weight"}


@torch.no_grad()
def _embeddings(case: Case, prompt: EncodedPrompt) -> torch.Tensor:
    core = case.model.model
    embeddings = core.language_model.embed_tokens(torch.from_numpy(prompt.input_ids))
    if len(prompt.pixel_values):
        states = core.vision_tower(torch.from_numpy(prompt.pixel_values), output_hidden_states=True).hidden_states
        features = core.multi_modal_projector(states[case.model.config.vision_feature_layer][:, 1:])
        embeddings[~torch.from_numpy(prompt.is_text)] = features.flatten(0, 1)
    return embeddings
