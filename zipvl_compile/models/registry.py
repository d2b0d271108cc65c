"""Architectures that can be compiled, by the name that config.json gives them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from zipvl_serving.errors import InputError, nearest

if TYPE_CHECKING:
    from zipvl_compile.models.llava import LlavaFamily

_FAMILIES = {"LlavaForConditionalGeneration": ("zipvl_compile.models.llava", "LlavaFamily")}
"""architecture: (module, class); a family joins by a module and a line here."""


def family(config: dict[str, Any]) -> LlavaFamily:
    """The family of a checkpoint's config.json; InputError for an architecture that is not supported."""
    architecture = (config.get("architectures") or ["(none)"])[0]
    if architecture not in _FAMILIES:
        raise InputError(
            f"config.json: architectures: {architecture!r} is not supported; {nearest(architecture, _FAMILIES)}"
        )
    module, name = _FAMILIES[architecture]
    try:
        found: LlavaFamily = getattr(importlib.import_module(module), name)(config)
    except (StrictDataclassError, ValueError, TypeError, KeyError, AttributeError) as error:  # transformers' own checks
        raise InputError(f"config.json: not a valid {architecture}: {' '.join(str(error).split())}") from error
    return found
