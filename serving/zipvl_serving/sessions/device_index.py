"""The tokens of T of a prefill's layers, left on the device until somebody looks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import torch

from zipvl_serving.arrays import Array


class DeviceIndex(Sequence[Array]):
    """Per layer, int32 [count]: the first `count` entries of a tensor, copied to the host when asked for."""

    def __init__(self, tensors: Sequence[torch.Tensor], counts: Sequence[int]) -> None:
        self._layers = [tensor[:count] for tensor, count in zip(tensors, counts, strict=True)]

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, layer: int) -> Array: ...

    @overload
    def __getitem__(self, layer: slice) -> list[Array]: ...

    def __getitem__(self, layer: int | slice) -> Array | list[Array]:
        if isinstance(layer, slice):
            return [self[at] for at in range(len(self))[layer]]
        tokens: Array = self._layers[layer].cpu().numpy()
        return tokens
