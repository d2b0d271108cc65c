"""One run of tritonserver: its process, its Python stubs, what it printed, what it leaves behind."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from zipvl_serving.errors import ZipvlError

_STUB_COMM = "triton_python_b"  # a process's name has 15 characters
_SHARED_MEMORY = Path("/dev/shm")
_LINES_KEPT = 400
_REASONS = (
    re.compile(r"failed to load '(?P<who>[^']+)' version \d+: (?:\w+: )?(?:\w+: )?(?P<why>.*?)(?:\\n|$)"),
    re.compile(r"(?P<why>failed to start .*?service: .*)"),
    re.compile(r"(?P<why>error while loading shared libraries: .*)"),
    re.compile(r"^error: (?P<why>.*)"),
    re.compile(r"(?P<why>Signal \(\d+\) received)"),
)
"""What the server says of its end, the most telling first."""


class ServerProcess:
    """A running tritonserver in a process group of its own, so that a Ctrl-C in the terminal does not reach it."""

    def __init__(
        self, command: Sequence[str | Path], environment: Mapping[str, str], log: IO[str] | None = None
    ) -> None:
        """Start it; what it prints goes to `log`. Raises ZipvlError where it cannot be started."""
        self._region = f"zipvl_{secrets.token_hex(6)}_"
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._log = log
        regions = f"--backend-config=python,shm-region-prefix-name={self._region}"
        try:
            self._process = subprocess.Popen(
                [*map(str, command), regions],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise ZipvlError(f"{command[0]}: cannot be started: {error.strerror or error}") from None
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name="zipvl-triton-log", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def reason(self) -> str:
        """Why it ended, or why a model did not load, in its own words and one line."""
        if self.ended:
            self._reader.join(timeout=5)  # for the last words
        if self._process.poll() == -signal.SIGKILL:
            return "it was killed (SIGKILL)"
        lines = list(self._lines)
        for pattern in _REASONS:
            for line in reversed(lines):
                if match := pattern.search(line):
                    who = f"model {match['who']}: " if "who" in pattern.groupindex else ""
                    return " ".join(f"{who}{match['why']}".rstrip('" ').split())
        said = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        return f"exit status {self._process.poll()}; its last line: {' '.join(said.split())[:300]}"

    def stubs(self) -> dict[int, str]:
        """Its living Python processes: process id -> the model that each runs."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _is_stub_of(entry, self.pid):
                with suppress(OSError, IndexError):
                    model_file = (entry / "cmdline").read_bytes().split(b"\0")[1].decode(errors="replace")
                    found[int(entry.name)] = Path(model_file).parents[1].name
        return found

    def end(self, grace_s: float) -> None:
        """SIGTERM, after `grace_s` SIGKILL; then nothing of it is left: no process, no shared memory."""
        if not self.ended and grace_s > 0:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(grace_s)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # stubs outlive a server that was killed
        self._process.wait()
        deadline = time.monotonic() + 5
        while _group_lives(self.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        for region in _SHARED_MEMORY.glob(f"{self._region}*"):
            with suppress(OSError):
                region.unlink()
        self._reader.join(timeout=5)

    def _read(self) -> None:
        assert self._process.stdout
        with self._process.stdout as stream:
            for line in stream:
                self._lines.append(line.rstrip("\n"))
                if self._log:
                    with suppress(ValueError, OSError):  # closed, or full: the server must go on
                        self._log.write(line)
                        self._log.flush()


def _is_stub_of(entry: Path, server: int) -> bool:
    """Whether a directory of /proc is a living Python stub of this server."""
    try:
        head, _, rest = (entry / "stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return False
    state, parent, *_ = rest.split()
    return head.endswith(f"({_STUB_COMM}") and state not in "ZX" and int(parent) == server


def _group_lives(group: int) -> bool:
    """Whether a process of the group runs; those that nobody has waited for are dead."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError):
                state, _, its_group, *_ = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if int(its_group) == group and state not in "ZX":
                    return True
    return False
