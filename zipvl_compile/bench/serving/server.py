"""`zipvl-compile serve BUNDLE` for the time of a run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from zipvl_serving.errors import InputError, ZipvlError

_COMMAND = (sys.executable, "-m", f"{__package__}.child", "serve")
_GATEWAY = re.compile(r"gateway: (?P<url>\S+)/v1 ")
_TRITON_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
_END_S = 60.0


@contextmanager
def serving(bundle: Path, engine: str, settings: Sequence[str] = ()) -> Iterator[str]:
    """The URL of a gateway over the bundle, on a free port; the server ends with the block, whatever ends that.

    engine: embedded or triton. settings: NAME=VALUE, as `serve --set` takes them. Raises what `serve` says where it
    does not start: InputError where it calls its input wrong, else ZipvlError.
    """
    arguments = ["--gateway-port", "0", "--engine", engine, *(_TRITON_PORTS if engine == "triton" else ())]
    for setting in settings:
        arguments += ["--set", setting]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*_COMMAND, str(bundle), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said, text=True,
            # A Ctrl-C in the terminal is ours to pass on. No session of its own: where Linux shares the cores between
            # sessions, the server's would starve the client.
            process_group=0,
        )  # fmt: skip
        try:
            yield _wait(process, said)
        finally:
            _end(process)


def _wait(process: subprocess.Popen[str], said: IO[str]) -> str:
    """Until it announces its gateway, which it does when a token has come out of the model."""
    assert process.stdout
    for line in process.stdout:
        if found := _GATEWAY.match(line):
            return found["url"]
    code = process.wait()
    said.seek(0)
    lines = said.read().splitlines()
    reason = next((line for line in reversed(lines) if line.strip()), "it said nothing").removeprefix("error: ")
    raise (InputError if code == InputError.exit_code else ZipvlError)(f"serve: {reason}")


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, then SIGKILL for the whole group; a second interrupt while it ends does not leave it running."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()
