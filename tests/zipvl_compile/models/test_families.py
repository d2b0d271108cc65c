"""Families: what a config.json means, and what is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zipvl_compile.demo.model import build_config
from zipvl_compile.models.decoder import rotary_table
from zipvl_compile.models.registry import family
from zipvl_serving.errors import InputError


def _config(**changes: Any) -> dict[str, Any]:
    """The demo's config.json with values changed by path, parts joined by two underscores."""
    config = {**copy.deepcopy(build_config().to_dict()), "architectures": ["LlavaForConditionalGeneration"]}
    for path, value in changes.items():
        *parents, key = path.split("__")
        target = config
        for parent in parents:
            target = target[parent]
        target[key] = value
    return config


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"architectures": ["LlavaNext"]}, ["architectures", "'LlavaNext'", "LlavaForConditionalGeneration"]),
        ({"architectures": None}, ["architectures", "(none)"]),
        ({"text_config__model_type": "mistral"}, ["text_config.model_type", "'mistral'", "valid: llama"]),
        ({"text_config__model_type": "nonsense"}, ["text_config.model_type", "'nonsense'", "valid: llama"]),
        ({"text_config__hidden_act": "gelu"}, ["hidden_act", "'gelu'", "valid: silu"]),
        ({"text_config__num_attention_heads": 7}, ["not a multiple of the number of attention heads"]),
        ({"text_config__hidden_size": "wide"}, ["hidden_size", "wide"]),
        (
            {"text_config__rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            ["rope_type", "'dynamic'", "valid: default, linear, llama3, yarn"],
        ),
        ({"vision_config__model_type": "vit"}, ["vision_config.model_type", "'vit'", "clip_vision_model"]),
        ({"vision_feature_select_strategy": "cls"}, ["vision_feature_select_strategy", "cls"]),
    ],
)
def test_refused_by_name(changes: dict[str, Any], fragments: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        family(_config(**changes))
    message = str(caught.value)
    assert message.startswith("config.json: ") and "\n" not in message
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 5e5},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 1024},
        {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
def test_rotary_table_equals_transformers(rope: dict[str, Any]) -> None:
    found = family(_config(text_config__rope_parameters=rope))
    positions = torch.tensor([0, 1, 63, 1024, 30000])
    cos, sin = LlamaRotaryEmbedding(found.config.text_config)(torch.zeros(1), positions[None])
    half = found.decoder.head_dim // 2
    table = rotary_table(found.decoder.rope, positions)
    assert torch.allclose(table[:, :half], cos[0, :, :half], atol=1e-6)
    assert torch.allclose(table[:, half:], sin[0, :, :half], atol=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_of_the_model_is_expected(tied: bool) -> None:
    found = family(_config(tie_word_embeddings=tied, text_config__tie_word_embeddings=tied))
    model = LlavaForConditionalGeneration(found.config)
    assert found.expected_tensors() == {k: tuple(v.shape) for k, v in model.state_dict().items()}
    assert found.optional_tensors() == (("lm_head.weight",) if tied else ())


@pytest.mark.parametrize(("strategy", "tokens"), [("default", 36), ("full", 37)])
def test_visual_tokens_of_an_image(strategy: str, tokens: int) -> None:
    found = family(_config(vision_feature_select_strategy=strategy))
    assert found.shape().tokens_per_image == tokens
    assert found.build_vision()(torch.zeros(2, 3, 48, 48)).shape == (2, tokens, 128)


def test_the_first_layers_are_the_same_model_but_shorter() -> None:
    whole = family(_config())
    cut = whole.first_layers(2)
    assert whole.first_layers(None) is whole and whole.decoder.layers == 5
    assert cut.decoder.layers == cut.shape().layers == cut.config.text_config.num_hidden_layers == 2
    missing = set(whole.expected_tensors()) - set(cut.expected_tensors())
    assert {name.split(".")[3] for name in missing} == {"2", "3", "4"}
    assert cut.expected_tensors().items() <= whole.expected_tensors().items()
    with pytest.raises(InputError, match=r"^model\.layers: 6 is out of range; the checkpoint has 5 layers$"):
        whole.first_layers(6)


def test_another_rope_theta_is_that_of_a_config_that_says_so() -> None:
    model = family(_config())
    expected = family(_config(text_config__rope_parameters={"rope_type": "default", "rope_theta": 2e5}))
    assert model.with_rope_theta(2e5).decoder == expected.decoder != model.decoder
    assert model.with_rope_theta(None) is model
    cut = model.first_layers(2).with_rope_theta(2e5)
    assert cut.decoder.layers == 2 and cut.decoder.rope == expected.decoder.rope
