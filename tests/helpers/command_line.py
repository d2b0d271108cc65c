"""Run zipvl-compile: within this process, which is quick, or as users do."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import IO

from typer.testing import CliRunner, Result

from zipvl_compile.cli import app

_SCRIPT = Path(sysconfig.get_path("scripts")) / "zipvl-compile"
# Started in the background, tests would hand a SIGINT that is ignored to their children.
_WITH_SIGINT = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)


def invoke(*arguments: str | Path) -> Result:
    """Run a command within this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def succeed(*arguments: str | Path) -> str:
    """What a command that must succeed prints."""
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def spawn(*arguments: str | Path, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.Popen[str]:
    """Start the console script."""
    command = [sys.executable, "-c", _WITH_SIGINT, str(_SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)


def error_line(stderr: str) -> str:
    """The one line that an error is, after the lines of progress, if any."""
    lines = [line for line in stderr.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ") and lines[0].isprintable()
    return lines[0].removeprefix("error: ")
