"""Base revisions come and go without a trace; builds that fail say so in one line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from helpers.bundles import refusal

from zipvl_compile.gate.errors import GateError
from zipvl_compile.gate.revision import base_tree, build, bundle_notes, environment_notes

CLI = "import sys\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    return subprocess.check_output(["git", "-C", folder, *identity, *arguments], text=True).strip()


def commit(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "change")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Two commits of a project with a command line."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    commit(folder, cli_py=CLI, pyproject_toml="a")
    commit(folder, cli_py=CLI + "# newer\n", pyproject_toml="b")
    return folder


def no_trace(checkout: Path) -> bool:
    return len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_revision_is_there_for_a_while(checkout: Path) -> None:
    (checkout / "cli.py").write_text("changed and not committed\n")
    with base_tree(checkout, "HEAD~1", None) as tree:
        assert (tree / "cli.py").read_text() == CLI
        assert environment_notes(tree, checkout) == [
            "pyproject.toml differs between base and head; both ran in this interpreter's environment, made for head"
        ]
    assert not tree.parent.exists()
    assert no_trace(checkout)
    assert (checkout / "cli.py").read_text() == "changed and not committed\n"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_it_is_gone_whatever_happens(checkout: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), base_tree(checkout, "HEAD", None) as tree:
        (tree / "left behind").write_text("")
        raise error
    assert not tree.parent.exists()
    assert no_trace(checkout)


def test_worktrees_of_the_user_stay(checkout: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    git(checkout, "worktree", "add", "--detach", "--quiet", str(theirs))
    theirs.rename(tmp_path / "on a disk that is not mounted")
    with base_tree(checkout, "HEAD", None):
        pass
    assert str(theirs) in git(checkout, "worktree", "list")


def test_hooks_of_the_user_do_not_run(checkout: Path) -> None:
    hook = checkout / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    with base_tree(checkout, "HEAD", None) as tree:
        assert not (tree / "hooked").exists()


def test_a_revision_that_is_not_there(checkout: Path) -> None:
    with refusal(GateError, "--base HEAD~9", "no such revision here"), base_tree(checkout, "HEAD~9", None):
        pass
    assert no_trace(checkout)


def test_a_shallow_clone_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout}", str(clone))
    with refusal(GateError, "--base HEAD~1", "git fetch --unshallow"), base_tree(clone, "HEAD~1", None):
        pass


def test_a_folder_that_is_no_checkout(tmp_path: Path) -> None:
    with refusal(GateError, "git rev-parse failed", "--base-dir"), base_tree(tmp_path, "HEAD", None):
        pass


def test_an_exported_tree(checkout: Path, tmp_path: Path) -> None:
    with base_tree(tmp_path, None, checkout) as tree:
        assert tree == checkout
    assert checkout.exists()
    with refusal(GateError, "--base-dir", "holds no cli.py"), base_tree(checkout, None, tmp_path):
        pass


def test_bundles_of_other_work_are_said_to_be(tmp_path: Path) -> None:
    manifest = {
        "recipe": {"zipvl": {"tau": 0.9, "seed": 1}},
        "checkpoint": {"source": "/base", "files": {"model": "aa"}},
        "method": {"dense_below": 0},
    }
    other = {
        "recipe": {"zipvl": {"tau": 0.8, "seed": 1}},
        "checkpoint": {"source": "/head", "files": {"model": "bb"}},
        "method": {"dense_below": 64},
    }
    for name, body in (("base", manifest), ("head", other)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(body))
    assert bundle_notes(tmp_path / "base", tmp_path / "base") == []
    assert bundle_notes(tmp_path / "base", tmp_path / "head") == [
        "the recipe differs in zipvl.tau: 0.9 in base, 0.8 in head",
        'the checkpoint differs in model: "aa" in base, "bb" in head',
        "the method differs in dense_below: 0 in base, 64 in head",
    ]


def test_a_build_that_fails(checkout: Path, tmp_path: Path) -> None:
    (checkout / "cli.py").write_text("import sys\nprint('read ...', file=sys.stderr)\nsys.exit('error: no memory')\n")
    with refusal(GateError, "base: the build of digits failed: error: no memory"):
        build("base", checkout, "digits", tmp_path / "out")


def test_a_build_takes_the_revision_s_own_sources(checkout: Path, tmp_path: Path) -> None:
    (checkout / "cli.py").write_text(
        "import os, pathlib, sys\n"
        "assert os.environ['PYTHONPATH'].split(os.pathsep)[0].rstrip('/') == os.getcwd()\n"
        "pathlib.Path(sys.argv[4]).write_text(' '.join(sys.argv[1:3] + sys.argv[5:]))\n"
    )
    out = build("base", checkout, "digits", tmp_path / "out", ["a.b=1"])
    assert out.read_text() == "build digits --set a.b=1"
