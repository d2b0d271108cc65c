"""Small LLaVA models with random weights, compiled in memory for comparison with transformers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from zipvl_compile.bundling.pipeline import build
from zipvl_compile.demo.model import build_processor
from zipvl_compile.demo.questions import VOCABULARY
from zipvl_compile.recipe.load import load_recipe
from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.prompts.prompt import EncodedPrompt

RECIPE = """
name: case
model: {source: checkpoint}
zipvl: {dense_below: 0}
target: {limits: {max_input_tokens: 3000, max_new_tokens: 64}}
benchmarks: {break_even_lengths: [8]}
"""


@dataclass
class Case:
    """A model in transformers and the same model compiled."""

    model: LlavaForConditionalGeneration
    generator: Generator

    def prompt(self, tokens: int, images: int, rng: np.random.Generator) -> EncodedPrompt:
        """Random text of `tokens` tokens in all, with the visual tokens of `images` images spread through it."""
        per_image = self.generator.bundle.manifest.model.shape.tokens_per_image
        words = tokens - images * per_image
        assert words >= 1
        ids = rng.integers(8, len(VOCABULARY), words)
        cuts = np.sort(rng.integers(0, words, images))
        image_token = self.generator.processor.image_token_id
        ids = np.insert(ids, np.repeat(cuts, per_image), image_token).astype(np.int64)
        pixels = rng.uniform(-1, 1, (images, 3, 48, 48)).astype(np.float32)
        return EncodedPrompt("", ids, ids != image_token, np.arange(len(ids)), pixels)

    @torch.no_grad()
    def reference(self, prompt: EncodedPrompt, new_tokens: int) -> tuple[torch.Tensor, list[int]]:
        """transformers' own last-token logits [vocabulary] and greedy continuation."""
        inputs = {"input_ids": torch.from_numpy(prompt.input_ids)[None]}
        if len(prompt.pixel_values):
            inputs["pixel_values"] = torch.from_numpy(prompt.pixel_values)
        logits = self.model(**inputs).logits[0, -1]
        out = self.model.generate(
            **inputs, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        return logits, out[0, len(prompt.input_ids) :].tolist()


def compile_case(folder: Path, overrides: Iterable[str] = (), **text: object) -> Case:
    """Make a model with the given Llama settings, save it, build it and open it."""
    settings = {
        "vocab_size": len(VOCABULARY), "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 96, "max_position_embeddings": 4096,
        "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "initializer_range": 0.15,
    }  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=48, patch_size=8
    )
    tied = bool(text.get("tie_word_embeddings", False))
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**{**settings, **text}), image_token_id=4,
        vision_feature_layer=-2, image_seq_length=36, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(torch.seed() % 2**31)
    model = LlavaForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder / "checkpoint")
    build_processor().save_pretrained(folder / "checkpoint")
    (folder / "case.yaml").write_text(RECIPE)
    build(load_recipe(folder / "case.yaml", tuple(overrides)), folder / "bundle", use_cache=False)
    return Case(model, Generator(Bundle.open(folder / "bundle")))
