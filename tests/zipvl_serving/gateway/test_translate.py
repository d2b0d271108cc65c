"""From OpenAI's request to the wire."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from helpers.gateway import MODEL

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.translate import to_wire, validate
from zipvl_serving.wire import ImagePart, Message, Parameters, TextPart, WireRequest

MESSAGES = [{"role": "user", "content": "hello"}]


def translate(messages: Any = MESSAGES, **fields: Any) -> WireRequest:
    return to_wire(validate({"model": "fake", "messages": messages, **fields}), MODEL)


def refusal(messages: Any = MESSAGES, **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        translate(messages, **fields)
    assert caught.value.status == 400
    return caught.value


def image(url: str, role: str = "user") -> list[dict[str, Any]]:
    return [{"role": role, "content": [{"type": "image_url", "image_url": {"url": url, "detail": "high"}}]}]


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def test_a_bare_request_is_the_bundles_defaults() -> None:
    assert translate() == WireRequest(messages=(Message(role="user", content="hello"),), parameters=Parameters())


def test_every_parameter_arrives() -> None:
    wire = translate(
        max_completion_tokens=5, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=-1, frequency_penalty=2, logit_bias={"3": -100}, seed=11, stop="\n", ignore_eos=True,
        logprobs=True, top_logprobs=4, priority=2,
        zipvl={"tau": 0.9, "ratio_min": 0.1, "ratio_max": 0.5, "probe_seed": 3, "timeout_s": 1.5},
    )  # fmt: skip
    assert wire.parameters == Parameters(
        max_tokens=5, temperature=0.7, top_p=0.9, top_k=40, min_p=0.1, repetition_penalty=1.2,
        presence_penalty=-1.0, frequency_penalty=2.0, logit_bias={3: -100.0}, seed=11, stop=["\n"], ignore_eos=True,
        logprobs=4, priority=2, tau=0.9, ratio_min=0.1, ratio_max=0.5, probe_seed=3, timeout_s=1.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", 5),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": -1}, "seed", 2**63 - 1),
        ({"logprobs": True}, "logprobs", 0),
        ({"logprobs": False}, "logprobs", None),
        ({"stop": ["a", "b"]}, "stop", ["a", "b"]),
        ({"zipvl": {"dense": True}}, "dense", True),
    ],
)
def test_other_forms_of_a_parameter(fields: dict[str, Any], name: str, value: object) -> None:
    assert getattr(translate(**fields).parameters, name) == value


def test_messages_keep_their_form_and_images_their_places() -> None:
    wire = translate(
        [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [
                {"type": "text", "text": "first"},
                {"type": "image_url", "image_url": {"url": data_url(b"one")}},
            ]},
            {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": data_url(b"two")}},
                {"type": "text", "text": "second"},
            ]},
        ]
    )  # fmt: skip
    assert wire.images == (b"one", b"two")
    assert wire.messages == (
        Message(role="system", content="be brief"),
        Message(role="user", content=[TextPart(text="first"), ImagePart()]),
        Message(role="assistant", content=[TextPart(text="yes")]),
        Message(role="user", content=[ImagePart(), TextPart(text="second")]),
    )


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd", ""])
def test_no_other_url_than_data_is_taken(url: str) -> None:
    error = refusal(image(url))
    assert error.param == "messages[0].content[0].image_url.url" and error.code == "invalid_image_url"
    assert "never fetched" in error.message


def test_damaged_base64_is_refused_with_its_place() -> None:
    error = refusal([*MESSAGES, *image("data:image/png;base64,@@@")])
    assert error.param == "messages[1].content[0].image_url.url" and "base64" in error.message


def test_images_belong_to_users() -> None:
    error = refusal(image(data_url(b"one"), role="system"))
    assert error.param == "messages[0].content[0]" and "'user'" in error.message


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"n": 2}, "n", "'n' does not support the value 2 with this model. Only the default (1) value is supported."),
        ({"n": 0}, "n", "'n' does not support the value 0"),
        ({"max_tokens": 33}, "max_tokens", "This model supports at most 32 completion tokens"),
        ({"max_completion_tokens": 33}, "max_completion_tokens", "max_completion_tokens is too large: 33."),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "different values"),
        ({"top_logprobs": 2}, "top_logprobs", "only allowed when 'logprobs' is enabled"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when 'stream' is enabled"),
        ({"logit_bias": {"red": 1}}, "logit_bias", "'red' is no token id"),
        ({"logit_bias": {"-1": 1}}, "logit_bias", "'-1' is no token id"),
        ({"logit_bias": {"\u0663": 1}}, "logit_bias", "is no token id"),
    ],
)
def test_fields_that_do_not_fit_together(fields: dict[str, Any], param: str, part: str) -> None:
    error = refusal(**fields)
    assert error.param == param and part in error.message
