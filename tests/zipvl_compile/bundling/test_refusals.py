"""What cannot be built: checkpoints and recipes, each with its one line and no residue."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.bundles import build_recipe, names, refusal
from safetensors.torch import load_file, save_file

from zipvl_serving.errors import InputError, ZipvlError


def _edit_config(recipe: Path, **changes: object) -> None:
    file = recipe.parent / "checkpoint" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _edit_processor(recipe: Path, part: str | None = None, **changes: object) -> None:
    file = recipe.parent / "checkpoint" / "processor_config.json"
    body = json.loads(file.read_text())
    (body[part] if part else body).update(changes)
    file.write_text(json.dumps(body))


def _write_generation(recipe: Path, eos: object) -> None:
    (recipe.parent / "checkpoint" / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))


def _spoil_tensor(recipe: Path, value: torch.Tensor) -> None:
    weights = recipe.parent / "checkpoint" / "model.safetensors"
    tensors = load_file(weights)
    (name,) = (name for name in tensors if re.search(r"language_model\.(model\.)?norm\.weight$", name))
    save_file(tensors | {name: value.expand_as(tensors[name]).contiguous()}, weights)


def _drop_tensor(recipe: Path) -> None:
    weights = recipe.parent / "checkpoint" / "model.safetensors"
    tensors = load_file(weights)
    del tensors[
        "model.language_model.norm.weight"
        if "model.language_model.norm.weight" in tensors
        else "language_model.model.norm.weight"
    ]
    save_file(tensors, weights)


def _truncate(recipe: Path) -> None:
    weights = recipe.parent / "checkpoint" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "kind", "message"),
    [
        (
            lambda recipe: _edit_config(recipe, architectures=["LlamaForCausalLM"]),
            InputError,
            "architectures: 'LlamaForCausalLM' is not supported",
        ),
        (_drop_tensor, ZipvlError, "missing tensor 'model.language_model.norm.weight'"),
        (_truncate, ZipvlError, "model.safetensors is truncated or damaged"),
        (
            lambda recipe: (recipe.parent / "checkpoint" / "processor_config.json").unlink(),
            ZipvlError,
            "source/checkpoint/processor_config.json is missing",
        ),
        (lambda recipe: shutil.rmtree(recipe.parent / "checkpoint"), InputError, "checkpoint not found"),
        (
            lambda recipe: _edit_processor(recipe, "image_processor", size={"height": 64, "width": 64}),
            InputError,
            "the processor makes images of (3, 64, 64), the vision tower takes (3, 48, 48)",
        ),
        (
            lambda recipe: _edit_processor(recipe, num_additional_image_tokens=5),
            InputError,
            "the processor writes 40 image tokens per image, the model gives 36",
        ),
        (
            lambda recipe: _edit_processor(recipe, image_processor=[]),
            ZipvlError,
            "a processor file holds what it should",
        ),
        (
            lambda recipe: _write_generation(recipe, "x"),
            ZipvlError,
            "a processor file holds what it should not",
        ),
        (
            lambda recipe: _write_generation(recipe, 99),
            InputError,
            "the tokenizer uses token 99, the model has",
        ),
        (
            lambda recipe: _edit_config(recipe, quantization_config={"quant_method": "awq"}),
            InputError,
            "config.json: quantization_config:",
        ),
        (lambda recipe: _spoil_tensor(recipe, torch.tensor(torch.nan)), ZipvlError, "logits that are not finite"),
        (lambda recipe: _spoil_tensor(recipe, torch.tensor(1, dtype=torch.int16)), InputError, "is stored as I16"),
    ],
)
def test_a_checkpoint_that_cannot_be_built(
    quick_export: None,
    recipe: Path,
    work: Path,
    damage: Callable[[Path], object],
    kind: type[ZipvlError],
    message: str,
) -> None:
    damage(recipe)
    with refusal(kind, message):
        build_recipe(recipe, work / "bundle")
    assert names(work) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dtype=float16", "model.dtype: 'float16' cannot run on onnxruntime; valid: auto, float32"),
        ("target.backend=tensorrt", "target.backend: 'tensorrt' is not usable here: tensorrt's libraries are missing"),
        (
            "target.backend=tensorrt_rtx",
            "target.gpu: tensorrt_rtx builds for a GPU, and this machine has none; name one, as a100",
        ),
        ("target.gpu=a100", "target.gpu: 'a100' has no use on onnxruntime"),
        ("target.limits.max_input_tokens=4095", "is 4127, the checkpoint has 4096 positions; lower either"),
        ("zipvl.dense_layers=3", "zipvl.dense_layers: 3 is out of range; the checkpoint has 2 layers"),
    ],
)
def test_a_recipe_that_cannot_be_built(tiny_recipe: Path, work: Path, override: str, message: str) -> None:
    with refusal(InputError, message):
        build_recipe(tiny_recipe, work / "bundle", override)
    assert names(work) == []
