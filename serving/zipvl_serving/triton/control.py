"""What the launcher asks of a running server over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from zipvl_serving.metrics import PREFIX

_UNDER_WAY = re.compile(rf"^{PREFIX}requests_(?:waiting|running)\{{.*\}} (?P<value>\S+)$", re.MULTILINE)
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs of this machine's own server, whatever proxies the environment names."""


class Control:
    """A server's HTTP and metrics addresses ("host:port"), and the key to its model control.

    Who may send requests to a server shall not be able to unload its models, so that part wants a key, a new one for
    each server.
    """

    HEADER = "zipvl-control"

    def __init__(self, http_address: str, metrics_address: str) -> None:
        self._http = f"http://{http_address}"
        self._metrics = f"http://{metrics_address}/metrics"
        self._key = secrets.token_hex(16)

    @property
    def options(self) -> list[str]:
        """Of tritonserver, to want the key."""
        rule = f"model-repository:{self.HEADER}={self._key}"
        return [f"--http-restricted-api={rule}", f"--grpc-restricted-protocol={rule}"]

    def ready(self) -> bool:
        """Whether server and models say that they are ready, which they go on saying when a model's Python has died."""
        with suppress(OSError):
            return self._ask("/v2/health/ready", timeout_s=5)[0] == 200
        return False

    def probe(self, model: str, timeout_s: float) -> str | None:
        """None where the model's own code answers, at no cost to its engine; else one line why not.

        The probe is a request that the code must refuse in its own words.
        """
        try:
            _, body = self._ask(f"/v2/models/{model}/generate", {}, timeout_s=timeout_s)
            said = str(json.loads(body).get("error"))
        except (OSError, ValueError) as error:
            return f"model {model} does not answer: {error}"
        return None if said.startswith("invalid request: one of ") else f"model {model}: {said}"

    def unload(self, model: str) -> None:
        """Refuse new requests for the model; those under way go on, and then it is finalized."""
        with suppress(OSError):
            self._ask(f"/v2/repository/models/{model}/unload", {}, timeout_s=5)

    def requests_under_way(self) -> int | None:
        """Of all models together, waiting and running; None where the server does not say."""
        with suppress(OSError):
            with DIRECT.open(self._metrics, timeout=5) as answer:
                values = _UNDER_WAY.findall(answer.read().decode(errors="replace"))
            return int(sum(map(float, values)))
        return None

    def _ask(self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of an answer, whatever its status. Raises OSError where none comes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._http + path, data, {self.HEADER: self._key})
        try:
            try:
                answer = DIRECT.open(request, timeout=timeout_s)
            except urllib.error.HTTPError as refusal:
                answer = refusal
            with answer:
                return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"no complete answer: {error!r}") from None
