"""Bodies are JSON, or refused."""

from __future__ import annotations

import json

import pytest

from zipvl_serving.gateway.errors import ApiError
from zipvl_serving.gateway.json_body import MAX_VALUES, read_object


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "an object was expected"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": [-Infinity]}', "-Infinity is no JSON number"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is given twice"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "maximum recursion depth"),
        (b'{"a": ' * 100_000, "maximum recursion depth"),
        (b'{"a": ' + b"1" * 5000 + b"}", "integer string conversion"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"a": "\\udc00"}', "surrogate"),
        (b'{"a": ["\\udfff\\ud83d\\ude00"]}', "surrogate"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": "\xed\xa0\x80"}', "can't decode byte 0xed"),
        ('{"a": "x"}'.encode("utf-16"), "can't decode"),
        (b'{"a": [' + b"[]," * MAX_VALUES + b"0]}", "it may hold 131072 values"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, reason: str) -> None:
    with pytest.raises(ApiError) as caught:
        read_object(body)
    assert caught.value.status == 400 and caught.value.code == "invalid_json"
    assert reason in caught.value.message and caught.value.message.isprintable()


def test_all_of_json_is_read() -> None:
    value = {"a": [1, -2.5e3, True, None], "ü": "\U0001f600", "b": {"a": "\\ud800"}}
    for ascii_only in (True, False):
        assert read_object(json.dumps(value, ensure_ascii=ascii_only).encode()) == value
