"""Errors that a user can act on; the command line prints each as one line and never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZipvlError(Exception):
    """The work could not be done: a broken file, a tampered bundle, a full disk. Exit code 1."""

    exit_code = 1


class InputError(ZipvlError):
    """What the user asked for cannot be: a wrong recipe, option, image or prompt. Exit code 2."""

    exit_code = 2


class OverloadedError(ZipvlError):
    """As many requests are waiting as may wait; asking again later may work."""


class DeadlineError(ZipvlError):
    """The request's time ran out before its first token."""


class UnavailableError(ZipvlError):
    """The engine is stopping, or has stopped."""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks."""
    return " ".join(str(error).split())


def internal(error: BaseException) -> ZipvlError:
    """What a client is told of an error that nobody foresaw."""
    return ZipvlError(f"internal: {type(error).__name__}: {one_line(error)[:200]}")


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a misspelt name: the nearest valid one first where one is near, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    listing = f"valid: {', '.join(names)}"
    return f"did you mean {close[0]!r}? {listing}" if close else listing
