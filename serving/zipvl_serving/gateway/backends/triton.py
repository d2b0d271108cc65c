"""A Triton server that serves one of our bundles, over gRPC."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from zipvl_serving.errors import UnavailableError
from zipvl_serving.gateway.backends.base import Backend, ModelInfo
from zipvl_serving.triton.control import DIRECT
from zipvl_serving.triton.tensors import INPUTS, OUTPUTS, chunk_from_tensors, error_from_text, to_tensors
from zipvl_serving.wire import Chunk, WireRequest

_LOOK_S = 0.5
_IDLE_S = 30.0
"""Without a response for this long, a stream is only kept where a token comes out of the server otherwise."""
_PROBE_S = 30.0
_ASK_S = 2.0
_CHANNEL = (
    # A server that was started again is to be found at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(eq=False)
class _Stream:
    """A request under way."""

    call: Any
    heard_at: float = field(default_factory=time.monotonic)
    lost: str | None = None
    """Why it was given up."""

    def lose(self, why: str) -> None:
        """End it with UnavailableError."""
        self.lost = self.lost or why
        self.call.cancel()


class TritonBackend(Backend):
    """Streams over one gRPC channel.

    health: None, or in one line what whoever runs the server is repairing.
    """

    def __init__(
        self, model: ModelInfo, grpc_address: str, metrics_address: str, health: Callable[[], str | None]
    ) -> None:
        """The addresses are "host:port"."""
        super().__init__(model)
        self._address = grpc_address
        self._metrics_url = f"http://{metrics_address}/metrics"
        self._health = health
        self._client: InferenceServerClient | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._streams: set[_Stream] = set()

    async def _answer(self, request: WireRequest) -> AsyncGenerator[Chunk, None]:
        stream = _Stream(self._connected().stream_infer(_requests(self.model.name, request)))
        self._streams.add(stream)
        try:
            while True:
                result, error = await _read(stream)
                if error is not None:
                    raise error_from_text(error.message())
                chunk = chunk_from_tensors({name: result.as_numpy(name) for name in OUTPUTS})
                yield chunk
                if chunk.finish_reason:
                    return
        finally:
            self._streams.discard(stream)
            stream.call.cancel()

    async def ready(self, timeout_s: float = 5.0) -> str | None:
        return self._health() or await super().ready(timeout_s)

    async def live(self) -> bool:
        """A server that is being started again needs no other restart."""
        if self._health():
            return True
        try:
            return bool(await self._connected().is_server_live(client_timeout=_ASK_S))
        except InferenceServerException:
            return False

    async def metrics(self) -> str:
        return await asyncio.to_thread(self._fetch_metrics)

    async def close(self) -> None:
        self.stop_taking()
        for stream in list(self._streams):
            stream.lose("the server stopped before the answer was complete")
        watcher, self._watcher = self._watcher, None
        if watcher:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
        client, self._client = self._client, None
        if client:
            await client.close()

    def _connected(self) -> InferenceServerClient:
        """The client, which belongs to the event loop and is made in it."""
        if self._client is None:
            self._client = InferenceServerClient(self._address, channel_args=_CHANNEL)
            self._watcher = asyncio.create_task(self._watch())
        return self._client

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            silent_since = time.monotonic() - _IDLE_S
            idle = [stream for stream in self._streams if stream.heard_at < silent_since]
            if idle and (why_not := await self.ready(_PROBE_S)):
                for stream in idle:
                    stream.lose(f"the model has stopped answering: {why_not}")

    def _fetch_metrics(self) -> str:
        try:
            with DIRECT.open(self._metrics_url, timeout=_ASK_S) as response:
                return str(response.read().decode())
        except OSError as error:
            raise UnavailableError(f"Triton's metrics cannot be read: {error}") from None


async def _requests(model: str, request: WireRequest) -> AsyncIterator[dict[str, Any]]:
    # Megabytes of text or images would keep the event loop waiting.
    yield {"model_name": model, "inputs": await asyncio.to_thread(_inputs, request)}


def _inputs(request: WireRequest) -> list[InferInput]:
    inputs = []
    for name, array in to_tensors(request, stream=True).items():
        made = InferInput(name, list(array.shape), INPUTS[name].protocol_type)
        inputs.append(made.set_data_from_numpy(array))
    return inputs


async def _read(stream: _Stream) -> tuple[Any, Any]:
    """The next (result, error) of a stream; UnavailableError where it was lost or the server is gone."""
    try:
        answer: tuple[Any, Any] = await anext(stream.call)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if stream.lost and not (task and task.cancelling()):
            raise UnavailableError(stream.lost) from None
        raise
    except StopAsyncIteration:
        raise UnavailableError(stream.lost or "the server ended the request before its answer was complete") from None
    except grpc.RpcError as error:
        # The model's own errors are responses: it is the call that failed, in whichever of gRPC's many words.
        raise UnavailableError(stream.lost or f"the Triton server is not there: {error.details()}") from None
    stream.heard_at = time.monotonic()
    return answer
