"""Every refusal and failure in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError, one_line

RETRY_AFTER_S = 1
_CLIENT_GONE = 499
"""What web servers log for a client that left; nobody reads the response."""


class ApiError(Exception):
    """An answer that is no completion.

    kind: OpenAI's `type`. param: the path of the wrong field. code: OpenAI's machine-readable word, where it has one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        return JSONResponse(self.body, self.status, headers=self.headers)


def from_failure(error: Exception) -> ApiError:
    """What a client is told of an error of the runtime; a bug is not described to it."""
    if isinstance(error, ApiError):
        return error
    if not isinstance(error, ZipvlError):
        return ApiError(500, "the server had an error while processing the request", kind="server_error")
    status, kind, code, headers = next(_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS)
    return ApiError(status, one_line(error), kind=kind, code=code, headers=headers)


_ANSWERS: dict[type, tuple[int, str, str | None, dict[str, str]]] = {
    InputError: (400, "invalid_request_error", None, {}),
    OverloadedError: (429, "requests", "rate_limit_exceeded", {"retry-after": str(RETRY_AFTER_S)}),
    # Asking again with the same limit is what made the queue long: OpenAI's clients heed this header.
    DeadlineError: (504, "server_error", "deadline_exceeded", {"x-should-retry": "false"}),
    UnavailableError: (503, "server_error", "service_unavailable", {}),
    ZipvlError: (500, "server_error", None, {}),
}
"""Status, type, code and headers of each kind of error."""


def install(app: FastAPI) -> None:
    """Have `app` answer every exception so."""
    app.add_exception_handler(ApiError, _on_failure)
    app.add_exception_handler(ZipvlError, _on_failure)
    app.add_exception_handler(Exception, _on_failure)
    app.add_exception_handler(HTTPException, _on_routing)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


async def _on_failure(request: Request, error: Exception) -> Response:
    return from_failure(error).response()


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_GONE)


async def _on_routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:200]
    if error.status_code == HTTPStatus.NOT_FOUND:
        refusal = ApiError(404, f"Invalid URL ({method} {path})", code="unknown_url")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        message = f"Not allowed to {method} on {path}"
        refusal = ApiError(405, message, code="method_not_supported", headers=error.headers)
    else:
        refusal = ApiError(error.status_code, str(error.detail), headers=error.headers)
    return refusal.response()
