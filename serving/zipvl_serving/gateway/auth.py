"""API keys: who may ask anything but whether the server is healthy."""

from __future__ import annotations

import hashlib
import hmac
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from zipvl_serving.errors import InputError
from zipvl_serving.gateway.errors import ApiError

_KEY = re.compile(r"[!-~]+")
_OPEN = "/health"


def read_keys(file: Path) -> tuple[str, ...]:
    """The keys in a file, one on a line; empty lines and lines that start with # are none.

    InputError, one line, for a file that cannot be read, holds no key, or one that no header could carry.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{file}: the API keys cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: the API keys cannot be read: not UTF-8 text") from None
    keys = {number: line for number, line in enumerate(lines, 1) if line and not line.startswith("#")}
    for number, key in keys.items():
        if not _KEY.fullmatch(key):
            raise InputError(f"{file}:{number}: an API key must be visible ASCII characters without spaces")
    if not keys:
        raise InputError(f"{file}: no API key in it; one per line was expected")
    return tuple(keys.values())


def is_world_readable(file: Path) -> bool:
    return bool(file.stat().st_mode & stat.S_IROTH)


class BearerAuth:
    """ASGI middleware: every path but /health and below needs `Authorization: Bearer KEY`, before a body is read."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not f"{scope['path']}/".startswith(f"{_OPEN}/"):
            refusal = self._refusal(Headers(scope=scope).get("authorization", ""))
            if refusal:
                await refusal.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, authorization: str) -> ApiError | None:
        scheme, _, key = authorization.partition(" ")
        headers = {"www-authenticate": "Bearer"}
        if scheme.lower() != "bearer" or not key.strip():
            message = "You didn't provide an API key: an Authorization header with 'Bearer KEY' is needed"
            return ApiError(401, message, headers=headers)
        # Digests are of one length, and all are compared: the time taken says nothing of any key.
        given = _digest(key.strip())
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if any(matches):
            return None
        return ApiError(401, "Incorrect API key provided", code="invalid_api_key", headers=headers)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
