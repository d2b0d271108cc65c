"""The one tiny bundle that tests share: a LLaVA with random weights, small enough to build in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zipvl_compile.build import BuildResult

TOKENS_PER_IMAGE = 36
MAX_INPUT_TOKENS = 512
MAX_NEW_TOKENS = 32
PAGE_SIZE = 4

RECIPE = f"""
name: tiny
model: {{source: checkpoint}}
zipvl:
  tau: 0.8
  dense_below: 0
  probe: {{recent: 8, random: 8}}
target:
  limits:
    max_input_tokens: {MAX_INPUT_TOKENS}
    max_new_tokens: {MAX_NEW_TOKENS}
    kv_bytes: 1MiB
    page_size: {PAGE_SIZE}
serving: {{max_new_tokens_default: 8}}
benchmarks: {{break_even_lengths: [8]}}
"""


def write_checkpoint(folder: Path) -> Path:
    """Save a LLaVA of two decoder layers with the demo's tokenizer and image processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from zipvl_compile.demo.model import build_config, save_checkpoint

    demo = build_config()
    vision = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=demo.vision_config.image_size, patch_size=demo.vision_config.patch_size,
    )  # fmt: skip
    text = LlamaConfig(
        **{
            **demo.text_config.to_dict(), "hidden_size": 32, "num_hidden_layers": 2, "head_dim": 8,
            "intermediate_size": 48, "max_position_embeddings": 4096, "initializer_range": 0.15,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=demo.image_token_id, vision_feature_layer=-1,
            image_seq_length=TOKENS_PER_IMAGE, tie_word_embeddings=True,
        )
    )  # fmt: skip
    save_checkpoint(model, folder)
    return folder


def build_bundle(recipe: Path, out: Path, *overrides: str, use_cache: bool = False) -> BuildResult:
    """Build a recipe file through the library."""
    from zipvl_compile.build import build
    from zipvl_compile.recipe import load_recipe

    return build(load_recipe(recipe, overrides), out, use_cache=use_cache)
