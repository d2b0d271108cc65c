"""An OpenAI-compatible server over HTTP: chat completions as server-sent events."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import httpx

from zipvl_compile.bench.serving.clients.base import Client, Clock, choose_model
from zipvl_compile.bench.serving.exchange import Exchange
from zipvl_compile.bench.serving.prompts import Prompt
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError

_ASK_S = 10.0
_FIRST_SERVER_ERROR = 500
_STATUS: dict[int, type[ZipvlError]] = {429: OverloadedError, 503: UnavailableError, 504: DeadlineError}
_CODES: dict[str, type[ZipvlError]] = {
    "rate_limit_exceeded": OverloadedError,
    "service_unavailable": UnavailableError,
    "deadline_exceeded": DeadlineError,
}
"""What an error within a stream is, where there is no status left to say so."""


class OpenAIClient(Client):
    """Streams over as many connections as requests are in flight; they are kept between requests.

    A stream holds text, not tokens: how many tokens a piece of it has is not known, only how many the answer has.
    """

    def __init__(self, url: str, api_key: str | None = None, clock: Clock = time.perf_counter) -> None:
        """url: of the server, with or without /v1."""
        super().__init__(url, clock)
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            headers={"authorization": f"Bearer {api_key}"} if api_key else None,
            trust_env=False,
        )

    async def connect(self, model: str | None) -> None:
        ready = await self._get("/health/ready")
        if ready.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            raise UnavailableError(f"{self.where}: the server is not ready: {ready.text[:200]}")
        listed = await self._get("/v1/models")
        if listed.status_code != httpx.codes.OK:
            raise InputError(f"{self.where}: /v1/models: {_message(listed)}; expected an OpenAI-compatible server")
        try:
            served = [str(entry["id"]) for entry in listed.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.where}: /v1/models lists none; expected an OpenAI-compatible server") from None
        self.model = choose_model(served, model, self.where)

    async def check(self) -> None:
        await self._get("/health/live")

    async def close(self) -> None:
        await self._http.aclose()

    async def _get(self, path: str) -> httpx.Response:
        try:
            return await self._http.get(path, timeout=_ASK_S)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self.where}: no server answers: {_why(error)}") from None

    def _encode(self, prompt: Prompt, method: dict[str, Any]) -> bytes:
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image).decode()}}
            for image in prompt.images
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.text}]}],
            "max_tokens": prompt.new_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "zipvl": method,
        }
        return json.dumps(body).encode()

    async def _stream(self, payload: bytes, exchange: Exchange) -> None:
        headers = {"content-type": "application/json"}
        try:
            async with self._http.stream("POST", "/v1/chat/completions", content=payload, headers=headers) as response:
                if response.status_code != httpx.codes.OK:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:") and (data := line.removeprefix("data:").strip()) != "[DONE]":
                        self._take(_read(data), exchange)
        except httpx.HTTPError as error:
            raise UnavailableError(f"the connection was lost: {_why(error)}") from None
        if exchange.finished_at is None:
            raise UnavailableError("the stream ended before its answer was complete")
        exchange.tokens = exchange.tokens or len(exchange.arrivals)

    def _take(self, event: dict[str, Any], exchange: Exchange) -> None:
        """One event of the stream."""
        now = self.clock()
        if error := event.get("error"):
            told = error if isinstance(error, dict) else {"message": error}
            raise _CODES.get(str(told.get("code")), ZipvlError)(str(told.get("message"))[:300])
        for choice in event.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                exchange.arrive(now)
            if choice.get("finish_reason"):
                exchange.finished_at = now
        if usage := event.get("usage"):
            exchange.tokens, exchange.prompt_tokens = usage["completion_tokens"], usage["prompt_tokens"]
        if statistics := event.get("zipvl"):
            exchange.statistics = statistics


def _read(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise ZipvlError(f"an event of the stream is no JSON object: {data[:60]!r}")
    return event


def _refusal(response: httpx.Response) -> ZipvlError:
    """The error that a status stands for."""
    status = response.status_code
    kind = _STATUS.get(status, InputError if status < _FIRST_SERVER_ERROR else ZipvlError)
    return kind(_message(response))


def _message(response: httpx.Response) -> str:
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.text
    return f"HTTP {response.status_code}: {' '.join(said.split())[:300]}"


def _why(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
