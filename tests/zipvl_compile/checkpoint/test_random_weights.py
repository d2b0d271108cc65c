"""Random weights: what they hang on, what they look like, and which sources they take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.bundles import refusal

from zipvl_compile.checkpoint.random_weights import RandomSource, RandomWeights
from zipvl_compile.checkpoint.sources import open_source
from zipvl_serving.errors import InputError, ZipvlError

SHAPES = {
    "layers.0.mlp.down_proj.weight": (96, 400),
    "layers.1.mlp.down_proj.weight": (96, 400),
    "tower.patch_embedding.weight": (64, 3, 8, 8),
    "embed_tokens.weight": (500, 64),
    "input_layernorm.weight": (64,),
    "q_proj.bias": (64,),
    "tower.class_embedding": (64,),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Any"]}))
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def test_a_tensor_hangs_on_its_name_and_shape_alone() -> None:
    first = RandomWeights(SHAPES)
    loaded = {name: first.load(name) for name in SHAPES}
    again = RandomWeights({name: SHAPES[name] for name in reversed(SHAPES)})
    for name in reversed(SHAPES):
        assert torch.equal(again.load(name), loaded[name])
        assert loaded[name].shape == torch.Size(first.shape(name)) and first.dtype(name) == "F32"
    one, other = (loaded[f"layers.{layer}.mlp.down_proj.weight"] for layer in (0, 1))
    assert (one == other).float().mean() < 0.01


def test_values_keep_activations_in_size() -> None:
    weights = RandomWeights(SHAPES)
    assert torch.equal(weights.load("input_layernorm.weight"), torch.ones(64))
    assert torch.equal(weights.load("q_proj.bias"), torch.zeros(64))
    for name, fan_in in (("layers.0.mlp.down_proj.weight", 400), ("tower.patch_embedding.weight", 192)):
        tensor = weights.load(name).flatten()
        assert tensor.std() == pytest.approx(fan_in**-0.5, rel=0.03)
        assert abs(tensor.mean()) < 4 * (fan_in * len(tensor)) ** -0.5
    assert weights.load("tower.class_embedding").std() > 0


def test_loading_converts() -> None:
    weights = RandomWeights(SHAPES)
    name = "embed_tokens.weight"
    assert weights.load(name).dtype == torch.float32
    assert torch.equal(weights.load(name, torch.float16), weights.load(name).half())


def test_a_source_has_the_weights_that_are_expected_and_hashes_none(directory: Path) -> None:
    (directory / "model.safetensors").write_text("not read")
    source = open_source(directory, None, "random")
    assert source.weights({"a": (2, 3)}).load("a").shape == (2, 3)
    assert source.architecture == "Any"
    assert sorted(source.identity()["files"]) == ["config.json", "tokenizer.json"]
    assert source.identity()["source"] == str(directory)


@pytest.mark.parametrize("source", ["owner/name", "/nowhere", "x" * 5000])
def test_only_a_directory_will_do(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with refusal(InputError, "model.weights: random takes shapes from a directory with config.json", repr(source)):
        RandomSource.open(source)


def test_directories_that_will_not_do(directory: Path) -> None:
    with refusal(InputError, "a revision ('main') is for a hub id"):
        RandomSource.open(directory, "main")
    (directory / "config.json").write_text("{}")
    with refusal(ZipvlError, "config.json names no architecture"):
        RandomSource.open(directory)
    (directory / "config.json").unlink()
    with refusal(InputError, f"no config.json in {directory}; expected a directory with config.json and the processor"):
        RandomSource.open(directory)
