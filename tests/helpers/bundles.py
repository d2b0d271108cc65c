"""The one tiny bundle that tests share: a LLaVA with random weights, small enough to build in seconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from zipvl_serving.errors import ZipvlError
from zipvl_serving.manifest import digest

if TYPE_CHECKING:
    from zipvl_compile.bundling.pipeline import BuildResult

QUESTION = "which digit is red ?"
LAYERS = 2
TOKENS_PER_IMAGE = 36
PAGE_SIZE = 4
MAX_INPUT_TOKENS = 512
MAX_NEW_TOKENS = 32

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


def write_checkpoint(folder: Path, head_dim: int = 8) -> Path:
    """Save a LLaVA with the demo's tokenizer and image processor."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    from zipvl_compile.demo.model import build_config, save_checkpoint

    demo = build_config()
    vision = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        image_size=demo.vision_config.image_size, patch_size=demo.vision_config.patch_size,
    )  # fmt: skip
    changes = {
        "num_hidden_layers": LAYERS, "hidden_size": 32, "head_dim": head_dim, "intermediate_size": 48,
        "max_position_embeddings": 4096, "initializer_range": 0.5,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=LlamaConfig(**{**demo.text_config.to_dict(), **changes}),
        image_token_id=demo.image_token_id, vision_feature_layer=-1, image_seq_length=TOKENS_PER_IMAGE,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    save_checkpoint(LlavaForConditionalGeneration(config), folder)
    return folder


def build_recipe(recipe: Path, out: Path, *overrides: str, use_cache: bool = True) -> BuildResult:
    """Build a recipe file through the library."""
    from zipvl_compile.bundling.pipeline import build
    from zipvl_compile.recipe.load import load_recipe

    return build(load_recipe(recipe, overrides), out, use_cache=use_cache)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by relative name."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def flip_byte(file: Path) -> None:
    """Change one byte in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], object], *, seal: bool) -> None:
    """Change manifest.json; `seal` writes the digest that fits."""
    file = bundle / "manifest.json"
    body = json.loads(file.read_text())
    change(body)
    if seal:
        body["digest"] = digest(body)
    file.write_text(json.dumps(body))


def random_image(seed: int) -> Image.Image:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@contextmanager
def refusal(kind: type[ZipvlError], *parts: object) -> Iterator[None]:
    """The block raises exactly `kind`: one line that holds every part."""
    with pytest.raises(ZipvlError) as caught:
        yield
    line = str(caught.value)
    assert type(caught.value) is kind, line
    assert line.isprintable(), line  # no line break, no control character
    for part in parts:
        assert str(part) in line


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
