"""Checkpoints without weights, for recipes/shapes: real decoders' shapes behind a tiny vision tower.

    python -m zipvl_compile.demo.shapes recipes/checkpoints/shapes

writes one directory for each decoder: config.json, generation_config.json and the demo's processor.
"""

from __future__ import annotations

import sys
from pathlib import Path

from transformers import CLIPVisionConfig, GenerationConfig, LlamaConfig, LlavaConfig

from zipvl_compile.demo.model import build_processor
from zipvl_compile.demo.questions import VOCABULARY

SIDE, PATCH = 96, 4
"""Pixels: 24 x 24 patches, the 576 visual tokens of a LLaVA-1.5 image."""
POSITIONS = 262144
"""Beyond what the models were trained for: a cost does not depend on it."""

DECODERS = {
    "llava-0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 25344, "rms_norm_eps": 1e-6, "attention_bias": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True,
    },
    "llava-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
    "llava-13b": {
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
        "num_key_value_heads": 40, "vocab_size": 32064, "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
"""Shapes as published: LLaVA-OneVision-0.5B (Qwen2-0.5B; as a Llama with biases, so that the output projection has one
too), LLaVA-1.5-7B and -13B (Vicuna).

The first has 25344 of 151936 words, cut as the recipe cuts its layers (4 of 24): the head then has the share of a
decode step that it has in the whole model.
"""
_SPECIAL = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


def build_config(decoder: str) -> LlavaConfig:
    """The configuration of a decoder of DECODERS behind a vision tower of one narrow layer."""
    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=SIDE,
        patch_size=PATCH,
    )  # fmt: skip
    tokens = {f"{role}_token_id": VOCABULARY.index(word) for role, word in _SPECIAL.items()}
    text = LlamaConfig(**DECODERS[decoder], **tokens, max_position_embeddings=POSITIONS)
    return LlavaConfig(
        architectures=["LlavaForConditionalGeneration"], vision_config=vision, text_config=text,
        image_token_id=VOCABULARY.index("<image>"), vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=(SIDE // PATCH) ** 2, tie_word_embeddings=text.tie_word_embeddings,
    )  # fmt: skip


def write_shape(decoder: str, directory: Path) -> None:
    """Write what a recipe with `model.weights: random` needs of a checkpoint into `directory`."""
    config = build_config(decoder)
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    build_processor(SIDE, PATCH).save_pretrained(directory)


if __name__ == "__main__":
    for name in DECODERS:
        write_shape(name, Path(sys.argv[1]) / name)
