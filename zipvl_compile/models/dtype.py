"""Modules in a given dtype from the start: converting one afterwards fails where its weights are fakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


def in_dtype(dtype: torch.dtype, build: Callable[[], Module]) -> Module:
    """The module that `build` makes, its floating-point parameters in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return build()
    finally:
        torch.set_default_dtype(before)
