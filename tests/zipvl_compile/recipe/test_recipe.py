"""Recipes: defaults, merging, overrides, and one exact line for every mistake."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from zipvl_compile.recipe.load import LoadedRecipe, load_recipe
from zipvl_compile.recipe.schema import BACKENDS, Recipe, dump_yaml, format_size, parse_size
from zipvl_compile.recipe.source import find_recipe, recipe_names, recipes_dir
from zipvl_serving.errors import InputError

HEAD = "name: r\nmodel:\n  source: here\n"  # lines 1 to 3 of most recipes below


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dedent(text), encoding="utf-8")
    return path


def load(text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(write("r.yaml", text), overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    line = str(caught.value)
    assert line.isprintable(), line  # no line break, no control character
    return line


# --- values ----------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert load(HEAD).recipe.lock() == {
        "name": "r",
        "model": {"source": "here", "revision": None, "dtype": "float32"},
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
    assert loaded.recipe.name == name


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


# --- mistakes --------------------------------------------------------------------------------------------------------

BAD = [
    # text after HEAD (which ends on line 3), then the start of the error line and what else it says
    ("zipvl:\n  tua: 0.9", "r.yaml:5: zipvl.tua: unknown key; did you mean 'tau'? valid: cache, dense_below"),
    ("zipvl:\n\n  tau: 1.5", "r.yaml:6: zipvl.tau: 1.5 is out of range; must be > 0 and <= 1"),
    ("zipvl:\n  tau: 0", "r.yaml:5: zipvl.tau: 0 is out of range; must be > 0 and <= 1"),
    ("zipvl:\n  tau: .nan", "r.yaml:5: zipvl.tau: nan is out of range; must be > 0 and <= 1"),
    ("zipvl:\n  tau: 1e999", "r.yaml:5: zipvl.tau: inf is out of range"),
    ("zipvl:\n  tau: high", "r.yaml:5: zipvl.tau: 'high' is wrong; must be a number > 0 and <= 1"),
    ("zipvl:\n  tau: true", "r.yaml:5: zipvl.tau: true is wrong; must be a number"),
    ("zipvl:\n  tau: [0.9]", "r.yaml:5: zipvl.tau: a list is wrong; must be a number"),
    ("zipvl:\n  tau:\n    x: 1", "r.yaml:5: zipvl.tau: a mapping is wrong; must be a number"),
    ("zipvl:", "r.yaml:4: zipvl: null is wrong; must be a mapping; valid: cache"),
    ("zipvl: 3", "r.yaml:4: zipvl: 3 is wrong; must be a mapping"),
    ("zipvl:\n  ratio_min: 0.8\n  ratio_max: 0.4", "r.yaml:5: zipvl.ratio_min: zipvl.ratio_min 0.8 is above zipvl."),
    ("zipvl:\n  probe:\n    recent: 0", "r.yaml:6: zipvl.probe.recent: 0 is out of range; must be >= 1"),
    ("zipvl:\n  probe: {recent: 1,\n    random: -1}", "r.yaml:6: zipvl.probe.random: -1 is out of range"),
    ("zipvl:\n  seed: 1.0", "r.yaml:5: zipvl.seed: 1.0 is wrong; must be an integer >= 0"),
    ("zipvl:\n  cache: quantise", "r.yaml:5: zipvl.cache: 'quantise' is not available yet; valid: evict, full"),
    ("zipvl:\n  cache: evict+quantise", "r.yaml:5: zipvl.cache: 'evict+quantise' is not available yet; valid: evict"),
    ("zipvl:\n  cache: evikt", "r.yaml:5: zipvl.cache: 'evikt' is not valid; did you mean 'evict'? valid: evict, full"),
    ("zipvl:\n  cache: 3", "r.yaml:5: zipvl.cache: 3 is not valid; valid: evict, full"),
    ("zipvl:\n  dense_below: -1", "r.yaml:5: zipvl.dense_below: -1 is not a length; must be a number of tokens >= 0"),
    ("zipvl:\n  dense_below: yes", "r.yaml:5: zipvl.dense_below: true is not a length"),
    ("zipvl:\n  force:\n    last: 0", "r.yaml:6: zipvl.force.last: 0 is out of range"),
    ("zipvl:\n  force:\n    text: 1", "r.yaml:6: zipvl.force.text: 1 is wrong; must be true or false"),
    ("target:\n  backend: onnxrutime", "r.yaml:5: target.backend: 'onnxrutime' is no backend; did you mean 'onnxrunt"),
    ("target:\n  gpu: 80", "r.yaml:5: target.gpu: 80 is wrong; must be a string or null"),
    (
        "target:\n  limits:\n    page_size: 24",
        "r.yaml:6: target.limits.page_size: 24 is not a page size; must be a pow",
    ),
    ("target:\n  limits:\n    page_size: true", "r.yaml:6: target.limits.page_size: true is not a page size"),
    ("target:\n  limits:\n    page_size: 512", "r.yaml:6: target.limits.page_size: 512 is not a page size"),
    ("target:\n  limits:\n    kv_bytes: 2GB", "r.yaml:6: target.limits.kv_bytes: '2GB' is not a size; must be bytes"),
    ("target:\n  limits:\n    max_batch: 0", "r.yaml:6: target.limits.max_batch: 0 is out of range; must be >= 1"),
    (
        "target:\n  limits:\n    max_new_tokens: 32",  # against the default of the other one
        "r.yaml:6: target.limits.max_new_tokens: serving.max_new_tokens_default 64 is above "
        "target.limits.max_new_tokens 32; must be at most that",
    ),
    (
        "target:\n  limits:\n    max_new_tokens: 32\nserving:\n  max_new_tokens_default: 33",
        "r.yaml:8: serving.max_new_tokens_default: serving.max_new_tokens_default 33 is above target.limits.",
    ),
    ("benchmarks:\n  break_even_ratio: 0", "r.yaml:5: benchmarks.break_even_ratio: 0 is out of range"),
    ("benchmarks:\n  break_even_lengths: [2, 1]", "r.yaml:5: benchmarks.break_even_lengths: a list is not a list of"),
    ("benchmarks:\n  break_even_lengths: [0]", "r.yaml:5: benchmarks.break_even_lengths: "),
    ("benchmarks:\n  break_even_lengths: 64", "r.yaml:5: benchmarks.break_even_lengths: 64 is not a list"),
    ("  dtype: float8", "r.yaml:4: model.dtype: 'float8' is not valid; did you mean 'float"),
    ("  revision: 1234567", "r.yaml:4: model.revision: 1234567 is wrong; must be a string or null"),
    ("  source: there", "r.yaml:4: model.source: duplicate key, first written on line 3; keep one of them"),
    ("extend: zipvl", "r.yaml:4: extend: unknown key; did you mean 'extends'?"),
    ("1: x", "r.yaml:4: 1: unknown key; valid: benchmarks"),
    ("[a]: x", "r.yaml:4: a key is a list or mapping; must be plain text"),
    ("zipvl: &z\n  tau: 0.5\nserving: *z", "r.yaml:6: serving: YAML aliases (*name) are not supported"),
    ("zipvl: &z\n  tau: *z", "r.yaml:5: zipvl.tau: YAML aliases"),
    ("zipvl: !!python/object:os.x {}", "r.yaml:4: zipvl: YAML tag tag:yaml.org,2002:python/object:os.x is"),
    ("zipvl:\n  tau: !half 0.5", "r.yaml:5: zipvl.tau: YAML tag !half is not supported; write a plain value"),
    ("zipvl:\n  tau: !!int x", "r.yaml:5: zipvl.tau: 'x' is not a valid int; write a plain value"),
    ("zipvl:\n  seed: " + "9" * 5000, "r.yaml:5: zipvl.seed: value too long"),
    ("zipvl:\n\ttau: 0.9", "r.yaml:5: invalid YAML, found character '\\t' that cannot start any token; write"),
    ("zipvl: [", "invalid YAML"),
    ("---\nname: other", "r.yaml:4: invalid YAML, but found another document"),
    ("zipvl: " + "[" * 1000, "r.yaml:1: invalid YAML, nested too deeply"),
    ("zipvl: \x07", "r.yaml:4: invalid YAML, unprintable character"),
    ('"a\\nb": 1', "r.yaml:4: a\\nb: unknown key"),
    ("extends: [1]", "r.yaml:4: extends: is not a name; must be a part's name or path, or a list of them"),
    ("extends: {}", "r.yaml:4: extends: is not a name"),
    ("extends: zipvll", "r.yaml:4: extends: no shared part 'zipvll'; did you mean 'zipvl'? valid: zipvl"),
    ("extends: parts/x.yaml", "r.yaml:4: extends: no file parts/x.yaml; must be a path relative to this file"),
    ("extends: " + "x" * 5000, "r.yaml:4: extends: no shared part 'xxx"),
    ('extends: "a\\0/b"', "r.yaml:4: extends: no file a\\x00/b"),
    ("extends: r.yaml", "r.yaml:4: extends: cycle r.yaml -> r.yaml; a part must not extend itself"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[f"{i}-{text[:30]!r}" for i, (text, _) in enumerate(BAD)])
def test_mistakes(text: str, expected: str) -> None:
    assert expected in refusal(HEAD + text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "r.yaml:1: is empty; must be a mapping"),
        ("# only a comment\n", "r.yaml:1: is empty"),
        ("- name: r", "r.yaml:1: is not a mapping"),
        ("\n\ntext", "r.yaml:3: is not a mapping"),
        ("name: r", "r.yaml:1: model: missing; must be a mapping; valid: dtype, revision, source"),
        ("name: r\nmodel:\n  dtype: float16", "r.yaml:2: model.source: missing; must be a string"),
        ("# c\nmodel:\n  source: here", "r.yaml:2: name: missing; must be a string matching ^[a-z0-9]"),
        ("name: 3\nmodel:\n  source: here", "r.yaml:1: name: 3 is wrong; must be a string"),
        ("name: ../x\nmodel:\n  source: here", "r.yaml:1: name: '../x' is wrong; must be a string matching"),
        ("name: no\nmodel:\n  source: here", "r.yaml:1: name: false is wrong; must be a string"),
        ("name: r\nmodel:\n  source: ''", "r.yaml:3: model.source: '' is not a source"),
        ('name: r\nmodel:\n  source: "\\0"', "r.yaml:3: model.source: '\\x00' is not a source"),
        ('name: "\\ud800"\nmodel:\n  source: here', "r.yaml:1: name: '\\ud800' is wrong"),
        ("name: r\nmodel:\n  source: ~nobody-here/x", "r.yaml:3: model.source: "),
        ("nmae: r\nmodel:\n  source: here", "r.yaml:1: nmae: unknown key; did you mean 'name'?"),
    ],
)
def test_mistakes_in_whole_files(text: str, expected: str) -> None:
    assert expected in refusal(text)


def test_several_mistakes_report_the_first() -> None:
    line = refusal(HEAD + "zipvl:\n  tau: 3\n  cache: x\ntarget:\n  gpu: 1\n")
    assert line == "r.yaml:5: zipvl.tau: 3 is out of range; must be > 0 and <= 1 (+2 more)"


def test_files_that_cannot_be_recipes(in_tmp: Path) -> None:
    Path("r.yaml").write_bytes(b"name: r\nmodel: \xff\n")
    with pytest.raises(InputError, match=r"^r\.yaml:2: byte 0xff is not UTF-8; save the file as UTF-8$"):
        load_recipe("r.yaml")
    Path("big.yaml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(InputError, match=r"^big\.yaml: is too large for a recipe; "):
        load_recipe("big.yaml")
    with pytest.raises(InputError, match=r": no such recipe file; .*valid: .*digits"):
        load_recipe(in_tmp)
    with pytest.raises(InputError, match=r"^digit\.yaml: no such recipe file; did you mean 'digits'\? valid: .*digits"):
        load_recipe("digit.yaml")
    for name in ("", "x" * 5000, "a\0b", "../digits"):
        with pytest.raises(InputError, match="no such recipe file"):
            load_recipe(name)


def test_unreadable_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("r.yaml", HEAD)
    file.chmod(0)
    if os.geteuid() == 0:  # root reads everything: let the system refuse as it refuses others

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

        for name in ("open", "read_bytes", "read_text"):
            monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(InputError, match=r"^r\.yaml: cannot be read \(Permission denied\); must be a readable file$"):
        load_recipe("r.yaml")


def test_a_file_outside_the_working_directory_is_named_in_full(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("r.yaml", "x: 1").resolve()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    with pytest.raises(InputError, match="^" + re.escape(f"{path}:1: x: unknown key")):
        load_recipe("../r.yaml")


# --- finding ---------------------------------------------------------------------------------------------------------


def test_a_file_wins_over_a_shipped_recipe_of_that_name() -> None:
    assert find_recipe("digits") == find_recipe("digits.yaml") == recipes_dir() / "digits.yaml"
    write("digits.yaml", HEAD)
    assert find_recipe("digits.yaml") == Path("digits.yaml")


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


# --- extends ---------------------------------------------------------------------------------------------------------


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


# --- overrides -------------------------------------------------------------------------------------------------------


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


# --- anything at all -------------------------------------------------------------------------------------------------

KEYS = st.sampled_from(
    [
        "name",
        "model",
        "source",
        "revision",
        "dtype",
        "zipvl",
        "tau",
        "probe",
        "cache",
        "dense_below",
        "target",
        "backend",
        "gpu",
        "limits",
        "kv_bytes",
        "page_size",
        "serving",
        "benchmarks",
        "break_even_lengths",
        "extends",
    ]
)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["evict", "auto", "zipvl", "1e-3", "64MiB", "quantise", "owner/name"])
)
VALUES = st.recursive(
    ATOMS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), v, max_size=4), max_leaves=12
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=5)


def survives(data: bytes, *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "r.yaml")
        path.write_bytes(data)
        try:
            recipe = load_recipe(path, overrides).recipe
        except InputError as error:
            assert str(error).isprintable()
        else:
            assert Recipe.model_validate(recipe.lock()) == recipe


QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(MAPPINGS, st.booleans())
def test_any_mapping_loads_or_is_refused_in_one_line(mapping: dict[str, object], valid_head: bool) -> None:
    head = {"name": "r", "model": {"source": "here"}} if valid_head else {}
    survives(yaml.safe_dump({**head, **mapping}).encode())


@QUICK
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), st.text(max_size=12))
def test_any_file_loads_or_is_refused_in_one_line(data: bytes, override: str) -> None:
    survives(data)
    survives(HEAD.encode() + data, override)
    survives(HEAD.encode(), "zipvl.tau=" + override)
