"""One name for numpy arrays in signatures; shapes and dtypes are in the docstrings."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
