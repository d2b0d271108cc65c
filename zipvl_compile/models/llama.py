"""Llama-family text configurations to a decoder's specification; what the decoder cannot do is refused by name."""

from __future__ import annotations

from typing import Any

from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from zipvl_compile.models.require import require
from zipvl_compile.models.spec import DecoderSpec, Rope

MODEL_TYPES = ("llama",)
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


def decoder_spec(text_config: Any, image_token: int) -> DecoderSpec:
    """The decoder that a transformers text configuration describes.

    Raises InputError, naming the setting, for anything that would change the result: another architecture, activation,
    rotary type or a sliding window.
    """
    rope = text_config.rope_parameters
    require("text_config.model_type", text_config.model_type, MODEL_TYPES)
    require("text_config.hidden_act", text_config.hidden_act, ("silu", "swish"))
    require("text_config.rope_parameters.rope_type", rope.get("rope_type", "default"), _ROPE_TYPES)
    require("text_config.rope_parameters.partial_rotary_factor", rope.get("partial_rotary_factor", 1.0), (1.0,))
    require("text_config.sliding_window", getattr(text_config, "sliding_window", None), (None,))
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
