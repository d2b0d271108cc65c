"""Where a recipe comes from: files and names, the parts that it extends, and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.recipes import HEAD, load, refusal, write

from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.source import find_recipe, recipes_dir
from zipvl_serving.errors import InputError

# --- finding ---


def test_a_file_wins_over_a_shipped_recipe_of_that_name() -> None:
    assert find_recipe("digits") == find_recipe("digits.yaml") == recipes_dir() / "digits.yaml"
    write("digits.yaml", HEAD)
    assert find_recipe("digits.yaml") == Path("digits.yaml")


def test_shapes_are_found_by_name() -> None:
    assert find_recipe("shapes/llava-0.5b") == recipes_dir() / "shapes" / "llava-0.5b.yaml"
    with pytest.raises(InputError, match=r"^shapes/llava-05b: no such recipe file; did you mean 'shapes/llava-0\.5b'"):
        find_recipe("shapes/llava-05b")
    with pytest.raises(InputError, match="no such recipe file"):
        find_recipe("shared/zipvl")  # a part


@pytest.mark.parametrize(
    ("source", "made", "expected"),
    [
        ("here", True, "sub/here"),
        ("here", False, "sub/here"),
        ("./owner/name", False, "sub/owner/name"),
        ("a/b/c", False, "sub/a/b/c"),
        ("owner/name", True, "sub/owner/name"),
    ],
)
def test_a_directory_source_is_relative_to_its_file(source: str, made: bool, expected: str, in_tmp: Path) -> None:
    path = write("sub/r.yaml", f"name: r\nmodel:\n  source: {source}\n")
    if made:
        Path("sub", source).mkdir(parents=True)
    loaded = load_recipe(path)
    assert loaded.model_source == (in_tmp / expected).resolve()
    assert loaded.model_base == (in_tmp / "sub").resolve()
    assert loaded.recipe.model.source == source  # as written: the lock does not depend on where the recipe lies


def test_a_hub_source() -> None:
    assert load("name: r\nmodel:\n  source: llava-hf/llava-1.5-7b-hf\n").model_source == "llava-hf/llava-1.5-7b-hf"


def test_an_overridden_source_is_relative_to_the_working_directory(in_tmp: Path) -> None:
    loaded = load_recipe(write("sub/r.yaml", HEAD), ["model.source=out/x/y"])
    assert loaded.model_source == (in_tmp / "out/x/y").resolve()
    home = load_recipe("sub/r.yaml", ["model.source=~/x"]).model_source
    assert home == Path("~/x").expanduser().resolve()


# --- extends ---


def test_parts_merge_deeply_and_the_recipe_wins(in_tmp: Path) -> None:
    write("shared/a.yaml", "zipvl: {tau: 0.5, seed: 1, probe: {recent: 3, random: 4}}\nserving: {stream_interval: 2}\n")
    write("lib/b.yaml", "extends: deeper/c.yaml\nzipvl: {seed: 2}\n")
    write("lib/deeper/c.yaml", "zipvl: {seed: 3, dense_layers: 2}\nmodel: {source: weights}\n")
    recipe = load("extends: [a, lib/b.yaml]\nname: r\nzipvl:\n  probe: {random: 9}\n")
    zipvl = recipe.recipe.zipvl
    assert (zipvl.tau, zipvl.seed, zipvl.dense_layers) == (0.5, 2, 2)
    assert (zipvl.probe.recent, zipvl.probe.random) == (3, 9)
    assert recipe.recipe.serving.stream_interval == 2
    assert recipe.model_source == (in_tmp / "lib/deeper/weights").resolve()


def test_a_bare_name_is_looked_up_beside_the_recipe_then_in_the_package() -> None:
    assert load(HEAD + "extends: zipvl\n").recipe.zipvl.tau == 0.975
    write("shared/zipvl.yaml", "extends: base\nzipvl: {tau: 0.25}\n")
    write("shared/base.yaml", "zipvl: {seed: 5}\n")
    zipvl = load(HEAD + "extends: zipvl\n").recipe.zipvl
    assert (zipvl.tau, zipvl.seed) == (0.25, 5)


def test_a_part_used_twice_is_no_cycle() -> None:
    write("shared/base.yaml", "zipvl: {seed: 5}\n")
    write("shared/a.yaml", "extends: base\n")
    write("shared/b.yaml", "extends: base\n")
    assert load(HEAD + "extends: [a, b, base]\n").recipe.zipvl.seed == 5


def test_a_cycle_prints_its_chain() -> None:
    write("shared/a.yaml", "zipvl: {seed: 1}\nextends: b\n")
    write("shared/b.yaml", "extends: a\n")
    line = refusal(HEAD + "extends: a\n")
    assert line == "shared/b.yaml:1: extends: cycle a.yaml -> b.yaml -> a.yaml; a part must not extend itself"


def test_mistakes_in_a_part_name_the_part() -> None:
    write("shared/a.yaml", "# a\nzipvl:\n  tua: 1\n")
    assert refusal(HEAD + "extends: a\n").startswith("shared/a.yaml:3: zipvl.tua: unknown key")
    assert "(+1 more)" in refusal(HEAD + "extends: a\nserving: {x: 1}\n")
    write("shared/a.yaml", "zipvl: [\n")
    assert refusal(HEAD + "extends: a\n").startswith("shared/a.yaml:2: invalid YAML")


# --- overrides ---


def test_overrides_win_in_order() -> None:
    recipe = load(
        HEAD + "zipvl: {tau: 0.5}\n",
        "zipvl.tau=0.96",
        "zipvl.tau=0.97",
        "zipvl.probe={recent: 7}",
        "zipvl.force.text=true",
        "target.gpu=",
        "benchmarks.break_even_lengths=[1, 2]",
        "model.revision=a=b",
    ).recipe
    assert (recipe.zipvl.tau, recipe.zipvl.probe.recent, recipe.zipvl.probe.random) == (0.97, 7, 64)
    assert recipe.zipvl.force.text
    assert recipe.target.gpu is None
    assert recipe.benchmarks.break_even_lengths == [1, 2]
    assert recipe.model.revision == "a=b"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("zipvl.tua=1", "--set: zipvl.tua: unknown key; did you mean 'tau'? valid: cache,"),
        ("zipvel.tau=1", "--set: zipvel: unknown key; did you mean 'zipvl'? valid: benchmarks, model"),
        ("zipvl.tau.x=1", "--set: zipvl.tau: a mapping is wrong; must be a number"),
        ("zipvl.tau=2", "--set: zipvl.tau: 2 is out of range; must be > 0 and <= 1"),
        ("zipvl.tau=[", "--set: zipvl.tau: invalid YAML, "),
        ("zipvl.tau", "--set: zipvl.tau: missing '='; write KEY=VALUE, such as zipvl.tau=0.96"),
        ("zipvl..tau=1", "--set: zipvl..tau=1: missing key; write KEY=VALUE"),
        ("=1", "--set: =1: missing key; write KEY=VALUE"),
        ("", "--set: : missing '='"),
        ("extends=zipvl", "--set: extends: unknown key; valid: benchmarks, model, name, serving, target, zipvl"),
        ("serving.max_new_tokens_default=999", "--set: serving.max_new_tokens_default: serving.max_new_tokens_default"),
        ("zipvl={tau: 1, tau: 1}", "--set: zipvl.tau: duplicate key"),
    ],
)
def test_wrong_overrides(override: str, expected: str) -> None:
    assert refusal(HEAD, override).startswith(expected)
