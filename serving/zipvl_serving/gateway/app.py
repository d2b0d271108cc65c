"""The routes."""

from __future__ import annotations

import asyncio
import importlib.metadata
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from zipvl_serving.gateway import errors
from zipvl_serving.gateway.auth import BearerAuth
from zipvl_serving.gateway.backends.base import Backend
from zipvl_serving.gateway.disconnect import until_disconnect
from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.limits import MIB, read_body
from zipvl_serving.gateway.responses import Completion, describe_model
from zipvl_serving.gateway.sse import EventStream
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.gateway.translate import parse, unknown_model
from zipvl_serving.wire import Chunk, merge

DEFAULT_MAX_BODY_MIB = 64
_QUICK_BYTES = 64 << 10
"""Bodies up to this are parsed at once; a larger one would keep the event loop waiting."""


def create_app(
    backend: Backend,
    texts: TokenTexts,
    *,
    api_keys: Sequence[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_MIB * MIB,
) -> ASGIApp:
    """The gateway over one backend.

    texts: of the served model's tokens. api_keys: with any, all paths but /health need one of them.
    """
    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(title="zipvl", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    errors.install(app)
    app.include_router(_openai(backend, texts, max_body_bytes))
    app.include_router(_operations(backend))
    return BearerAuth(app, api_keys) if api_keys else app


def _openai(backend: Backend, texts: TokenTexts, max_body_bytes: int) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.post("/chat/completions")
    async def complete(request: Request) -> Response:
        _require_json(request)
        body = await read_body(request, max_body_bytes)
        if len(body) <= _QUICK_BYTES:
            asked, wire = parse(body, backend.model)
        else:
            asked, wire = await asyncio.to_thread(parse, body, backend.model)
        include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        completion = Completion(backend.model.name, texts, include_usage=include_usage)
        chunks = backend.generate(wire)
        if not asked.stream:
            return JSONResponse(completion.whole(await until_disconnect(request.receive, _collect(chunks))))
        # Until the first token there is a status to choose: what fails so far is no stream.
        first = await until_disconnect(request.receive, _first(chunks))
        return EventStream(completion, first, chunks)

    @router.get("/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [describe_model(backend.model)]})

    @router.get("/models/{name:path}")
    async def show_model(name: str) -> Response:
        if name != backend.model.name:
            raise unknown_model(name)
        return JSONResponse(describe_model(backend.model))

    return router


def _operations(backend: Backend) -> APIRouter:
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> Response:
        if await backend.live():
            return PlainTextResponse("live")
        return PlainTextResponse("the engine has stopped", 503)

    @router.get("/health")  # where clients of vLLM look
    @router.get("/health/ready")
    async def ready() -> Response:
        why_not = await backend.ready()
        return PlainTextResponse("ready") if why_not is None else PlainTextResponse(why_not, 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")

    @router.get("/version")
    async def version() -> Response:
        return JSONResponse({"version": importlib.metadata.version("zipvl-compile")})

    return router


def _require_json(request: Request) -> None:
    """A page in a browser may send anything else here without asking (CORS)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"Unsupported content type: {kind[:60] or 'none'!r}. Only 'application/json' is supported."
        raise ApiError(415, message, code="unsupported_media_type")


async def _collect(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    async with aclosing(chunks):
        return merge([chunk async for chunk in chunks])


async def _first(chunks: AsyncGenerator[Chunk, None]) -> Chunk:
    return await anext(chunks)
