"""What is wrong with a request, in OpenAI's words: `param` is the path of the field, `code` the kind of mistake."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.schema import ZipvlOptions

_NOTHING: tuple[Any, ...] = (None, False, [], {}, "")
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tools": _NOTHING,
    "tool_choice": (None, "none", "auto"),
    "functions": _NOTHING,
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": _NOTHING,
    "moderation": _NOTHING,
    "web_search_options": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    # of vLLM
    "allowed_token_ids": _NOTHING,
    "bad_words": _NOTHING,
    "best_of": (None, 1),
    "chat_template": _NOTHING,
    "chat_template_kwargs": _NOTHING,
    "continue_final_message": _NOTHING,
    "echo": _NOTHING,
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "length_penalty": (None, 1),
    "min_tokens": (None, 0),
    "mm_processor_kwargs": _NOTHING,
    "prompt_logprobs": (None,),
    "raw": _NOTHING,
    "stream_interval": (None,),
    "stop_token_ids": _NOTHING,
    "structured_outputs": _NOTHING,
    "use_beam_search": _NOTHING,
}
"""Fields that would change the answer if this server knew them, and the values with which they change nothing."""
_UNSUPPORTED_IN_MESSAGE = {"tool_calls": _NOTHING, "function_call": _NOTHING, "audio": _NOTHING}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Raises ApiError for a known field that asks for what this server cannot do: ignoring it would be an answer to
    another question."""
    _refuse(body, _UNSUPPORTED, "")
    for name in ZipvlOptions.model_fields:
        if body.get(name) is not None:
            message = f"Unknown parameter: '{name}'. It belongs in 'zipvl': {{\"zipvl\": {{\"{name}\": ...}}}}."
            raise ApiError(400, message, param=name, code="unknown_parameter")
    messages = body.get("messages")
    for at, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, dict):
            _refuse(message, _UNSUPPORTED_IN_MESSAGE, f"messages[{at}].")


def _refuse(given: Mapping[str, Any], unsupported: Mapping[str, tuple[Any, ...]], place: str) -> None:
    for name, harmless in unsupported.items():
        if name in given and given[name] not in harmless:
            path = place + name
            message = f"Unsupported parameter: '{path}' is not supported with this model."
            raise ApiError(400, message, param=path, code="unsupported_parameter")


def unsupported_value(param: str, value: object, only: str) -> ApiError:
    what = f"Unsupported value: '{param}' does not support the value {value} with this model."
    return ApiError(400, f"{what} Only {only} is supported.", param=param, code="unsupported_value")


def from_validation(error: ValidationError) -> ApiError:
    """The first mistake that pydantic found."""
    first = error.errors(include_url=False)[0]
    path = _path(first)
    message, code = _describe(first, path)
    return ApiError(400, message, param=path or None, code=code)


_EXPECTED = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a decimal number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}
_BOUNDS = {
    "greater_than": ("below min", ">", "gt"),
    "greater_than_equal": ("below min", ">=", "ge"),
    "less_than": ("above max", "<", "lt"),
    "less_than_equal": ("above max", "<=", "le"),
}


def _describe(detail: ErrorDetails, path: str) -> tuple[str, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    expected = context.get("expected") if kind == "expected" else _EXPECTED.get(kind)
    message, code = f"Invalid '{path}': {detail['msg']}.", "invalid_value"
    if kind in ("missing", "union_tag_not_found"):
        message, code = f"Missing required parameter: '{path}'.", "missing_required_parameter"
    elif expected:
        message = f"Invalid type for '{path}': expected {expected}, but got {_name(given)} instead."
        code = "invalid_type"
    elif kind in ("literal_error", "union_tag_invalid"):
        valid = context.get("expected") or context["expected_tags"]
        message = f"Invalid value: {_quote(context.get('tag', given))}. Supported values are: {valid}."
    elif kind in _BOUNDS:
        side, sign, bound = _BOUNDS[kind]
        number = "integer" if isinstance(context[bound], int) else "decimal"
        code = f"{number}_{side.replace(' ', '_')}_value"
        message = f"Invalid '{path}': {number} {side}imum value. Expected a value {sign} {context[bound]:g}"
        message += f", but got {str(given)[:40]} instead."
    elif kind == "too_short":
        message, code = f"Invalid '{path}': empty array. Expected at least one element.", "empty_array"
    elif kind == "extra_forbidden":
        message, code = f"Unknown parameter: '{path}'.", "unknown_parameter"
    return message, code


def _path(detail: ErrorDetails) -> str:
    """messages[0].content[1].image_url.url; pydantic's own steps into a union are left out."""
    parts: list[str | int] = []
    for at, part in enumerate(detail["loc"]):
        of_union = at and isinstance(detail["loc"][at - 1], int) and part in ("text", "image_url")
        if not of_union and not (isinstance(part, str) and re.fullmatch(r"<\w+>", part)):
            parts.append(part)
    if detail["type"].startswith("union_tag"):
        parts.append("type")
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).removeprefix(".")


def _quote(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    return f"'{text[:60]}'"


def _name(value: object) -> str:
    names = {bool: "a boolean", int: "an integer", float: "a decimal number", str: "a string", list: "an array"}
    return "null" if value is None else names.get(type(value), "an object")
