"""serving/deploy/requirements.txt: what the image installs without dependencies is all that serving imports."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from zipvl_serving.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "serving" / "deploy"
OURS = {"zipvl_compile": ROOT, "zipvl_serving": ROOT / "serving", "zipvl_plugins": ROOT / "plugins"}
"""Our packages, and the folders that they lie in."""
ENTRY = ("zipvl_compile.cli", "zipvl_compile.commands.serve")
"""What the container runs of the compile-time half."""
FROM_TRITON = {"triton_python_backend_utils", "c_python_backend_utils", "pytriton"}
"""Modules that come with a Triton server."""
ENGINES = ROOT / "serving" / "zipvl_serving" / "sessions"
OTHER_SESSIONS = set(ENGINES.glob("*.py")) - {ENGINES / name for name in ("__init__.py", "base.py", "onnxruntime.py")}
"""Loaded by name, for bundles whose runtime the image gets from engines/."""
LEFT_OUT = {"huggingface-hub"}
"""tokenizers downloads with it, and for nothing else."""


def read(file: Path) -> dict[str, Version]:
    """Pins by canonical name."""
    pins: dict[str, Version] = {}
    for line in file.read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            (exact,) = requirement.specifier
            assert exact.operator == "==", text
            pins[canonicalize_name(requirement.name)] = Version(exact.version)
    return pins


PINS = read(DEPLOY / "requirements.txt")


def test_every_backend_has_its_runtime() -> None:
    tested = read(ROOT / "constraints.txt")
    files = {file.stem: read(file) for file in (DEPLOY / "engines").iterdir()}
    assert set(files) == set(BACKENDS)
    for backend, pins in files.items():
        assert canonicalize_name(BACKENDS[backend].distribution) in pins | PINS
        assert {name: tested[name] for name in pins if name in tested} == {
            name: version for name, version in pins.items() if name in tested
        }


def test_the_compile_time_half_is_left_out() -> None:
    assert not {"torch", "transformers", "onnx", "onnxscript", "nvidia-pytriton"} & set(PINS)


def test_versions_are_those_of_ci() -> None:
    tested = read(ROOT / "constraints.txt")
    assert {name: tested[name] for name in PINS if name in tested} == {
        name: version for name, version in PINS.items() if name in tested
    }


def test_versions_are_those_that_the_project_allows() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in (*project["dependencies"], *extras["serve"], *extras["serve-triton"]):
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        assert name not in PINS or PINS[name] in requirement.specifier, text


def test_nothing_that_a_pin_needs_is_missing() -> None:
    """The image installs with --no-deps."""
    missing = {(name, need) for name in PINS for need in needs(name) if need not in PINS}
    assert {need for _, need in missing} <= LEFT_OUT, missing


def needs(name: str) -> Iterator[str]:
    """What a distribution requires, and what tritonclient[grpc] does."""
    for text in importlib.metadata.requires(name) or ():
        requirement = Requirement(text)
        extras = ("", "grpc") if name == "tritonclient" else ("",)
        if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(requirement.name)


def test_whatever_serving_imports_is_installed() -> None:
    files = [file for file in (ROOT / "serving").rglob("*.py") if file not in OTHER_SESSIONS]
    assert OTHER_SESSIONS and len(files) > 50
    serving = {name for file in files for name in imports(file.read_text())}
    started = {name for module in reached(ENTRY) for name in imports(source(module).read_text(), at_start=True)}
    found = {name.partition(".")[0] for name in serving | started}
    third_party = found - set(sys.stdlib_module_names) - set(OURS) - FROM_TRITON
    assert {"numpy", "onnxruntime", "tokenizers", "typer"} <= third_party
    owners = importlib.metadata.packages_distributions()
    uncovered = {name for name in third_party if not {canonicalize_name(owner) for owner in owners[name]} & set(PINS)}
    assert not uncovered


def reached(modules: tuple[str, ...]) -> set[str]:
    """These modules, and all of ours that importing them imports."""
    found: set[str] = set()
    ahead = set(modules)
    while ahead:
        found.add(module := ahead.pop())
        names = imports(source(module).read_text(), at_start=True)
        parents = {module.rsplit(".", depth)[0] for depth in range(1, module.count(".") + 1)}
        ahead |= {name for name in {*names, *parents} if name.partition(".")[0] in OURS and exists(name)} - found
    return found


def imports(code: str, *, at_start: bool = False) -> Iterator[str]:
    """Every module that the code imports and every name that it takes out of one; `at_start`: outside functions."""
    ahead: list[ast.AST] = [ast.parse(code)]
    while ahead:
        match node := ahead.pop():
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda() if at_start:
                pass
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case _:
                ahead += ast.iter_child_nodes(node)


def source(module: str) -> Path:
    """The file of one of our modules."""
    path = OURS[module.partition(".")[0]].joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exists(module: str) -> bool:
    return source(module).exists()


def test_the_image_installs_what_is_pinned() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    assert re.search(r"install [^&\n]*--no-deps [^&\n]*--requirement requirements\.txt", dockerfile)
    (tag,) = re.findall(r"^ARG TRITON_TAG=(\d+\.\d+)-py3$", dockerfile, re.MULTILINE)
    # Older ones have a Python before 3.11, or read tensors of numpy 2 wrong.
    assert Version(tag) >= Version("24.12")
