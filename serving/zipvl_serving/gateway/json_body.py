"""JSON as the standard has it: what Python's reader lets through beyond that is refused."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from zipvl_serving.gateway.errors import ApiError

MAX_VALUES = 1 << 17
"""More separate values than any question has; as Python objects they take many times the bytes of their JSON."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_object(body: bytes) -> dict[str, Any]:
    """The object that `body` is.

    Raises ApiError (400) for anything else: other encodings than UTF-8, NaN and Infinity, a key given twice, numbers
    of thousands of digits, brackets too deep to read, half of a surrogate pair, more than MAX_VALUES values.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise _refusal(f"it may hold {MAX_VALUES} values")
    try:
        text = body.decode("utf-8")
        found = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_object)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _refusal("a string holds half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise _refusal(str(error).splitlines()[0]) from None
    if not isinstance(found, dict):
        raise _refusal("an object was expected")
    return found


def _refusal(reason: str) -> ApiError:
    return ApiError(400, f"We could not parse the JSON body of your request: {reason}", code="invalid_json")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:60]!r} is given twice")
        found[name] = value
    return found
