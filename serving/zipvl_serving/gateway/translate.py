"""From OpenAI's request to the form in which requests travel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from zipvl_serving.errors import InputError
from zipvl_serving.gateway.backends.base import ModelInfo
from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.json_body import read_object
from zipvl_serving.gateway.refusals import from_validation, refuse_unsupported, unsupported_value
from zipvl_serving.gateway.schema import ChatMessage, ChatRequest, ImageContent
from zipvl_serving.vision.image_data import from_data_url
from zipvl_serving.wire import ImagePart, Message, Parameters, Part, TextPart, WireRequest


def parse(body: bytes, model: ModelInfo) -> tuple[ChatRequest, WireRequest]:
    """Read and check a body. Work for a thread where it holds images. Raises ApiError."""
    request = validate(read_object(body))
    if request.model != model.name:
        raise unknown_model(request.model)
    return request, to_wire(request, model)


def validate(body: dict[str, Any]) -> ChatRequest:
    """Raises ApiError, which names the first wrong field."""
    refuse_unsupported(body)
    try:
        return ChatRequest.model_validate(body)
    except ValidationError as error:
        raise from_validation(error) from None


def unknown_model(name: str) -> ApiError:
    message = f"The model '{name[:100]}' does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def to_wire(request: ChatRequest, model: ModelInfo) -> WireRequest:
    """Raises ApiError for what no single field shows."""
    if request.n != 1:
        raise unsupported_value("n", request.n, "the default (1) value")
    if request.stream_options and not request.stream:
        raise ApiError(
            400,
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.",
            param="stream_options",
            code="invalid_value",
        )
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(
            400,
            "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            param="top_logprobs",
            code="invalid_value",
        )
    images: list[bytes] = []
    messages = tuple(_message(message, f"messages[{at}]", images) for at, message in enumerate(request.messages))
    return WireRequest(messages=messages, images=tuple(images), parameters=_parameters(request, model))


def _parameters(request: ChatRequest, model: ModelInfo) -> Parameters:
    ours = request.zipvl.model_dump() if request.zipvl else {}
    return Parameters(
        max_tokens=_max_tokens(request, model),
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=max(request.top_k, 0),
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias={_token_id(key): bias for key, bias in (request.logit_bias or {}).items()},
        # OpenAI's seeds may be negative, ours may not.
        seed=None if request.seed is None else request.seed % 2**63,
        stop=request.stop or [],
        ignore_eos=request.ignore_eos,
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        priority=request.priority,
        **ours,
    )


def _max_tokens(request: ChatRequest, model: ModelInfo) -> int | None:
    old, new = request.max_tokens, request.max_completion_tokens
    if old is not None and new is not None and old != new:
        message = "Setting 'max_tokens' and 'max_completion_tokens' to different values is not supported."
        raise ApiError(400, message, param="max_tokens", code="invalid_parameter_combination")
    name, most = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    if most is not None and most > model.max_new_tokens:
        raise ApiError(
            400,
            f"{name} is too large: {most}. This model supports at most {model.max_new_tokens} completion tokens.",
            param=name,
            code="invalid_value",
        )
    return most


def _token_id(key: str) -> int:
    if key.isascii() and key.isdigit() and len(key) < 10:
        return int(key)
    message = f"Invalid 'logit_bias': {key[:60]!r} is no token id."
    raise ApiError(400, message, param="logit_bias", code="invalid_value")


def _message(message: ChatMessage, place: str, images: list[bytes]) -> Message:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return Message(role=role, content=message.content)
    parts: Sequence[Part] = [
        ImagePart() if isinstance(part, ImageContent) else TextPart(text=part.text) for part in message.content
    ]
    for at, part in enumerate(message.content):
        if isinstance(part, ImageContent):
            images.append(_image(part, message.role, f"{place}.content[{at}]"))
    return Message(role=role, content=list(parts))


def _image(part: ImageContent, role: str, place: str) -> bytes:
    if role != "user":
        message = f"Invalid '{place}': images are only allowed in messages with role 'user', but this one is '{role}'."
        raise ApiError(400, message, param=place, code="invalid_value")
    where = f"{place}.image_url.url"
    try:
        return from_data_url(part.image_url.url, where)
    except InputError as error:
        raise ApiError(400, str(error), param=where, code="invalid_image_url") from None
