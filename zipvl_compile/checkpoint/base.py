"""Where a model comes from: a directory with its configuration and processor, and weights by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from zipvl_compile.checkpoint.hashes import hash_files
from zipvl_serving.errors import InputError, ZipvlError

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
_PROCESSOR_FILES = (
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "chat_template*",
    "tokenizer*",
)


class CheckpointIdentity(TypedDict):
    """`files` maps names relative to the checkpoint's directory to hexadecimal SHA-256."""

    source: str
    revision: str | None
    files: dict[str, str]


class Weights(Protocol):
    """Tensors by canonical name; each is made or read when it is loaded."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name`."""

    def dtype(self, name: str) -> str:
        """The dtype in safetensors' spelling: "F32", "F16", "BF16", ..."""

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor `name` on the CPU, in its own dtype or converted to `dtype`."""


@dataclass(frozen=True)
class Source(ABC):
    """What a build takes a model from.

    `source` is what the user named. `revision` is the commit of a hub checkpoint and None for a directory.
    `architecture` is the first entry of config.json's `architectures`.
    """

    source: str
    revision: str | None
    directory: Path
    config: dict[str, Any]
    architecture: str

    @abstractmethod
    def weights(self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> Weights:
        """The weights of a model with the tensors `expected` (canonical name: shape), of which `optional` may lack.

        Raises ZipvlError, one line, where this source has others.
        """

    def weight_files(self) -> tuple[Path, ...]:
        """The files that the weights are read from, index included."""
        return ()

    def processor_files(self) -> list[Path]:
        """The configuration, tokenizer, image processor and chat template files that are there, by name."""
        found = {path for pattern in _PROCESSOR_FILES for path in self.directory.glob(pattern) if path.is_file()}
        return sorted(found)

    def identity(self, memo: Path | None = None, progress: Callable[[int], None] | None = None) -> CheckpointIdentity:
        """What was opened, down to the SHA-256 of config, weights, index and processor files.

        `memo` is a cache directory that saves rehashing unchanged files; `progress` is told the bytes hashed since
        its last call. Reads every byte of the weights the first time.
        """
        paths = sorted({*self.weight_files(), *self.processor_files()})
        try:
            digests = hash_files(paths, memo, progress)
        except OSError as error:
            raise ZipvlError(f"cannot read {error.filename or self.directory}: {error.strerror or error}") from error
        files = {path.name: digest for path, digest in digests.items()}
        return {"source": self.source, "revision": self.revision, "files": files}


def refuse_revision(source: str | Path, revision: str | None) -> None:
    """InputError where a revision is asked of a local directory."""
    if revision is not None:
        raise InputError(f"a revision ({revision!r}) is for a hub id; {str(source)!r} is a local directory")
