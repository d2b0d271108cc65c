"""The model behind Triton's Python backend: requests to the engine, chunks to the sender.

Triton's `pb_utils` module exists only inside its stub, so it is handed in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import UnavailableError, ZipvlError, internal
from zipvl_serving.triton.metric_families import MetricFamilies
from zipvl_serving.triton.repository import BUNDLE_FOLDER, SETTING_PREFIX
from zipvl_serving.triton.sender import Reply, Sender
from zipvl_serving.triton.tensors import from_tensors
from zipvl_serving.wire import WireRequest

_log = logging.getLogger(__name__)


class ServedModel:
    """One loaded bundle; its methods are those of a TritonPythonModel."""

    def __init__(self, pb_utils: Any, args: Mapping[str, str]) -> None:
        """Load. `args` are Triton's; ServingConfig settings come from the model's parameters `zipvl.<name>`.

        Raises pb_utils.TritonModelException with one line where the bundle or a setting is wrong.
        """
        folder = Path(args["model_repository"]) / args["model_version"] / BUNDLE_FOLDER
        try:
            bundle = Bundle.open(folder)
            self.engine = Engine(bundle, bundle.manifest.serving.override(_settings(json.loads(args["model_config"]))))
        except ZipvlError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        families = MetricFamilies(pb_utils, args["model_name"])
        self._sender = Sender(pb_utils, lambda: families.publish(self.engine.metrics.take()))

    def execute(self, requests: Iterable[Any]) -> None:
        """Hand the requests to the engine and return at once; whatever is wrong with one is its response."""
        for request in requests:
            reply = Reply(request.get_response_sender())
            self._sender.open(reply)
            try:
                wire, reply.stream = self._read(request)
                reply.ticket = self.engine.submit(wire, partial(self._sender.put, reply))
            except ZipvlError as error:
                self._sender.put(reply, error)
            except Exception as error:
                _log.exception("a request could not be read")
                self._sender.put(reply, internal(error))

    def finalize(self) -> None:
        """Let running requests end, at most for as long as the settings say, and close."""
        self.engine.drain(self.engine.config.drain_s)
        self.engine.close()
        self._sender.close()

    def _read(self, request: Any) -> tuple[WireRequest, bool]:
        if not self.engine.alive:
            raise UnavailableError("the engine has stopped; it must be started again")
        named = json.loads(request.parameters() or "{}")
        if request.timeout():
            named.setdefault("timeout_s", request.timeout() / 1e6)
        return from_tensors({tensor.name(): tensor.as_numpy() for tensor in request.inputs()}, named)


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The ServingConfig settings among the parameters of a model's configuration."""
    return {
        name.removeprefix(SETTING_PREFIX): value["string_value"]
        for name, value in config.get("parameters", {}).items()
        if name.startswith(SETTING_PREFIX)
    }
