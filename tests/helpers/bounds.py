"""Kernels in Triton's interpreter that may touch the tensors of their launch, and no byte beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from zipvl_plugins.gpu import launch as launches
from zipvl_plugins.gpu.launch import Launch


class Memory:
    """The interpreter's loads and stores; IndexError (by Triton, InterpreterError) outside the launch's tensors."""

    def __init__(self, unchecked: Any) -> None:
        self.unchecked = unchecked
        self.ranges: list[tuple[int, int]] = []
        """First byte of every tensor, and the byte after its last."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchecked, name)

    def hold(self, tensors: Iterable[torch.Tensor]) -> None:
        """From now on these are all that there is."""
        self.ranges = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors]

    def load(self, addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        self._check("reads", addresses, mask, np.dtype(dtype).itemsize)
        return self.unchecked.load(addresses, mask, other, dtype)

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        self._check("writes", addresses, mask, values.dtype.itemsize)
        self.unchecked.store(addresses, values, mask)

    def _check(self, touches: str, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        """One access touches one tensor, so its lowest and highest address are in the same one."""
        touched = addresses[mask]
        if touched.size == 0:
            return
        first, end = int(touched.min()), int(touched.max()) + size
        if not any(begin <= first and end <= stop for begin, stop in self.ranges):
            raise IndexError(f"the kernel {touches} {first:#x} to {end:#x}, which no tensor of its launch holds")


def check_every_access() -> None:
    """From here on every launch of this process, which interprets, is held to its tensors."""
    from triton.runtime import interpreter

    memory = interpreter._interpreter = Memory(interpreter._interpreter)
    unchecked = launches.launch_on

    def launch_on(launch: Launch, inputs: Sequence[torch.Tensor | None], outputs: Sequence[torch.Tensor]) -> None:
        memory.hold(tensor for tensor in (*inputs, *outputs) if tensor is not None)
        unchecked(launch, inputs, outputs)

    launches.launch_on = launch_on
