"""Architectures that can be compiled, by the name that config.json gives them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_serving.errors import InputError, nearest

if TYPE_CHECKING:
    from zipvl_compile.models.llava import LlavaFamily

_FAMILIES = {"LlavaForConditionalGeneration": ("zipvl_compile.models.llava", "LlavaFamily")}
"""architecture: (module, class); a family joins by a module and a line here."""


def family(config: dict[str, Any], folder: Path | None = None) -> LlavaFamily:
    """The family of a checkpoint's config.json; InputError for one that is not supported or not consistent."""
    try:
        return _family(config)
    except InputError as error:
        raise InputError(f"{folder}/{error}" if folder else str(error)) from error


def _family(config: dict[str, Any]) -> LlavaFamily:
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in _FAMILIES:
        raise InputError(
            f"config.json: architectures: {architecture!r} is not supported; {nearest(architecture, _FAMILIES)}"
        )
    module, name = _FAMILIES[architecture]
    try:
        found: LlavaFamily = getattr(importlib.import_module(module), name)(config)
        found.shape()
        found.expected_tensors()
    except InputError:
        raise
    except Exception as error:  # whatever transformers and torch make of numbers that do not fit together
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise InputError(f"config.json: not a valid {architecture}: {what}") from error
    return found
