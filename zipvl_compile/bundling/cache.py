"""Finished bundles by content: checkpoint + recipe + tool versions + this project's own code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock

import zipvl_compile
import zipvl_plugins
import zipvl_serving
from zipvl_compile.bundling.writer import staged_directory
from zipvl_serving.backends import BACKENDS
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import ZipvlError

_TOOLS = (
    *("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "numpy", "safetensors", "tokenizers", "triton"),
    *sorted({backend.distribution for backend in BACKENDS.values()} - {"torch"}),
)

_NO_SAY = {"bench", "commands", "cost", "demo", "gate", "planning"}
"""Folders whose code has no say in what a build leaves."""


def cache_directory() -> Path:
    """$ZIPVL_CACHE_DIR, or the user's cache directory."""
    chosen = os.environ.get("ZIPVL_CACHE_DIR")
    return Path(chosen) if chosen else Path(platformdirs.user_cache_dir("zipvl-compile"))


def tool_versions() -> dict[str, str]:
    """Versions of everything that has a say in what a build leaves."""
    versions = {"python": platform.python_version(), "zipvl-compile": zipvl_compile.__version__}
    for tool in _TOOLS:
        try:
            versions[tool] = importlib.metadata.version(tool)
        except importlib.metadata.PackageNotFoundError:  # `doctor` on a machine that only serves
            versions[tool] = "not installed"
    return versions | {"zipvl-compile sources": _sources_digest()}


def cache_key(
    recipe: dict[str, Any], checkpoint_files: dict[str, str], tools: dict[str, str], gpu: str | None = None
) -> str:
    """One name for one result; `machine` is in it because the break-even length is measured on it."""
    target = recipe["target"]
    parts = {
        "recipe": {
            **recipe,
            # Where the checkpoint was read from does not matter; what was in it does.
            "model": {k: v for k, v in recipe["model"].items() if k not in ("source", "revision")},
            # Nor does how a GPU is called.
            "target": {**target, "gpu": gpu or target["gpu"]},
        },
        "checkpoint": checkpoint_files,
        "tools": tools,
        "machine": f"{platform.machine()} {processor_name()}",
        "gpu": gpu,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(key: str) -> Iterator[Path | None]:
    """Hold the lock of one cache entry, so that two builds of the same thing do the work once; yields its directory.

    A cache that cannot be written is read where it has the entry, and done without (None) where it has not.
    """
    entry = cache_directory() / "bundles" / key
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{entry}.lock")
        lock.acquire()
    except OSError:
        yield entry if entry.exists() else None
        return
    try:
        yield entry
    finally:
        lock.release()


def keep(bundle: Path, entry: Path | None) -> str | None:
    """Copy a fresh bundle into the cache; says why where that fails: the bundle is whole all the same."""
    if entry is None:
        return f"not cached: {cache_directory()} cannot be written; set ZIPVL_CACHE_DIR or use --no-cache"
    try:
        copy_bundle(bundle, entry)
    except ZipvlError as error:
        return f"not cached: {error}"
    return None


def copy_from(entry: Path, out: Path) -> bool:
    """Copy a cached bundle to `out`; False, with the entry dropped, where there is none or it is damaged."""
    if not entry.exists():
        return False
    try:
        Bundle.open(entry)
    except ZipvlError:
        shutil.rmtree(entry, ignore_errors=True)
        return False
    copy_bundle(entry, out)
    return True


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a bundle, atomically."""
    with staged_directory(target) as staging:
        for path in sorted(source.rglob("*")):
            place = staging / path.relative_to(source)
            if path.is_dir():
                place.mkdir()
            else:
                shutil.copyfile(path, place)


def _sources_digest() -> str:
    """A checkout changes without its version changing: the code itself is part of the key."""
    hasher = hashlib.sha256()
    for package in (zipvl_compile, zipvl_plugins, zipvl_serving):
        root = Path(str(package.__file__)).parent
        for file in sorted(root.rglob("*.py")):
            if not _NO_SAY & set(file.relative_to(root).parts):
                hasher.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return hasher.hexdigest()[:16]


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return f"{' + '.join(sorted(names))} x {os.cpu_count()}"
