"""Clients of a real Triton server: plain HTTP as curl would send it, and gRPC streaming with tritonclient."""

from __future__ import annotations

import json
import queue
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
from tritonclient import grpc

from zipvl_serving.arrays import Array
from zipvl_serving.triton.server import TritonServer
from zipvl_serving.triton.tensors import INPUTS, OUTPUTS, chunk_from_tensors
from zipvl_serving.wire import Chunk

PATIENCE_S = 60.0


def generate(server: TritonServer, **body: Any) -> tuple[int, dict[str, Any]]:
    """Status and JSON of the first model's generate endpoint."""
    return post(server, f"/v2/models/{server.models[0]}/generate", body)


def post(server: TritonServer, path: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and JSON of an endpoint."""
    request = urllib.request.Request(f"http://{server.http_address}{path}", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.code, json.load(answer)


def events(server: TritonServer, **body: Any) -> Iterator[dict[str, Any]]:
    """What generate_stream sends, event by event."""
    url = f"http://{server.http_address}/v2/models/{server.models[0]}/generate_stream"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


def metrics(server: TritonServer) -> dict[str, float]:
    """Every sample of /metrics, by its name with its labels."""
    with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=PATIENCE_S) as answer:
        text = answer.read().decode()
    return {name: float(value) for name, value in re.findall(r"^([a-z]\S*(?:\{.*\})?) (\S+)$", text, re.MULTILINE)}


def wait_for(server: TritonServer, sample: str, value: float, within_s: float = PATIENCE_S) -> None:
    """Until a sample has a value."""
    deadline = time.monotonic() + within_s
    while (found := metrics(server).get(sample)) != value:
        assert time.monotonic() < deadline, f"{sample} is {found}, not {value}, after {within_s} s"
        time.sleep(0.02)


class Stream:
    """One gRPC stream to the server's first model."""

    def __init__(self, server: TritonServer) -> None:
        self._model = server.models[0]
        self._client = grpc.InferenceServerClient(server.grpc_address)
        self._events: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._events.put((result, error)))

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.cancel()
        self._client.close()

    def send(self, request_id: str = "", **values: Any) -> None:
        """A request; arrays are sent as they are, other values as the tensor's type wants them."""
        inputs = []
        for name, value in values.items():
            array = value if isinstance(value, np.ndarray) else INPUTS[name].array(value)
            tensor = grpc.InferInput(name, list(array.shape), _protocol_type(array))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        self._client.async_stream_infer(self._model, inputs, request_id=request_id)

    def receive(self) -> tuple[str, Chunk]:
        """The next response and the id of its request; an error is raised as InferenceServerException."""
        result, error = self._events.get(timeout=PATIENCE_S)
        if error is not None:
            raise error
        tensors = {name: result.as_numpy(name) for name in OUTPUTS}
        return result.get_response().id, chunk_from_tensors(tensors)

    def answer(self) -> list[Chunk]:
        """The chunks up to the last, of the only request under way."""
        chunks = [self.receive()[1]]
        while not chunks[-1].finish_reason:
            chunks.append(self.receive()[1])
        return chunks

    def cancel(self) -> None:
        """As a client that goes away."""
        self._client.stop_stream(cancel_requests=True)


def _protocol_type(array: Array) -> str:
    return str(grpc.np_to_triton_dtype(array.dtype))
