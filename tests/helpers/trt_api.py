"""Whether the two libraries have what fakes of them offer, by name: a fake must not have what is not there."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any


def missing(module: str, wanted: Mapping[str, Iterable[str]]) -> list[str]:
    """Of the wanted attributes (by class, "" is the module itself) those that the module lacks."""
    library = importlib.import_module(module)
    found = []
    for owner, names in wanted.items():
        kind = getattr(library, owner) if owner else library
        found += [f"{owner}.{name}" for name in names if not hasattr(kind, name)]
    return found


def offered(fake: Any) -> list[str]:
    """Public names of a fake's class."""
    return [name for name in dir(fake) if not name.startswith("_")]


def values_of(module: str, enumeration: str) -> dict[str, int]:
    """An enumeration of the module."""
    members = getattr(importlib.import_module(module), enumeration).__members__
    return {name: int(value) for name, value in members.items()}
