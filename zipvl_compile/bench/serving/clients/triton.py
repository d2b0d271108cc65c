"""A Triton server that serves one of our bundles, over gRPC."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from zipvl_compile.bench.serving.clients.base import Client, Clock, choose_model
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import Prompt
from zipvl_serving.errors import InputError, UnavailableError
from zipvl_serving.gateway.backends.base import ModelInfo
from zipvl_serving.gateway.backends.triton import TritonBackend
from zipvl_serving.wire import Parameters, WireRequest

_ASK_S = 10.0


class TritonClient(Client):
    """Streams over one channel, with the code by which the gateway speaks to Triton.

    Every response names its token ids, so gaps are exact. Making tensors of the request is part of its TTFT.
    """

    def __init__(self, address: str, clock: Clock = time.perf_counter) -> None:
        """address: "host:port" of the server's gRPC endpoint."""
        super().__init__(f"grpc://{address}", clock)
        self._address = address
        self._control: InferenceServerClient | None = None
        self._streams: TritonBackend | None = None

    async def connect(self, model: str | None) -> None:
        # A channel belongs to the event loop in which it is made.
        control = self._control = InferenceServerClient(self._address)
        try:
            await self.check()
            # The repository's index would say it too, but that is closed to clients: it can unload models.
            statistics = await control.get_inference_statistics(client_timeout=_ASK_S)
            served = list(dict.fromkeys(entry.name for entry in statistics.model_stats))
            if not served:
                raise UnavailableError(f"{self.where}: no model is loaded")
            self.model = choose_model(served, model, self.where)
            known = await control.get_model_metadata(self.model, client_timeout=_ASK_S)
        except InferenceServerException as error:
            raise UnavailableError(f"{self.where}: {error.message()}") from None
        if not {"text_input", "image"} <= {tensor.name for tensor in known.inputs}:
            raise InputError(f"{self.where}: model {self.model!r} takes no text_input and image; expected one of ours")
        # Its metrics and limits are for a gateway; a client asks for neither.
        self._streams = TritonBackend(ModelInfo(self.model, 0, 0, 0), self._address, "", lambda: None)

    async def check(self) -> None:
        assert self._control, "connect comes first"
        try:
            alive = await self._control.is_server_live(client_timeout=_ASK_S)
        except InferenceServerException as error:
            raise UnavailableError(f"{self.where}: no server answers: {error.message()}") from None
        if not alive:
            raise UnavailableError(f"{self.where}: the server is not live")

    async def close(self) -> None:
        if self._streams:
            await self._streams.close()
        if self._control:
            await self._control.close()

    def _encode(self, prompt: Prompt, method: dict[str, Any]) -> WireRequest:
        parameters = Parameters(max_tokens=prompt.new_tokens, ignore_eos=True, **method)
        return WireRequest(text=prompt.text, images=prompt.images, parameters=parameters)

    async def _stream(self, payload: WireRequest, exchange: Exchange) -> None:
        assert self._streams, "connect comes first"
        async with aclosing(self._streams.generate(payload)) as chunks:
            async for chunk in chunks:
                now = self.clock()
                if chunk.token_ids:
                    exchange.arrive(now, len(chunk.token_ids))
                if chunk.statistics:
                    exchange.finished_at = now
                    exchange.tokens = chunk.statistics.completion_tokens
                    exchange.prompt_tokens = chunk.statistics.prompt_tokens
                    exchange.statistics = asdict(chunk.statistics)
