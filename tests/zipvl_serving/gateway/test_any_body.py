"""Whatever a client sends is an answer or its own mistake: no body reaches the server's."""

from __future__ import annotations

import json
from typing import Any

from helpers.gateway import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.schema import ChatRequest, ZipvlOptions
from zipvl_serving.gateway.translate import parse
from zipvl_serving.wire import WireRequest

_INTEGERS = st.integers() | st.integers(-(2**70), 2**70) | st.just(10**400)
_NUMBERS = _INTEGERS | st.floats(allow_nan=False, allow_infinity=False)
_SCALARS = st.none() | st.booleans() | _NUMBERS | st.text(max_size=5) | st.sampled_from(["user", "text", "1", "fake"])
_NAMES = st.sampled_from(["role", "content", "type", "text", "image_url", "url", "include_usage", "3"])
_KEYS = _NAMES | st.text(max_size=3)
_ANY = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3))

_SAMPLE_URLS = ["data:image/png;base64,AAAA", "data:image/png;base64,A", "data:,x", "http://x", "\ud800"]
_URLS = st.sampled_from(_SAMPLE_URLS) | st.text()
_PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": _URLS})}),
    _ANY,
)
_ROLES = st.sampled_from(["system", "developer", "user", "assistant"])
_TURNS = st.fixed_dictionaries({"role": _ROLES, "content": st.text(max_size=5) | st.lists(_PARTS, max_size=3)}) | _ANY
_OURS = st.dictionaries(st.sampled_from([*ZipvlOptions.model_fields]), _SCALARS, max_size=4)
_GOOD = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
_FIELDS = st.sampled_from([*ChatRequest.model_fields, "tools", "response_format", "other"])
_CHANGES = st.one_of(
    st.dictionaries(_FIELDS, _SCALARS | _ANY, max_size=2),
    st.fixed_dictionaries({"messages": st.lists(_TURNS, max_size=3)}),
    st.fixed_dictionaries({"zipvl": _OURS}),
)


def check(body: bytes) -> None:
    try:
        _, wire = parse(body, MODEL)
    except ApiError as error:
        assert 400 <= error.status < 500
        assert error.message.encode() and json.dumps(error.body)
    else:
        assert isinstance(wire, WireRequest) and wire.messages


@given(_CHANGES, st.booleans())
@settings(deadline=None, max_examples=300)
def test_any_object(changes: Any, ascii_only: bool) -> None:
    check(json.dumps(_GOOD | changes, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=200)
def test_any_bytes(body: bytes) -> None:
    check(body)
