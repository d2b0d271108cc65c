"""Builds of models without weights, and of a model's first layers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from helpers.bundles import LAYERS, TOKENS_PER_IMAGE, build_recipe, names, random_image, refusal
from helpers.command_line import succeed
from helpers.faces import relative_error
from helpers.llava import compile_case
from transformers import AutoConfig

from zipvl_compile.demo import shapes
from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.source import recipes_dir
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.generator import Generator
from zipvl_serving.method import MethodParams


def test_a_model_without_weights_is_built_and_says_so(
    cache: Path, quick_export: None, recipe: Path, work: Path
) -> None:
    (recipe.parent / "checkpoint" / "model.safetensors").unlink()
    assert not build_recipe(recipe, work / "first", "model.weights=random").cache_hit
    assert build_recipe(recipe, work / "again", "model.weights=random").cache_hit
    bundle = Bundle.open(work / "first")
    assert bundle.manifest.recipe["model"]["weights"] == "random"
    assert "model.safetensors" not in bundle.manifest.checkpoint["files"]
    generator = Generator(bundle)
    prompt = generator.prepare("which digit is red ?", [random_image(0)])
    result, outputs = generator.prefill(prompt)
    assert np.isfinite(outputs.logits).all() and np.ptp(outputs.logits) > 0
    assert result.tokens > TOKENS_PER_IMAGE
    assert "random weights" in _words(succeed("inspect", work / "first"))


def _words(table: str) -> str:
    return " ".join(table.split())


def test_random_weights_do_not_stand_in_for_a_checkpoints(
    cache: Path, quick_export: None, recipe: Path, tiny_bundle: Path, work: Path
) -> None:
    assert not build_recipe(recipe, work / "bundle", "model.weights=random").cache_hit
    weights = (work / "bundle" / "weights.safetensors").read_bytes()
    assert weights != (tiny_bundle / "weights.safetensors").read_bytes()
    assert build_recipe(recipe, work / "anew", "model.weights=random", use_cache=False).bundle
    assert (work / "anew" / "weights.safetensors").read_bytes() == weights, "a build repeats"


def test_the_first_layers_of_a_checkpoint(tmp_path: Path) -> None:
    case = compile_case(tmp_path, ["model.layers=2"])
    decoder = case.model.model.language_model
    assert len(decoder.layers) == 3
    prompt = case.prompt(80, 1, np.random.default_rng(0))
    whole, _ = case.reference(prompt, 1)
    decoder.layers, decoder.config.num_hidden_layers = decoder.layers[:2], 2
    expected, _ = case.reference(prompt, 1)
    manifest = case.generator.bundle.manifest
    assert manifest.model.shape.layers == manifest.recipe["model"]["layers"] == 2
    result, outputs = case.generator.prefill(
        prompt, replace(MethodParams.defaults(case.generator.bundle.manifest.method), dense=True)
    )
    assert result.counts == [80, 80]
    assert relative_error(torch.from_numpy(outputs.logits), expected) <= 1e-4
    assert relative_error(torch.from_numpy(outputs.logits), whole) > 1e-2
    assert "only the first 2 layers" in _words(succeed("inspect", tmp_path / "bundle"))


def test_more_layers_than_there_are(tiny_recipe: Path, work: Path) -> None:
    with refusal(InputError, f"model.layers: 3 is out of range; the checkpoint has {LAYERS} layers"):
        build_recipe(tiny_recipe, work / "bundle", "model.layers=3")
    with refusal(InputError, "model.weights: random takes shapes from a directory", "'owner/name'"):
        build_recipe(tiny_recipe, work / "bundle", "model.weights=random", "model.source=owner/name")
    assert names(work) == []


def test_the_shapes_that_ship_are_as_their_module_writes_them(tmp_path: Path) -> None:
    shipped = recipes_dir() / "checkpoints" / "shapes"
    assert sorted(shapes.DECODERS) == names(shipped)
    for decoder in shapes.DECODERS:
        shapes.write_shape(decoder, tmp_path / decoder)
        assert names(tmp_path / decoder) == names(shipped / decoder)
        for file in (tmp_path / decoder).glob("*.json"):
            written, kept = (json.loads(path.read_text()) for path in (file, shipped / decoder / file.name))
            assert written == {**kept, **{k: v for k, v in written.items() if k == "transformers_version"}}
        layers = load_recipe(f"shapes/{decoder}").recipe.model.layers
        assert (
            layers is not None and layers < AutoConfig.from_pretrained(shipped / decoder).text_config.num_hidden_layers
        )
