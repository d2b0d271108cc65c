"""A Triton server over a model repository: started, watched, recovered, drained and stopped."""

from __future__ import annotations

import errno
import ipaddress
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from zipvl_serving.errors import ZipvlError
from zipvl_serving.triton.canary import check_model
from zipvl_serving.triton.control import Control
from zipvl_serving.triton.installation import find_installation
from zipvl_serving.triton.process import ServerProcess
from zipvl_serving.triton.repository import models
from zipvl_serving.triton.watchdog import Watchdog

_LOOK_S = 0.05
_EXIT_S = 3.0
"""For the end of a server that has nothing to do any more; with an open gRPC stream it would never end."""
_QUIET_LOOKS = 2
"""So often in a row, longer apart than the model flushes its metrics, nothing must be under way."""
_QUIET_S = 0.25


class TritonServer:
    """One tritonserver with every model of a repository, and a watchdog.

    When a model's Python process dies, Triton lets the streams that it served hang for ever, and no call to its API
    ends them. So the watchdog ends the whole server, at which all its streams end with an error (gRPC UNAVAILABLE, a
    closed HTTP connection), and starts it again on the same ports.
    """

    def __init__(
        self,
        repository: Path,
        *,
        host: str = "127.0.0.1",
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        log: IO[str] | None = None,
    ) -> None:
        """`host`: the address to listen on. A port of 0 is any free one. What the server prints goes to `log`.

        Raises InputError where `repository` is none of ours.
        """
        self.generation = 0
        """How often the server was started again."""
        self._repository = repository
        self._models = tuple(models(repository))
        self._host = host
        self._log = log
        self._ports = _choose_ports(host, http=http_port, grpc=grpc_port, metrics=metrics_port)
        self._control = Control(self.http_address, self.metrics_address)
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._process: ServerProcess | None = None
        self._watchdog: Watchdog | None = None
        self._stopping = threading.Event()

    @property
    def models(self) -> tuple[str, ...]:
        return self._models

    @property
    def http_address(self) -> str:
        """Host and port, as clients on this machine reach it."""
        return self._address("http")

    @property
    def grpc_address(self) -> str:
        return self._address("grpc")

    @property
    def metrics_address(self) -> str:
        return self._address("metrics")

    def start(self, timeout_s: float = 120) -> None:
        """Return when every model is ready and has answered a canary.

        Raises ZipvlError, one line with the server's own reason, where a port is taken, a model cannot be loaded, no
        server is installed or it cannot run, and when `timeout_s` are over; then nothing is left running.
        """
        self._stopping.clear()
        self._timeout_s = timeout_s
        self._scratch = tempfile.TemporaryDirectory(prefix="zipvl-triton-")
        try:
            _require_free(self._host, self._ports)
            installation = find_installation(Path(self._scratch.name))
            backends = [f"--backend-directory={installation.backends}"] if installation.backends else []
            self._command: list[str | Path] = [installation.binary, *backends, *self._options()]
            self._environment = installation.environment
            self._process = self._launch()
            self._watchdog = Watchdog(self._process, self._models, self._control.probe, self._recover)
        except BaseException:
            self.stop(0)
            raise

    def stop(self, timeout_s: float = 40) -> None:
        """Refuse new requests, let those under way end, and stop; what has not ended after `timeout_s` is cut off.

        Leaves no process behind. Any number of times.
        """
        deadline = time.monotonic() + timeout_s
        self._stopping.set()
        try:
            if self._watchdog:
                if self._watchdog.fault and self._process:
                    self._process.end(0)  # the recovery gives up
                self._watchdog.stop()
                self._watchdog = None
            if self._process and not self._process.ended:
                self._drain(self._process, deadline - _EXIT_S)
                self._process.end(min(_EXIT_S, max(0.0, deadline - time.monotonic())))
        finally:  # also where a second Ctrl-C interrupted the above
            if self._process:
                self._process.end(0)
                self._process = None
            if self._scratch:
                self._scratch.cleanup()
                self._scratch = None

    def health(self) -> str | None:
        """None, or in one line why the server is not well."""
        if self._process is None or self._watchdog is None:
            return "the Triton server is not running"
        return f"the Triton server is being started again: {fault}" if (fault := self._watchdog.fault) else None

    def _launch(self) -> ServerProcess:
        """A new run that answers. Raises as `start`."""
        deadline = time.monotonic() + self._timeout_s
        self._give_up_if_stopping()
        process = self._process = ServerProcess(self._command, self._environment, self._log)
        try:
            while not self._control.ready():
                self._give_up_if_stopping()
                if process.ended:
                    raise ZipvlError(f"the Triton server did not start: {process.reason()}")
                if time.monotonic() > deadline:
                    raise ZipvlError(f"the Triton server was not ready after {self._timeout_s:g} s")
                time.sleep(_LOOK_S)
            for model in self._models:
                check_model(self.grpc_address, model, max(1.0, deadline - time.monotonic()))
        except BaseException:
            process.end(0)
            raise
        return process

    def _give_up_if_stopping(self) -> None:
        if self._stopping.is_set():
            raise ZipvlError("the Triton server was stopped before it was ready")

    def _recover(self) -> ServerProcess:
        if self._process:
            self._process.end(0)
        process = self._launch()
        self.generation += 1
        return process

    def _drain(self, process: ServerProcess, deadline: float) -> None:
        """Until nothing is under way. Triton's own drain waits for idle gRPC streams as well, which may never end."""
        for model in self._models:
            self._control.unload(model)
        quiet = 0
        while quiet < _QUIET_LOOKS and process.stubs() and not process.ended and time.monotonic() < deadline:
            quiet = quiet + 1 if self._control.requests_under_way() == 0 else 0
            time.sleep(_QUIET_S)

    def _options(self) -> list[str]:
        return [
            f"--model-repository={self._repository.resolve()}",
            # By name: a repository may hold what a killed `package` left.
            "--model-control-mode=explicit",
            *(f"--load-model={model}" for model in self._models),
            # The configuration is complete; completing it would start Python twice.
            "--disable-auto-complete-config",
            *(f"--{service}-address={self._host}" for service in self._ports),
            *(f"--{service}-port={port}" for service, port in self._ports.items()),
            # Large weights take longer to load than the default of 30 s.
            f"--backend-config=python,stub-timeout-seconds={max(30, int(self._timeout_s))}",
            f"--exit-timeout-secs={int(_EXIT_S)}",
            *self._control.options,
        ]

    def _address(self, service: str) -> str:
        host = self._host
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return f"{host}:{self._ports[service]}"
        if address.is_unspecified:
            host = "127.0.0.1" if address.version == 4 else "::1"
        return f"{host}:{self._ports[service]}" if address.version == 4 else f"[{host}]:{self._ports[service]}"


def _choose_ports(host: str, **ports: int) -> dict[str, int]:
    """The ports by service, free ones for those that are 0; all of them differ."""
    held: list[socket.socket] = []
    chosen = {}
    try:
        for service, port in ports.items():
            if port:
                chosen[service] = port
                continue
            held.append(_bound(host, 0))
            chosen[service] = held[-1].getsockname()[1]
    except OSError as error:
        raise ZipvlError(f"{host}: cannot be listened on: {error.strerror or error}") from None
    finally:
        for taken in held:
            taken.close()
    return chosen


def _require_free(host: str, ports: dict[str, int]) -> None:
    """ZipvlError where a port is taken: the server would notice only after it had loaded everything."""
    for service, port in ports.items():
        try:
            _bound(host, port).close()
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror or error}"
            raise ZipvlError(f"port {port} on {host} {why}; choose another --{service}-port") from None


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError:
        made.close()
        raise
    return made
