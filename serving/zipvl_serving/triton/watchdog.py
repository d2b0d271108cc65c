"""Notices what Triton does not: a dead or deaf Python process behind a server that goes on saying that it is ready."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

LOOK_S = 0.25
PROBE_EVERY_S = 5.0
PROBE_TIMEOUT_S = 5.0
PROBES = 3
"""So many must fail in a row before a model counts as deaf: a busy machine may be slow once."""
RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses after recoveries that failed; the last one again and again."""

_log = logging.getLogger(__name__)


class Watched(Protocol):
    """A run of the server, as ServerProcess."""

    @property
    def ended(self) -> bool: ...
    def reason(self) -> str: ...
    def stubs(self) -> dict[int, str]: ...


class Watchdog:
    """A thread that looks at the server's processes four times a second and asks each model for a sign of life now and
    then; what is not well is started again."""

    def __init__(
        self,
        server: Watched,
        models: Iterable[str],
        probe: Callable[[str, float], str | None],
        recover: Callable[[], Watched],
        *,
        look_s: float = LOOK_S,
        probe_every_s: float = PROBE_EVERY_S,
        retry_s: tuple[float, ...] = RETRY_S,
    ) -> None:
        """Start to watch.

        probe: (model, timeout in seconds) -> None, or in one line why the model does not answer.
        recover: ends the run of the server and returns a new one that answers; is called again later where it raises.
        """
        self.fault: str | None = None
        """What is wrong and being repaired, in one line."""
        self._server = server
        self._models = tuple(models)
        self._probe = probe
        self._recover = recover
        self._look_s = look_s
        self._probe_every_s = probe_every_s
        self._retry_s = retry_s
        self._stop = threading.Event()
        self._begin()
        self._thread = threading.Thread(target=self._run, name="zipvl-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; waits for a recovery that is under way."""
        self._stop.set()
        self._thread.join()

    def _begin(self) -> None:
        """Of a new run."""
        self._stubs = self._server.stubs()
        self._failed = dict.fromkeys(self._models, 0)
        self._next_probe = time.monotonic() + self._probe_every_s

    def _run(self) -> None:
        while not self._stop.wait(self._look_s):
            try:
                if fault := self._look() or self._listen():
                    self._repair(fault)
            except Exception:  # nothing may end the watch
                _log.exception("a look at the Triton server failed")

    def _look(self) -> str | None:
        """Why the processes are not well, at once and without asking anybody."""
        if self._server.ended:
            return f"the Triton server ended: {self._server.reason()}"
        alive = self._server.stubs()
        for pid, model in self._stubs.items():
            if pid not in alive:
                return f"the Python process of model {model} (pid {pid}) died"
        return None

    def _listen(self) -> str | None:
        """Why a model is not well, if it is time to ask and it has not answered too often."""
        if time.monotonic() < self._next_probe:
            return None
        for model in self._models:
            problem = self._probe(model, PROBE_TIMEOUT_S)
            self._failed[model] = self._failed[model] + 1 if problem else 0
            if problem and self._failed[model] >= PROBES:
                return problem
        self._next_probe = time.monotonic() + self._probe_every_s
        return None

    def _repair(self, fault: str) -> None:
        self.fault = fault
        _log.error("%s; starting it again", fault)
        for pause in itertools.chain(self._retry_s, itertools.repeat(self._retry_s[-1])):
            if self._stop.is_set():
                return
            try:
                self._server = self._recover()
                break
            except Exception as error:
                self.fault = f"{fault}; it could not be started again: {error}"
                _log.error("%s", self.fault)
                self._stop.wait(pause)
        self._begin()
        self.fault = None
        _log.warning("the Triton server answers again")
