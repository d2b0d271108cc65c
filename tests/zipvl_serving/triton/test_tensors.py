"""Requests and answers as tensors and back; what is wrong with a tensor is one clear line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.bundles import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from zipvl_serving.arrays import Array
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.output.sampling import TokenLogprob
from zipvl_serving.triton.tensors import (
    INPUTS,
    OUTPUTS,
    chunk_from_tensors,
    chunk_to_tensors,
    error_code,
    error_from_text,
    error_text,
    from_tensors,
    to_tensors,
)
from zipvl_serving.wire import Chunk, ImagePart, Message, Parameters, Statistics, TextPart, WireRequest, merge

TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all but lone surrogates, which no UTF-8 has
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(0, 2**31 - 1)
RATIO = st.floats(0, 1)

PARAMETERS = st.builds(
    Parameters,
    max_tokens=st.none() | COUNT,
    temperature=FLOAT,
    top_p=FLOAT,
    top_k=st.integers(),
    logit_bias=st.dictionaries(COUNT, FLOAT, max_size=3),
    seed=st.none() | st.integers(0, 2**63 - 1),
    stop=st.lists(TEXT, max_size=3),
    ignore_eos=st.booleans(),
    logprobs=st.none() | COUNT,
    tau=st.none() | RATIO,
    dense=st.booleans(),
    priority=st.integers(),
    timeout_s=st.none() | st.floats(0, 1e6, exclude_min=True),
    raw=st.booleans(),
)
MESSAGES = st.lists(
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant"]),
        content=TEXT | st.lists(st.builds(TextPart, text=TEXT) | st.builds(ImagePart), max_size=3),
    ),
    min_size=1,
    max_size=3,
)
IMAGES = st.lists(st.binary(max_size=20).map(lambda data: b"\x89PNG" + data), max_size=3).map(tuple)
STATISTICS = st.builds(
    Statistics,
    **dict.fromkeys(("prompt_tokens", "completion_tokens", "cached_images", "kv_bytes"), COUNT),
    dense=st.booleans(),
    ratio_per_layer=st.lists(RATIO, max_size=3),
    kept_tokens_per_layer=st.lists(COUNT, max_size=3),
    **dict.fromkeys(("queue_s", "ttft_s", "total_s"), st.floats(0, 1e6)),
)
LOGPROB = st.builds(
    TokenLogprob,
    token_id=COUNT,
    logprob=st.floats(max_value=0, allow_nan=False),
    top=st.lists(st.tuples(COUNT, st.floats(max_value=0, allow_nan=False)), max_size=2),
)
CHUNKS = st.builds(
    Chunk,
    text=TEXT,
    token_ids=st.lists(COUNT, max_size=4),
    logprobs=st.none() | st.lists(LOGPROB, max_size=3),
    finish_reason=st.sampled_from([None, "stop", "length", "deadline", "cancelled"]),
    statistics=st.none() | STATISTICS,
)


def tensors(**values: Any) -> dict[str, Array]:
    """Input tensors; an array is taken as it is."""
    return {
        name: value if isinstance(value, np.ndarray) else INPUTS[name].array(value) for name, value in values.items()
    }


def read(request_parameters: dict[str, Any] | None = None, **values: Any) -> WireRequest:
    return from_tensors(tensors(**{"text_input": "hi"} | values), request_parameters or {})[0]


# --- round trips -----------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(TEXT, IMAGES, PARAMETERS, st.booleans())
def test_a_request_comes_back(text: str, images: tuple[bytes, ...], parameters: Parameters, stream: bool) -> None:
    request = WireRequest(text, None, images, parameters)
    assert from_tensors(to_tensors(request, stream=stream), {}) == (request, stream)


@settings(max_examples=50, deadline=None)
@given(MESSAGES)
def test_messages_come_back(messages: list[Message]) -> None:
    request = WireRequest(None, tuple(messages))
    assert from_tensors(to_tensors(request, stream=True), {})[0] == request


@settings(max_examples=50, deadline=None)
@given(CHUNKS)
def test_a_chunk_comes_back(chunk: Chunk) -> None:
    made = chunk_to_tensors(chunk)
    assert set(made) == set(OUTPUTS)
    for name, array in made.items():
        assert array.dtype == OUTPUTS[name].dtype
        assert array.shape == ((len(chunk.token_ids),) if name == "token_ids" else (1,))
    assert chunk_from_tensors(made) == chunk


@settings(max_examples=20, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_fp32_is_read_as_its_shortest_decimal(value: float) -> None:
    found = read(temperature=value).parameters.temperature
    assert np.float32(found) == np.float32(value)
    assert len(repr(found)) <= len(repr(value))


def test_tau_is_what_was_meant() -> None:
    assert float(tensors(tau=0.975)["tau"][0]) != 0.975
    assert read(tau=0.975).parameters.tau == 0.975


# --- where parameters come from --------------------------------------------------------------------------------------


def test_a_tensor_wins_over_json_and_json_over_request_parameters() -> None:
    weakest = {"tau": 0.1, "top_k": 1, "seed": 1, "stop": "x"}
    found = read(weakest, sampling_parameters='{"tau": 0.2, "top_k": 2, "ignore_eos": true}', tau=0.3).parameters
    assert (found.tau, found.top_k, found.seed, found.stop, found.ignore_eos) == (0.3, 2, 1, ["x"], True)


def test_every_scalar_reaches_its_parameter() -> None:
    values = {
        "max_tokens": 5, "temperature": 0.5, "top_p": 0.25, "top_k": 3, "min_p": 0.125, "repetition_penalty": 1.5,
        "seed": 2**40, "tau": 0.9, "ratio_min": 0.25, "ratio_max": 0.5, "dense": True, "probe_seed": 2**41,
        "priority": -3, "timeout_s": 2.5,
    }  # fmt: skip
    assert set(values) == set(INPUTS) - {"text_input", "messages", "image", "sampling_parameters", "stream"}
    assert read(**values).parameters == Parameters(**values)


@pytest.mark.parametrize(("named", "typed", "expected"), [
    ({}, {}, False), ({"stream": True}, {}, True), ({"stream": True}, {"stream": False}, False),
])  # fmt: skip
def test_streaming_is_asked_for(named: dict[str, Any], typed: dict[str, Any], expected: bool) -> None:
    assert from_tensors(tensors(text_input="hi", **typed), named)[1] is expected


def test_images_come_in_order() -> None:
    images = np.array([b"\x89one", b"AAAA"], object)
    assert read(image=images).images == (b"\x89one", b"\0\0\0")
    assert read(image=np.array([], object)).images == ()


# --- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"tau": np.array([0.5])}, ["tau: the tensor's type is float64; must be FP32"]),
        ({"max_tokens": np.array([5])}, ["max_tokens: the tensor's type is int64; must be INT32"]),
        ({"text_input": np.array([5], np.int32)}, ["text_input: the tensor's type is int32; must be STRING"]),
        ({"seed": np.array([1, 2])}, ["seed: the tensor's shape is [2]; must be [1]"]),
        ({"tau": np.array([[0.5]], np.float32)}, ["tau: the tensor's shape is [1, 1]; must be [1]"]),
        ({"dense": np.array([], bool)}, ["dense: the tensor's shape is [0]; must be [1]"]),
        ({"image": np.array([[b"x"]], object)}, ["image: the tensor's shape is [1, 1]; must be [N]"]),
        ({"text_input": np.array([b"a\xff"], object)}, ["text_input: not UTF-8 at byte 1"]),
        ({"tauu": np.array([1.0])}, ["'tauu' is no input tensor; did you mean 'tau'?"]),
        ({"messages": "[]"}, ["one of text_input and messages is required; both were given"]),
        ({"image": b"http://host/a.png"}, ["image 1: 'http://host/a.png'", "never fetched"]),
        ({"sampling_parameters": "{"}, ["sampling_parameters: not JSON"]),
        ({"sampling_parameters": "[" * 100_000}, ["sampling_parameters: not JSON"]),
        ({"sampling_parameters": "[1]"}, ["sampling_parameters: a JSON object was expected"]),
        ({"sampling_parameters": '{"taut": 1}'}, ["'taut' is no parameter; did you mean 'tau'?"]),
        ({"sampling_parameters": '{"tau": "high"}'}, ["parameters.tau", "'high'"]),
        ({"timeout_s": float("nan")}, ["parameters.timeout_s"]),
    ],
)
def test_one_line_says_what_is_wrong(values: dict[str, Any], parts: list[str]) -> None:
    made = {
        name: value if isinstance(value, np.ndarray) else INPUTS[name].array(value) for name, value in values.items()
    }
    with refusal(InputError, *parts):
        from_tensors({"text_input": INPUTS["text_input"].array("hi")} | made, {})


def test_a_request_without_text_is_refused() -> None:
    with refusal(InputError, "one of text_input and messages is required; neither was given"):
        from_tensors(tensors(tau=0.5), {})


def test_wrong_messages_are_refused() -> None:
    with refusal(InputError, "messages[0]", "role"):
        from_tensors(tensors(messages=json.dumps([{"role": "robot", "content": "x"}])), {})


@pytest.mark.parametrize("named", [{"stream": 1}, {"stream": "true"}])
def test_stream_is_a_boolean(named: dict[str, Any]) -> None:
    with refusal(InputError, "parameters.stream", "valid: true, false"):
        read(named)


def test_text_without_utf8_is_not_sent() -> None:
    with refusal(InputError, "text_input: not Unicode: a lone surrogate at character 1"):
        to_tensors(WireRequest("a\ud800"), stream=False)


def test_answers_of_another_model_are_errors() -> None:
    made = chunk_to_tensors(Chunk("x", [1]))
    for broken in (
        {name: array for name, array in made.items() if name != "statistics"},
        made | {"finish_reason": OUTPUTS["finish_reason"].array("bored")},
        made | {"statistics": OUTPUTS["statistics"].array("{}")},
        made | {"token_ids": np.array([1.5])},
    ):
        with refusal(ZipvlError, "the answer"):
            chunk_from_tensors(broken)


# --- joining and errors ----------------------------------------------------------------------------------------------


def test_merging_keeps_order_and_the_end() -> None:
    logprob = TokenLogprob(1, -0.5, [])
    statistics = Statistics(1, 2, 0, False, [1.0], [1], 64, 0.1, 0.2, 0.3)
    joined = merge([Chunk("a", [1], [logprob]), Chunk("", [2], []), Chunk("b", [], None, "stop", statistics)])
    assert joined == Chunk("ab", [1, 2], [logprob], "stop", statistics)
    assert merge([Chunk("a", [1]), Chunk("b", [2])]) == Chunk("ab", [1, 2])


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (InputError("tau: 2 is wrong"), "invalid request: tau: 2 is wrong", "INVALID_ARG"),
        (OverloadedError("too many"), "overloaded: too many", "UNAVAILABLE"),
        (DeadlineError("too late"), "deadline exceeded: too late", "UNAVAILABLE"),
        (UnavailableError("stopping"), "unavailable: stopping", "UNAVAILABLE"),
        (ZipvlError("broken"), "failed: broken", "INTERNAL"),
    ],
)
def test_the_kind_of_an_error_survives(error: ZipvlError, text: str, code: str) -> None:
    assert error_text(error) == text
    assert error_code(error) == code
    back = error_from_text(text)
    assert type(back) is type(error)
    assert str(back) == str(error)


def test_an_error_is_one_line_and_a_new_kind_is_its_parents() -> None:
    class WrongImageError(InputError):
        pass

    assert error_text(WrongImageError("a\nb")) == "invalid request: a b"
    assert error_code(WrongImageError("")) == "INVALID_ARG"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Stub process 'tiny_0_0' is not healthy.", UnavailableError),
        ("Request for unknown model: 'tiny' has no available versions", UnavailableError),
        ("Request for unknown model: 'tiny' is not found", ZipvlError),
        ("failed", ZipvlError),
    ],
)
def test_what_triton_says_itself_is_passed_on(text: str, kind: type[ZipvlError]) -> None:
    back = error_from_text(text)
    assert type(back) is kind
    assert str(back) == text
