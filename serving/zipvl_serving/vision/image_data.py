"""Image files as clients send them: raw bytes, base64 text or a data: URL. No other URL is ever fetched."""

from __future__ import annotations

import base64
import binascii
import re

from zipvl_serving.errors import InputError

_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*:")
_DATA_URL = re.compile(rb"data:(?P<media>[^,;]*)(?:;[^,;]*)*?;base64,(?P<data>.*)", re.DOTALL | re.IGNORECASE)
_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]+={0,2}[\r\n]*")
_PLAIN_PNM = re.compile(rb"P[1-6]\s")
_SHOWN = 40


def from_data_url(url: str | bytes, where: str = "image") -> bytes:
    """The file inside a `data:image/...;base64,...` URL.

    InputError, one line that starts with `where`, for any other URL and for damaged base64.
    """
    encoded = url.encode() if isinstance(url, str) else url
    match = _DATA_URL.fullmatch(encoded)
    if not match or not (match["media"] or b"image/").lower().startswith(b"image/"):
        raise InputError(
            f"{where}: {_shown(encoded)} is not an image that can be read; URLs are never fetched: send "
            "data:image/...;base64,... with the file in it"
        )
    return _from_base64(match["data"], where)


def from_field(value: bytes, where: str = "image") -> bytes:
    """An image file from a field that takes raw bytes, base64 text and data: URLs alike.

    Every image format has bytes that base64 has not (a plain-text PNM at its start), so that the two are never mistaken
    for each other. InputError as above.
    """
    if not value:
        raise InputError(f"{where}: is empty; an image file was expected")
    if value[:5].lower() == b"data:" or (_SCHEME.match(value) and b"//" in value[:12]):
        return from_data_url(value, where)
    if _BASE64.fullmatch(value) and not _PLAIN_PNM.match(value):
        return _from_base64(value, where)
    return value


def _from_base64(text: bytes, where: str) -> bytes:
    try:
        return base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error as error:
        raise InputError(f"{where}: damaged base64: {str(error).lower()}") from None


def _shown(value: bytes) -> str:
    text = value[: _SHOWN + 1].decode("utf-8", "replace")
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
