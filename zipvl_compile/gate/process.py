"""A worker's process, seen from the gate."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Literal, Protocol, Self, get_args

from zipvl_compile.gate.errors import GateError
from zipvl_serving.machine import usable_cores

SCRIPT = Path(__file__).with_name("worker.py")
FIGURES: Final = ("ttft", "prefill", "decode", "dense")
Clock = Literal["wall", "cpu"]
CLOCKS: Final[tuple[Clock, ...]] = get_args(Clock)
_PATIENCE_S = 300.0
_GRACE_S = 5.0
_KEPT_LINES = 20
_OPENBLAS_WAIT = {"OPENBLAS_THREAD_TIMEOUT": "4"}
"""log2 of the cycles for which idle threads spin; by default they burn some 30 ms after each product."""
_BLAS_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

Seconds = dict[Clock, list[float]]
"""The same samples by either clock."""


@dataclass(frozen=True)
class Runs:
    """What some runs of one prompt did, and what they took.

    tokens: of the prompt. kept: of them, per layer. text: the answer. seconds: of each run, by figure.
    """

    tokens: int
    kept: tuple[int, ...]
    text: str
    seconds: dict[str, Seconds]


class Sampler(Protocol):
    """Whoever measures on command."""

    def runs(self, length: int, count: int) -> Runs:
        """`count` runs of the prompt of about `length` tokens."""

    def calibrate(self, count: int, side: int) -> Seconds:
        """Seconds of `count` products of two matrices [side, side]."""


def source_path(root: Path) -> str:
    """PYTHONPATH of the checkout at `root`: it comes before whatever is installed."""
    return os.pathsep.join(str(root / part) for part in ("", "plugins", "serving"))


class WorkerProcess:
    """worker.py over one bundle with the sources of one checkout. A context manager: the process ends with the block.

    threads: of the engine and of numpy's products, 0 for all cores. dense: time the dense prompt too. stretch: share by
    which every vision and prefill call is prolonged, by `clock`.
    Raises GateError where it dies, does not answer, answers an error or runs other sources than those at `root`.
    """

    def __init__(
        self,
        label: str,
        root: Path,
        bundle: Path,
        *,
        threads: int = 0,
        new_tokens: int = 16,
        dense: bool = False,
        stretch: float = 0.0,
        clock: Clock = "wall",
        script: Path = SCRIPT,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._label, self._patience_s = label, patience_s
        settings = {"--threads": threads, "--new-tokens": new_tokens, "--stretch": stretch, "--clock": clock}
        self._process = subprocess.Popen(
            # -P: the folder of worker.py must not be searched for modules.
            [
                *(sys.executable, "-P", str(script), str(bundle)),
                *(f"{name}={value}" for name, value in settings.items()),
                *(["--dense"] if dense else []),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={
                **os.environ,
                # BLAS reads them when numpy is loaded.
                **_OPENBLAS_WAIT,
                **dict.fromkeys(_BLAS_THREADS, str(threads or usable_cores())),
                "PYTHONPATH": source_path(root.resolve()),
            },
            start_new_session=True,  # Ctrl-C reaches the gate alone, which ends its workers
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._requests = self._process.stdin
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._complaints: deque[str | None] = deque(maxlen=_KEPT_LINES)
        self._readers = [
            threading.Thread(target=_drain, args=(stream, take), daemon=True)
            for stream, take in (
                (self._process.stdout, self._answers.put),
                (self._process.stderr, self._complaints.append),
            )
        ]
        for reader in self._readers:
            reader.start()
        try:
            sources = Path(str(self._take().get("sources")))
            if not sources.is_relative_to(root.resolve()):
                raise GateError(f"{label}: runs the sources at {sources}, not those of {root}")
        except BaseException:
            self.close()
            raise

    def runs(self, length: int, count: int) -> Runs:
        answer = self._ask({"length": length, "runs": count})
        return Runs(answer["tokens"], tuple(answer["kept"]), answer["text"], answer["seconds"])

    def calibrate(self, count: int, side: int) -> Seconds:
        seconds: Seconds = self._ask({"calibrate": count, "side": side})["seconds"]
        return seconds

    def close(self) -> None:
        """End the process, by force where it does not go."""
        with suppress(OSError):
            self._requests.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join(_GRACE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.kill()
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
        except OSError:
            raise GateError(f"{self._label}: the worker has gone: {self._last_words()}") from None
        return self._take()

    def _take(self) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._patience_s)
        except queue.Empty:
            raise GateError(f"{self._label}: the worker did not answer within {self._patience_s:g} s") from None
        if line is None:
            raise GateError(f"{self._label}: the worker has gone: {self._last_words()}")
        try:
            answer = json.loads(line)
        except ValueError:
            raise GateError(f"{self._label}: the worker answered {line.strip()[:200]!r}, which is not JSON") from None
        if not isinstance(answer, dict):
            raise GateError(f"{self._label}: the worker answered {line.strip()[:200]!r}, which is no JSON object")
        if "error" in answer:
            raise GateError(f"{self._label}: the worker failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        self._readers[-1].join(_GRACE_S)
        lines = [line.strip() for line in self._complaints if line and line.strip()]
        return lines[-1][:300] if lines else "it said nothing"


def _drain(stream: IO[str], take: Callable[[str | None], None]) -> None:
    """Hand on every line of a stream and, where it ends, None."""
    with stream:
        for line in stream:
            take(line)
    take(None)
