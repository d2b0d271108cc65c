"""What a chat request may hold, and OpenAI's words for what it may not."""

from __future__ import annotations

from typing import Any

import pytest

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.schema import ChatRequest
from zipvl_serving.gateway.translate import validate

MESSAGES = [{"role": "user", "content": "hello"}]


def read(**fields: Any) -> ChatRequest:
    return validate({"model": "m", "messages": MESSAGES, **fields})


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    assert caught.value.status == 400 and caught.value.kind == "invalid_request_error"
    return caught.value


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("fields", "message", "param", "code"),
    [
        ({"model": None}, "Invalid type for 'model': expected a string, but got null instead.",
         "model", "invalid_type"),
        ({"messages": "x"}, "Invalid type for 'messages': expected an array, but got a string instead.",
         "messages", "invalid_type"),
        ({"messages": []}, "Invalid 'messages': empty array. Expected at least one element.",
         "messages", "empty_array"),
        ({"messages": ["x"]}, "Invalid type for 'messages[0]': expected an object, but got a string instead.",
         "messages[0]", "invalid_type"),
        ({"messages": [{"role": "user"}]}, "Missing required parameter: 'messages[0].content'.",
         "messages[0].content", "missing_required_parameter"),
        ({"messages": [{"role": "user", "content": 5}]}, "Invalid type for 'messages[0].content': expected one of a "
         "string or an array of objects, but got an integer instead.", "messages[0].content", "invalid_type"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "Invalid value: 'tool'. Supported values are: 'system', "
         "'developer', 'user' or 'assistant'.", "messages[0].role", "invalid_value"),
        ({"messages": user()}, "Invalid 'messages[0].content': empty array. Expected at least one element.",
         "messages[0].content", "empty_array"),
        ({"messages": user({})}, "Missing required parameter: 'messages[0].content[0].type'.",
         "messages[0].content[0].type", "missing_required_parameter"),
        ({"messages": user({"type": "input_audio"})}, "Invalid value: 'input_audio'. Supported values are: 'text', "
         "'image_url'.", "messages[0].content[0].type", "invalid_value"),
        ({"messages": user({"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": 5}})},
         "Invalid type for 'messages[0].content[1].image_url.url': expected a string, but got an integer instead.",
         "messages[0].content[1].image_url.url", "invalid_type"),
        ({"messages": user({"type": "image_url", "image_url": "data:"})}, "Invalid type for "
         "'messages[0].content[0].image_url': expected an object, but got a string instead.",
         "messages[0].content[0].image_url", "invalid_type"),
        ({"temperature": 3}, "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 "
         "instead.", "temperature", "decimal_above_max_value"),
        ({"temperature": True}, "Invalid type for 'temperature': expected a decimal number, but got a boolean instead.",
         "temperature", "invalid_type"),
        ({"temperature": 10**400}, "Invalid type for 'temperature': expected a decimal number, but got an integer "
         "instead.", "temperature", "invalid_type"),
        ({"max_tokens": 0}, "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 "
         "instead.", "max_tokens", "integer_below_min_value"),
        ({"max_tokens": 8.0}, "Invalid type for 'max_tokens': expected an integer, but got a decimal number instead.",
         "max_tokens", "invalid_type"),
        ({"stop": ["a", 1]}, "Invalid type for 'stop[1]': expected a string, but got an integer instead.",
         "stop[1]", "invalid_type"),
        ({"logit_bias": {"5": "x"}}, "Invalid type for 'logit_bias.5': expected a decimal number, but got a string "
         "instead.", "logit_bias.5", "invalid_type"),
        ({"stream": "yes"}, "Invalid type for 'stream': expected a boolean, but got a string instead.",
         "stream", "invalid_type"),
        ({"zipvl": {"tua": 0.9}}, "Unknown parameter: 'zipvl.tua'.", "zipvl.tua", "unknown_parameter"),
        ({"zipvl": {"tau": 0.0}}, "Invalid 'zipvl.tau': decimal below minimum value. Expected a value > 0, but got 0.0 "
         "instead.", "zipvl.tau", "decimal_below_min_value"),
        ({"zipvl": {"timeout_s": float("inf")}}, "Invalid 'zipvl.timeout_s': Input should be a finite number.",
         "zipvl.timeout_s", "invalid_value"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_refused_in_openais_words(fields: Any, message: str, param: str, code: str) -> None:
    error = refusal(**fields)
    assert (error.message, error.param, error.code) == (message, param, code)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        validate({"messages": MESSAGES})
    assert caught.value.message == "Missing required parameter: 'model'."


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function"}]}, {"tool_choice": "required"}, {"functions": [{}]},
        {"response_format": {"type": "json_object"}}, {"modalities": ["text", "audio"]}, {"audio": {"voice": "x"}},
        {"reasoning_effort": "high"}, {"guided_json": {}, "min_tokens": 5}, {"stop_token_ids": [3]}, {"echo": True},
        {"tools": 10**400},
    ],
)  # fmt: skip
def test_what_would_change_the_answer_is_refused_by_name(fields: dict[str, Any]) -> None:
    error = refusal(**fields)
    name = list(fields)[-1]
    assert (error.param, error.code) == (name, "unsupported_parameter") and f"'{name}'" in error.message


def test_calls_of_tools_in_the_history_are_refused() -> None:
    turns = [*MESSAGES, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]
    assert refusal(messages=turns).param == "messages[1].tool_calls"


def test_what_changes_nothing_is_tolerated() -> None:
    read(
        user="u", metadata={"a": "b"}, store=True, service_tier="auto", parallel_tool_calls=True, tools=[],
        tool_choice="auto", response_format={"type": "text"}, modalities=["text"], unheard_of=[{}],
        messages=[{"role": "user", "content": "x", "name": "n", "tool_calls": None}],
    )  # fmt: skip


def test_null_is_absent() -> None:
    names = set(ChatRequest.model_fields) - {"model", "messages"}
    assert read(**dict.fromkeys(names)) == read()


def test_the_default_is_greedy() -> None:
    assert read().temperature == 0 and read(temperature=1).temperature == 1
