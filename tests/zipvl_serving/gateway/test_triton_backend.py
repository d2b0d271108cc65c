"""The backend over Triton's gRPC protocol, against a server that a test scripts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from helpers.gateway import MODEL, answer
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.gateway.backends.triton import TritonBackend
from zipvl_serving.triton.tensors import chunk_to_tensors, error_text
from zipvl_serving.wire import Chunk, Parameters, WireRequest

QUESTION = WireRequest(text="which ?", images=(b"\x89PNG\0raw",), parameters=Parameters(max_tokens=3))


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers each stream with `script`: chunks, errors as the model sends them, or None to say nothing more."""

    def __init__(self, *script: Chunk | ZipvlError | None) -> None:
        self.script = script
        self.requests: list[Any] = []
        self.cancelled = asyncio.Event()
        self.silent = asyncio.Event()

    async def ServerLive(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for request in requests:
            self.requests.append(request)
        try:
            for step in self.script:
                if isinstance(step, Chunk):
                    yield response(step)
                elif step is not None:
                    yield service_pb2.ModelStreamInferResponse(error_message=error_text(step))
                else:
                    self.silent.set()
                    await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def response(chunk: Chunk) -> Any:
    inner = service_pb2.ModelInferResponse(model_name=MODEL.name)
    for name, array in chunk_to_tensors(chunk).items():
        text = array.dtype == object
        inner.outputs.add(name=name, datatype="BYTES" if text else "INT32", shape=array.shape)
        inner.raw_output_contents.append(serialize_byte_tensor(array).item() if text else array.tobytes())
    return service_pb2.ModelStreamInferResponse(infer_response=inner)


def run(
    use: Callable[[TritonBackend, FakeTriton, Any], Awaitable[None]], *script: Any, faults: list[str] | None = None
) -> None:
    """Have `use` talk to a server on a free port, in which `faults` are being repaired."""

    async def main() -> None:
        triton, server = FakeTriton(*script), grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        backend = TritonBackend(MODEL, f"127.0.0.1:{port}", "127.0.0.1:1", lambda: faults[0] if faults else None)
        try:
            await use(backend, triton, server)
        finally:
            await backend.close()
            await server.stop(None)

    asyncio.run(asyncio.wait_for(main(), 30))


async def collect(backend: TritonBackend) -> list[Chunk]:
    return [chunk async for chunk in backend.generate(QUESTION)]


def test_chunks_arrive_as_they_were_sent() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        assert await collect(backend) == answer("red", "is", "4")
        request = triton.requests[0]
        assert request.model_name == "fake"
        sent = dict(zip((tensor.name for tensor in request.inputs), request.raw_input_contents, strict=True))
        assert sent["stream"] == b"\x01" and sent["image"].endswith(b"\x89PNG\0raw")
        assert await backend.live()

    run(use, *answer("red", "is", "4"))


@pytest.mark.parametrize("kind", [InputError, OverloadedError, DeadlineError, UnavailableError, ZipvlError])
def test_errors_keep_their_kind(kind: type[ZipvlError]) -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        with pytest.raises(ZipvlError, match="so it is") as caught:
            await collect(backend)
        assert type(caught.value) is kind

    run(use, kind("so it is"))


def test_closing_the_iterator_cancels_the_request() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        chunks = backend.generate(QUESTION)
        assert (await anext(chunks)).text == "red"
        await triton.silent.wait()
        await chunks.aclose()
        await triton.cancelled.wait()

    run(use, answer("red", "is")[0], None)


def test_cancelling_the_task_cancels_the_request() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        task = asyncio.create_task(collect(backend))
        await triton.silent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await triton.cancelled.wait()

    run(use, None)


def test_a_server_under_repair_is_live_and_not_ready() -> None:
    faults = ["the Python process died"]

    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        assert await backend.ready() == "the Python process died" and await backend.live()
        assert not triton.requests
        faults.clear()
        assert await backend.ready() is None

    run(use, *answer("red"), faults=faults)


def test_a_server_that_comes_back_is_found() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        assert await collect(backend) == answer("red")
        await server.stop(None)
        with pytest.raises(UnavailableError):
            await collect(backend)
        again = grpc.aio.server()
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, again)
        again.add_insecure_port(backend._address)
        await again.start()
        async with asyncio.timeout(5):
            while await backend.live() is False:
                await asyncio.sleep(0.01)
        assert await collect(backend) == answer("red")
        await again.stop(None)

    run(use, *answer("red"))


def test_an_idle_stream_is_kept_while_the_model_answers_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipvl_serving.gateway.backends.triton._IDLE_S", 0.01)
    monkeypatch.setattr("zipvl_serving.gateway.backends.triton._LOOK_S", 0.01)
    monkeypatch.setattr("zipvl_serving.gateway.backends.triton._PROBE_S", 0.2)
    asked: list[float] = []

    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        ready = backend.ready

        async def noted(timeout_s: float = 5.0) -> str | None:
            asked.append(timeout_s)
            return await ready(timeout_s)

        monkeypatch.setattr(backend, "ready", noted)
        task = asyncio.create_task(collect(backend))
        await triton.silent.wait()
        triton.script = tuple(answer("red"))
        while len(asked) < 3:
            await asyncio.sleep(0.01)
        assert not task.done()
        triton.script = (None,)
        with pytest.raises(UnavailableError, match=r"stopped answering: no token within 0\.2 s"):
            await task

    run(use, None)


def test_a_server_that_dies_ends_its_streams() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        task = asyncio.create_task(collect(backend))
        await triton.silent.wait()
        await server.stop(None)
        with pytest.raises(UnavailableError, match="the Triton server is not there"):
            await task
        with pytest.raises(UnavailableError):
            await collect(backend)
        assert not await backend.live()

    run(use, None)


def test_closing_the_backend_ends_its_streams() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        task = asyncio.create_task(collect(backend))
        await triton.silent.wait()
        await backend.close()
        with pytest.raises(UnavailableError, match="the server stopped"):
            await task
        with pytest.raises(UnavailableError):
            await collect(backend)

    run(use, None)


def test_a_stream_without_an_end_is_an_error() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        with pytest.raises(UnavailableError, match="before its answer was complete"):
            await collect(backend)

    run(use, answer("red", "is")[0])


def test_metrics_that_cannot_be_fetched_are_an_error() -> None:
    async def use(backend: TritonBackend, triton: FakeTriton, server: Any) -> None:
        with pytest.raises(UnavailableError, match="metrics cannot be read"):
            await backend.metrics()

    run(use)
