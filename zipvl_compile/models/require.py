"""Refuse, by name, what a family cannot compile."""

from __future__ import annotations

from collections.abc import Collection

from zipvl_serving.errors import InputError


def require(key: str, value: object, valid: Collection[object]) -> None:
    """InputError unless config.json's `key` has one of the valid values."""
    if value not in valid:
        listing = ", ".join(str(one) for one in valid)
        raise InputError(f"config.json: {key}: {value!r} is not supported; valid: {listing}")
