"""Read a workload: YAML by path, or by the name of one that ships in recipes/bench/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from zipvl_compile.bench.workload import KINDS, Workload
from zipvl_compile.recipe.load import read_tree, validate
from zipvl_compile.recipe.source import Leaf, find_shipped, problem, recipes_dir, shorten
from zipvl_serving.errors import nearest

Loaded = TypeVar("Loaded", bound=Workload)


def workloads_dir() -> Path:
    """The workloads that come with this package."""
    return recipes_dir() / "bench"


def workload_names() -> list[str]:
    """Names of the workloads in `workloads_dir()` that `load_workload` takes in place of a path."""
    return sorted(file.stem for file in workloads_dir().glob("*.yaml"))


def load_workload(path: str | Path, wanted: type[Loaded], overrides: Sequence[str] = ()) -> Loaded:
    """A workload of the wanted kind; overrides are `KEY=VALUE` with a YAML value.

    Raises InputError with one line, `FILE:LINE: KEY: what was wrong; what would have been valid`.
    """
    file = find_shipped(path, workload_names(), workloads_dir(), "workload")
    tree = read_tree(file, overrides)
    written = tree.items.get("kind")
    if isinstance(written, Leaf):
        kind = str(written.value)
        expected = next(name for name, model in KINDS.items() if model is wanted)
        if kind not in KINDS:
            message = f"{shorten(kind)!r} is no kind of workload; {nearest(shorten(kind), KINDS)}"
            raise problem(written.mark, ("kind",), message)
        if kind != expected:
            message = f"{kind} is measured by `bench {kind}`; this command takes a workload of kind {expected}"
            raise problem(written.mark, ("kind",), message)
    return validate(tree, wanted, file)[0]
