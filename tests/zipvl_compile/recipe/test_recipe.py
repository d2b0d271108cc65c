"""Recipes: defaults, values, and what dumping and the docs say of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.recipes import HEAD, load, refusal
from pydantic import ValidationError

from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.schema import BACKENDS, Recipe, dump_yaml, format_size, parse_size
from zipvl_compile.recipe.source import recipe_names, recipes_dir


def test_defaults() -> None:
    assert load(HEAD).recipe.lock() == {
        "name": "r",
        "model": {
            "source": "here",
            "revision": None,
            "weights": "checkpoint",
            "layers": None,
            "rope_theta": None,
            "dtype": "auto",
        },
        "zipvl": {
            "tau": 0.975,
            "ratio_min": 0.0,
            "ratio_max": 1.0,
            "probe": {"recent": 64, "random": 64},
            "seed": 0,
            "cache": "evict",
            "dense_below": "auto",
            "dense_layers": 0,
            "force": {"last": 1, "text": False},
        },
        "target": {
            "backend": "onnxruntime",
            "gpu": None,
            "limits": {
                "max_input_tokens": 4096,
                "max_batch": 32,
                "max_new_tokens": 256,
                "kv_bytes": 256 << 20,
                "page_size": 16,
            },
        },
        "serving": {
            "max_new_tokens_default": 64,
            "stream_interval": 1,
            "max_waiting": 256,
            "max_prefill_tokens": 2048,
            "timeout_s": 0.0,
            "batch_invariant": True,
            "threads": 0,
            "prepack": True,
            "spinning": False,
            "preprocess_threads": 2,
            "image_cache_bytes": 64 << 20,
            "max_images": 128,
            "max_image_bytes": 20 << 20,
            "max_image_pixels": 64_000_000,
            "drain_s": 30.0,
        },
        "benchmarks": {"break_even_ratio": 0.5, "break_even_lengths": None},
    }


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name: str) -> None:
    loaded = load_recipe(name)
    assert loaded.path == recipes_dir() / f"{name}.yaml"
    folder, _, stem = name.rpartition("/")
    assert loaded.recipe.name == (f"{stem}-shape" if folder else stem)
    # So that it travels with the recipe into a wheel.
    assert isinstance(loaded.model_source, Path) and loaded.model_source.is_relative_to(recipes_dir().resolve())
    assert (loaded.model_source / "config.json").is_file()


def test_shape_recipes() -> None:
    names = [name for name in recipe_names() if name.startswith("shapes/")]
    assert names == ["shapes/llava-0.5b", "shapes/llava-13b", "shapes/llava-7b"]
    for name in names:
        loaded = load_recipe(name)
        assert loaded.recipe.model.weights == "random" and loaded.recipe.model.layers
        assert loaded.recipe.zipvl.dense_below == 0, "what a study forces must not run dense"
        assert loaded.recipe.target.limits.max_input_tokens >= 16384 + 1024
        assert not list(Path(loaded.model_source).glob("*.safetensors"))


def test_digits_long_takes_16k_visual_tokens() -> None:
    recipe = load_recipe("digits-long").recipe
    frames, rows = recipe.serving.max_images, 5 * 2 * 2 * 32 * 4
    assert 16384 <= frames * 36 < recipe.target.limits.max_input_tokens
    assert recipe.target.limits.kv_bytes >= 4 * rows * recipe.target.limits.max_input_tokens
    assert recipe.zipvl == load_recipe("digits").recipe.zipvl


def test_digits_recipe() -> None:
    recipe = load_recipe("digits").recipe
    assert recipe.zipvl.dense_below == 0
    assert recipe.zipvl.probe.recent == recipe.zipvl.probe.random == 64
    assert recipe.target.limits.kv_bytes == 64 << 20
    assert recipe.serving.max_new_tokens_default == 16


def test_lock_is_json_and_reads_back() -> None:
    recipe = load_recipe("digits", ["zipvl.tau=1", "benchmarks.break_even_lengths=[64, 128]"]).recipe
    assert Recipe.model_validate(json.loads(json.dumps(recipe.lock()))) == recipe
    assert json.dumps(recipe.lock()) == json.dumps(load_recipe("digits", ["zipvl.tau=1.0"]).recipe.lock()).replace(
        '"break_even_lengths": null', '"break_even_lengths": [64, 128]'
    )


@pytest.mark.parametrize("overrides", [(), ("zipvl.tau=1e-5", "model.revision='0123'", "target.limits.kv_bytes=1000")])
def test_dumped_yaml_loads_to_the_same_recipe(overrides: tuple[str, ...]) -> None:
    recipe = load_recipe("digits", overrides).recipe
    assert load(dump_yaml(recipe)).recipe == recipe


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load(HEAD).recipe.zipvl.tau = 0.5


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512KiB", 512 << 10),
        ("256MiB", 256 << 20),
        ("256 MiB", 256 << 20),
        ("2GiB", 2 << 30),
        ("1024", 1024),
        (77, 77),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size
    assert load(HEAD, f"target.limits.kv_bytes={text}").recipe.target.limits.kv_bytes == size


@pytest.mark.parametrize("text", ["256MB", "1.5GiB", "-1", "0", "MiB", "", "9" * 400 + "MiB", "true", "[1]", "1.0"])
def test_wrong_sizes(text: str) -> None:
    assert "--set: target.limits.kv_bytes: " in refusal(HEAD, f"target.limits.kv_bytes={text}")


@pytest.mark.parametrize(("text", "tau"), [("1e-3", 0.001), ("9E-1", 0.9), (".5", 0.5), ("1", 1.0), ("1.0e-3", 0.001)])
def test_floats_as_people_write_them(text: str, tau: float) -> None:
    assert load(HEAD + f"zipvl:\n  tau: {text}\n").recipe.zipvl.tau == tau


def test_text_that_looks_like_a_number_stays_text() -> None:
    assert load(HEAD + "  revision: 12e4567\n").recipe.model.revision == "12e4567"


def test_a_byte_order_mark_is_no_error() -> None:
    assert load("\ufeff" + HEAD).recipe.name == "r"


def test_schema_describes_every_key() -> None:
    def check(schema: dict[str, object], where: str) -> None:
        properties = schema.get("properties", {})
        assert isinstance(properties, dict)
        for name, field in properties.items():
            assert "description" in field or "$ref" in field, f"{where}.{name}"

    schema = Recipe.model_json_schema()
    check(schema, "recipe")
    for name, part in schema["$defs"].items():
        assert part["additionalProperties"] is False
        assert part["description"]
        check(part, name)
    assert "extends" in schema["properties"]
    assert schema["$defs"]["Target"]["properties"]["backend"]["enum"] == list(BACKENDS)


def test_the_docs_list_every_key() -> None:
    def keys(values: dict[str, Any], prefix: str = "") -> set[str]:
        nested = [keys(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k} for k, v in values.items()]
        return set().union(*nested)

    docs = Path(__file__).parents[3] / "docs" / "recipes.md"
    listed = set(re.findall(r"^\| `([\w.]+)` \|", docs.read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == keys(load(HEAD).recipe.lock()) | {"extends"}
