"""scripts/paired_gate.sh around a gate that only says how it was called: what fails a build, and what does not."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from zipvl_compile.gate.revision import head

GATE = '#!/bin/sh\necho "called: $*"\nexit "${GATE_CODE:-0}"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One commit, without a parent."""
    gate = tmp_path / ".venv" / "bin" / "zipvl-compile"
    gate.parent.mkdir(parents=True)
    gate.write_text(GATE)
    gate.chmod(0o755)
    (tmp_path / "scripts").mkdir()
    shutil.copy(head() / "scripts" / "paired_gate.sh", tmp_path / "scripts")
    git = ("git", "-C", tmp_path, "-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false")
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "first"], check=True)
    return tmp_path


def run(project: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GITHUB_ACTIONS"} | variables
    script = project / "scripts" / "paired_gate.sh"
    return subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=False)


def test_a_base_and_options_reach_the_gate(project: Path) -> None:
    done = run(project, "HEAD", "--", "--clock", "cpu")
    assert done.stdout == "called: gate paired --base HEAD --out build/gate/paired --clock cpu\n"
    assert done.returncode == 0


@pytest.mark.parametrize(("code", "said"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 4)])
def test_only_no_verdict_is_let_pass(project: Path, code: int, said: int) -> None:
    done = run(project, "HEAD", GATE_CODE=str(code))
    assert done.returncode == said
    assert ("NO VERDICT" in done.stdout) == (code == 3)


@pytest.mark.parametrize("actions", [True, False])
def test_a_parent_that_is_not_there_is_said(project: Path, actions: bool) -> None:
    done = run(project, "--", "--clock", "cpu", **({"GITHUB_ACTIONS": "true"} if actions else {}))
    assert done.returncode == 0
    assert "NOT RUN" in done.stdout and "called" not in done.stdout
    assert done.stdout.startswith("::warning title=perf-gate::") == actions


def test_a_base_that_was_named_is_the_gate_s_to_refuse(project: Path) -> None:
    done = run(project, "HEAD~1", GATE_CODE="2")
    assert done.returncode == 2
    assert "called: gate paired --base HEAD~1" in done.stdout


@pytest.mark.parametrize("base", ["--clock", "-x", ""])
def test_an_option_is_no_base(project: Path, base: str) -> None:
    done = run(project, base, "cpu")
    assert done.returncode == 2
    assert "usage: " in done.stderr and "called" not in done.stdout
