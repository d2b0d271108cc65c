"""What is wrong with a recipe is one line that says where, whatever the file holds."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path

import pytest
import yaml
from helpers.recipes import HEAD, refusal, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zipvl_compile.recipe.load import load_recipe
from zipvl_compile.recipe.schema import Recipe
from zipvl_serving.errors import InputError

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
    ("  weights: none", "r.yaml:4: model.weights: 'none' is not valid; valid: checkpoint, random"),
    ("  layers: 0", "r.yaml:4: model.layers: 0 is out of range; must be >= 1"),
    ("  layers: all", "r.yaml:4: model.layers: 'all' is wrong; must be an integer >= 1 or null"),
    ("  layers: true", "r.yaml:4: model.layers: true is wrong; must be an integer >= 1 or null"),
    ("  rope_theta: 0", "r.yaml:4: model.rope_theta: 0 is out of range; must be > 0"),
    ("  rope_theta: long", "r.yaml:4: model.rope_theta: 'long' is wrong; must be a number > 0 or null"),
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
        ("name: r", "r.yaml:1: model: missing; must be a mapping; valid: dtype, layers, revision, rope_theta"),
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


# --- anything at all ---

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
