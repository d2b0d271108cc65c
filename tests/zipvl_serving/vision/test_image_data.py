"""Image files as clients send them: raw, base64, data: URLs."""

from __future__ import annotations

import base64
import io

import pytest
from helpers.bundles import random_image, refusal
from hypothesis import given
from hypothesis import strategies as st

from zipvl_serving.errors import InputError
from zipvl_serving.vision.image_data import from_data_url, from_field
from zipvl_serving.vision.images import FORMATS


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    random_image(1).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_raw_base64_and_data_url_are_the_same_file(kind: str) -> None:
    file = encoded(kind)
    text = base64.b64encode(file)
    assert from_field(file) == file
    assert from_field(text) == file
    assert from_field(base64.encodebytes(file)) == file  # in lines, as the tool `base64` prints it
    assert from_field(b"data:image/png;base64," + text) == file
    assert from_data_url("DATA:image/png;name=a;base64," + text.decode()) == file


@pytest.mark.parametrize("file", [b"P2\n2\n2\n255\n1\n2\n3\n4\n", b"P1 1 1 0"])
def test_a_plain_text_image_is_not_base64(file: bytes) -> None:
    assert from_field(file) == file


@given(st.binary(min_size=1))
def test_base64_of_anything_comes_back(data: bytes) -> None:
    assert from_field(base64.b64encode(data)) == data


@pytest.mark.parametrize(
    "url",
    [b"http://host/a.png", b"https://host/a.png", b"file:///etc/passwd", b"ftp://host/a", b"data:text/html;base64,AAAA",
     b"data:image/png,%89PNG", b"data:"],
)  # fmt: skip
def test_no_other_url_is_taken(url: bytes) -> None:
    with refusal(InputError, "image[3]: ", "never fetched", "data:image/"):
        from_field(url, "image[3]")


def test_a_long_url_is_shortened() -> None:
    with pytest.raises(InputError) as caught:
        from_data_url("http://" + "x" * 10_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [b"data:image/png;base64,AAA", b"data:image/png;base64,A!!A"])
def test_damaged_base64_is_refused(value: bytes) -> None:
    with refusal(InputError, "image[0]: damaged base64"):
        from_field(value, "image[0]")


def test_nothing_is_no_image() -> None:
    with refusal(InputError, "image: is empty"):
        from_field(b"")
