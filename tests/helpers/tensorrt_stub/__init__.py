"""TensorRT's own Python code, run without TensorRT: its bindings over three libraries of empty functions.

`in_stub(function, ...)` runs in a process of its own, where alone `import tensorrt` finds these bindings.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.pool import Pool
from typing import Any

from helpers.tensorrt_stub.libraries import install


def in_stub(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(*arguments, **named) where tensorrt imports; a function of a module, so that pickle finds it there."""
    return _worker().apply(function, arguments, named)


@functools.cache
def _worker() -> Pool:
    return multiprocessing.get_context("spawn").Pool(1, initializer=install)
