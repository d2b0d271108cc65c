"""Random weights in the shapes of a configuration: what a build costs and what a bundle takes, without a download."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zipvl_compile.checkpoint.base import Source, Weights, refuse_revision
from zipvl_compile.checkpoint.config import read_config
from zipvl_compile.recipe.source import is_dir
from zipvl_serving.errors import InputError

if TYPE_CHECKING:
    import torch

_EXPECTED = "a directory with config.json and the processor's files"


@dataclass(frozen=True)
class RandomSource(Source):
    """A directory whose configuration decides the shapes; weights that lie in it are not read."""

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> RandomSource:
        """Open a local directory; InputError where it is none, a hub id and a revision included."""
        directory = Path(source).expanduser()
        if not is_dir(directory):
            raise InputError(f"model.weights: random takes shapes from {_EXPECTED}; {str(source)!r} is none")
        refuse_revision(source, revision)
        return cls(str(source), None, directory, *read_config(directory, _EXPECTED))

    def weights(self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> Weights:
        return RandomWeights(expected)


@dataclass(frozen=True)
class RandomWeights:
    """float32 tensors of the given shapes, made one at a time: biases 0, norms 1, all else normal.

    The standard deviation is fan_in ** -0.5, so that activations keep their size from layer to layer. A tensor's values
    hang on its name and shape alone, so builds repeat whatever else they load, and in whatever order.
    """

    shapes: Mapping[str, tuple[int, ...]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def dtype(self, name: str) -> str:
        return "F32"

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        import torch

        shape = self.shapes[name]
        if name.endswith("bias"):
            tensor = torch.zeros(shape)
        elif len(shape) == 1 and name.endswith("weight"):
            tensor = torch.ones(shape)
        else:
            tensor = torch.from_numpy(_normal(name, shape))
        return tensor if dtype is None else tensor.to(dtype)


def _normal(name: str, shape: tuple[int, ...]) -> np.typing.NDArray[np.float32]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape, dtype=np.float32)
    values *= math.prod(shape[1:]) ** -0.5
    return values
