"""Llama-family text configurations to a decoder's specification; what the decoder cannot do is refused by name."""

from __future__ import annotations

from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zipvl_compile.models.spec import DecoderSpec, Rope
from zipvl_serving.errors import InputError

_MODEL_TYPES = ("llama",)
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def decoder_spec(text_config: Any, image_token: int) -> DecoderSpec:
    """The decoder that a transformers text configuration describes.

    Raises InputError, naming the setting, for anything that would change the result: another architecture, activation,
    rotary type or a sliding window.
    """
    model_type = text_config.model_type
    if model_type not in _MODEL_TYPES:
        raise _unsupported("model_type", model_type, _MODEL_TYPES)
    if text_config.hidden_act not in ("silu", "swish"):
        raise _unsupported("hidden_act", text_config.hidden_act, ("silu",))
    rope_type = text_config.rope_parameters.get("rope_type", "default")
    if rope_type not in _ROPE_TYPES:
        raise _unsupported("rope_parameters.rope_type", rope_type, _ROPE_TYPES)
    if text_config.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported("rope_parameters.partial_rotary_factor", "below 1", ("1.0",))
    if getattr(text_config, "sliding_window", None):
        raise _unsupported("sliding_window", text_config.sliding_window, ("null",))
    heads = text_config.num_attention_heads
    bias = bool(text_config.attention_bias)
    return DecoderSpec(
        layers=text_config.num_hidden_layers,
        hidden=text_config.hidden_size,
        heads=heads,
        kv_heads=text_config.num_key_value_heads or heads,
        head_dim=text_config.head_dim or text_config.hidden_size // heads,
        intermediate=text_config.intermediate_size,
        vocabulary=text_config.vocab_size,
        norm_eps=text_config.rms_norm_eps,
        rope=_rope(text_config),
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bool(text_config.mlp_bias),
        tied_embeddings=bool(text_config.tie_word_embeddings),
        image_token=image_token,
        max_positions=text_config.max_position_embeddings,
    )


def _rope(text_config: Any) -> Rope:
    rotary = LlamaRotaryEmbedding(text_config)
    return Rope(tuple(rotary.inv_freq.tolist()), float(rotary.attention_scaling))


def _unsupported(key: str, value: object, valid: tuple[str, ...]) -> InputError:
    return InputError(f"config.json: text_config.{key}: {value!r} is not supported; valid: {', '.join(valid)}")
