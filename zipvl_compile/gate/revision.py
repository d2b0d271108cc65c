"""Source trees to compare: a revision checked out for a while, what is in it, and the bundle that it builds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import zipvl_compile
from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.process import source_path
from zipvl_serving.manifest import MANIFEST_FILE

COMMAND_LINE = "cli.py"
_ENVIRONMENT_FILES = ("pyproject.toml", "constraints.txt")


def head() -> Path:
    """The checkout that runs this program, uncommitted changes included; GateError where it was installed otherwise."""
    root = Path(zipvl_compile.__file__).resolve().parents[1]
    if not (root / COMMAND_LINE).is_file():
        raise GateError(f"{root}: is no checkout; the gate measures sources: run it from one")
    return root


def git(root: Path, *arguments: str) -> str:
    """What a git command says; GateError, with git's own words, where it fails."""
    try:
        done = subprocess.run(
            # A hook of the user's has no business in a tree that is measured.
            ["git", "-C", str(root), "-c", "core.hooksPath=/dev/null", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise GateError("git is not installed; --base-dir takes an exported tree instead") from None
    if done.returncode:
        words = " ".join(done.stderr.split())[:300]
        raise GateError(f"{root}: git {arguments[0]} failed: {words}; --base-dir takes an exported tree instead")
    return done.stdout.strip()


@contextmanager
def checked_out(root: Path, revision: str) -> Iterator[Path]:
    """A worktree of `revision` in a temporary directory, gone when the block ends, however it ends.

    Raises GateError where there is no such revision here (a shallow clone has few) or no git checkout.
    """
    try:
        commit = git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GateError:
        git(root, "rev-parse", "--git-dir")  # says so where this is no checkout at all
        shallow = git(root, "rev-parse", "--is-shallow-repository") == "true"
        hint = "this clone is shallow: git fetch --unshallow" if shallow else "see git log"
        raise GateError(f"--base {revision}: no such revision here; {hint}") from None
    folder = Path(tempfile.mkdtemp(prefix="zipvl-gate-"))
    tree = folder / "base"
    try:
        git(root, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        yield tree
    finally:
        with suppress(GateError):  # it was never added
            git(root, "worktree", "remove", "--force", str(tree))
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def base_tree(root: Path, revision: str | None, folder: Path | None) -> Iterator[Path]:
    """The sources to compare with: a revision of the checkout at `root`, or an exported tree."""
    if folder is None:
        assert revision is not None
        with checked_out(root, revision) as tree:
            yield tree
    elif (folder / COMMAND_LINE).is_file():
        yield folder.resolve()
    else:
        raise GateError(f"--base-dir {folder}: holds no {COMMAND_LINE}; must be an exported tree of this project")


def environment_notes(base: Path, head: Path) -> list[str]:
    """What a reader must know where the revisions ask for different environments: both run in this one."""
    return [
        f"{name} differs between base and head; both ran in this interpreter's environment, made for head"
        for name in _ENVIRONMENT_FILES
        if _text(base / name) != _text(head / name)
    ]


def bundle_notes(base: Path, head: Path) -> list[str]:
    """What the manifests of the two bundles say of their work differently; they may have other schemas."""
    old, new = ({name: _values(part) for name, part in _work_of(bundle).items()} for bundle in (base, head))
    notes = []
    for part in new:
        for key in sorted({*old[part], *new[part]}):
            was, now = (json.dumps(each[part].get(key)) for each in (old, new))
            if was != now:
                notes.append(f"{part} differs in {key}: {was[:80]} in base, {now[:80]} in head")
    return notes


def build(label: str, root: Path, recipe: str, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Build a recipe with the sources at `root`; a name is one of its own recipes. GateError where that fails."""
    chosen = str(Path(recipe).resolve()) if Path(recipe).is_file() else recipe
    settings = [part for override in overrides for part in ("--set", override)]
    done = subprocess.run(
        [sys.executable, str(root / COMMAND_LINE), "build", chosen, "--out", str(out), *settings],
        cwd=root,
        env={**os.environ, "PYTHONPATH": source_path(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        words = ([line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"])[-1]
        raise GateError(f"{label}: the build of {recipe} failed: {words[:300]}")
    return out


def _text(file: Path) -> str | None:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _work_of(bundle: Path) -> dict[str, Any]:
    """What a bundle's work hangs on beside the code, as its manifest has it."""
    manifest = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))
    dense_below = manifest.get("method", {}).get("dense_below")
    return {
        "the recipe": manifest.get("recipe"),
        "the checkpoint": manifest.get("checkpoint", {}).get("files"),  # wherever it lies
        "the method": {"dense_below": dense_below},
    }


def _values(tree: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested objects by dotted key."""
    if not isinstance(tree, dict):
        return {key: tree}
    return {
        name: leaf for part, below in tree.items() for name, leaf in _values(below, f"{key}.{part}".lstrip(".")).items()
    }
