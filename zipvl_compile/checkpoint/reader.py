"""A Hugging Face checkpoint, read tensor by tensor under canonical names."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from safetensors import SafetensorError, safe_open

from zipvl_compile.checkpoint.hashes import hash_files
from zipvl_compile.checkpoint.hub import fetch_checkpoint, is_hub_id
from zipvl_compile.checkpoint.names import canonical_name, is_computed
from zipvl_compile.weights_file import StoredTensor, read_header
from zipvl_serving.errors import InputError, ZipvlError

if TYPE_CHECKING:
    import torch

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PROCESSOR_FILES = (
    _CONFIG,
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


@dataclass(frozen=True)
class _Location:
    file: Path
    stored_name: str
    header: StoredTensor


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its headers have been read and checked, its tensors have not been read.

    `source` is what the user named. `revision` is the commit of a hub checkpoint and None for a directory.
    `architecture` is the first entry of config.json's `architectures`.
    """

    source: str
    revision: str | None
    directory: Path
    config: dict[str, Any]
    architecture: str
    _weight_files: tuple[Path, ...]
    _tensors: dict[str, _Location]

    @classmethod
    def open(cls, source: str | Path, revision: str | None = None) -> Checkpoint:
        """Open a local directory, or a hub id `owner/name` (fetched or taken from the hub's cache).

        A string that is both is the directory; a Path is never a hub id; `revision` is for hub ids only. Raises
        InputError when there is no such checkpoint, ZipvlError when the hub cannot be reached or a file is missing,
        damaged or pickled. Each message is one line.
        """
        directory, commit = _locate(source, revision)
        config, architecture = _read_config(directory / _CONFIG)
        files, stored = _find_weights(directory)
        return cls(str(source), commit, directory, config, architecture, files, _by_canonical_name(stored))

    def names(self) -> list[str]:
        """Canonical names, sorted; buffers that the model computes are left out."""
        return sorted(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the tensor `name` (canonical)."""
        return self._location(name).header.shape

    def dtype(self, name: str) -> str:
        """The dtype in safetensors' spelling: "F32", "F16", "BF16", ..."""
        return self._location(name).header.dtype

    def load(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor `name` (canonical) on the CPU, in its stored dtype or converted to `dtype`.

        Unconverted it is a private mapping of its file: pages are read as they are touched, and writing to it
        changes memory only. Raises ZipvlError when there is no such tensor or its file can no longer be read.
        """
        location = self._location(name)
        try:
            with safe_open(location.file, framework="pt") as file:
                tensor = file.get_tensor(location.stored_name)
        except (OSError, SafetensorError) as error:
            raise ZipvlError(f"cannot read tensor {name!r} from {location.file}: {_first_line(error)}") from error
        return tensor if dtype is None else tensor.to(dtype)

    def verify(self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> None:
        """Check that the checkpoint has exactly the tensors `expected`, each of its shape.

        Names in `optional` may be absent, and may be present without being expected; one that is both present and
        expected must have its shape. Raises ZipvlError: one line with the first tensor of each kind of fault and
        how many more there are.
        """
        missing = sorted(set(expected) - set(self._tensors) - set(optional))
        surplus = sorted(set(self._tensors) - set(expected) - set(optional))
        misshapen = [
            f"{name!r} has shape {self.shape(name)}, expected {tuple(expected[name])}"
            for name in sorted(set(expected) & set(self._tensors))
            if self.shape(name) != tuple(expected[name])
        ]
        faults = [
            *_first_and_count("missing tensor", [repr(name) for name in missing]),
            *_first_and_count("surplus tensor", [repr(name) for name in surplus]),
            *_first_and_count("tensor", misshapen),
        ]
        if faults:
            raise ZipvlError(f"{self.directory} does not fit {self.architecture}: {'; '.join(faults)}")

    def processor_files(self) -> list[Path]:
        """The configuration, tokenizer, image processor and chat template files that are there, by name."""
        found = {path for pattern in _PROCESSOR_FILES for path in self.directory.glob(pattern) if path.is_file()}
        return sorted(found)

    def identity(self, memo: Path | None = None, progress: Callable[[int], None] | None = None) -> CheckpointIdentity:
        """What was opened, down to the SHA-256 of config, weights, index and processor files.

        `memo` is a cache directory that saves rehashing unchanged files; `progress` is told the bytes hashed since
        its last call. Reads every byte of the weights the first time.
        """
        paths = sorted({*self._weight_files, *self.processor_files()})
        try:
            digests = hash_files(paths, memo, progress)
        except OSError as error:
            raise ZipvlError(f"cannot read {error.filename or self.directory}: {error.strerror or error}") from error
        files = {path.name: digest for path, digest in digests.items()}
        return {"source": self.source, "revision": self.revision, "files": files}

    def _location(self, name: str) -> _Location:
        try:
            return self._tensors[name]
        except KeyError:
            raise ZipvlError(f"{self.directory} has no tensor {name!r}") from None


def _locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The checkpoint's directory, and its commit if it came from the hub."""
    not_found = InputError(
        f"checkpoint not found: {str(source)!r}; expected a directory with config.json and *.safetensors, "
        "or a hub id owner/name"
    )
    path = Path(source).expanduser()
    try:
        exists = str(source) != "" and path.exists()
    except OSError as error:  # no permission, or too long for a path
        raise not_found from error
    if not exists:
        if not isinstance(source, str) or not is_hub_id(source):
            raise not_found
        path = fetch_checkpoint(source, revision)
        return path, path.name
    if not path.is_dir():
        raise not_found
    if revision is not None:
        raise InputError(f"a revision ({revision!r}) is for a hub id; {str(source)!r} is a local directory")
    return path, None


def _read_config(path: Path) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        raise InputError(f"no config.json in {path.parent}; expected a directory with config.json and *.safetensors")
    config = _read_json_object(path)
    match config.get("architectures"):
        case [str(architecture), *_]:
            return config, architecture
        case _:
            raise ZipvlError(f"{path} names no architecture: expected a list of class names in 'architectures'")


def _find_weights(directory: Path) -> tuple[tuple[Path, ...], list[_Location]]:
    """The files of the weights (index included) and every tensor in them; headers are checked, data is not read."""
    single = directory / _WEIGHTS
    if single.is_file():
        return (single,), [_Location(single, name, tensor) for name, tensor in read_header(single).items()]
    index = directory / _INDEX
    if index.is_file():
        return _read_shards(index)
    pickled = sorted(path.name for path in directory.glob("*.bin"))
    if pickled:
        raise ZipvlError(f"{directory} has pickled weights only ({pickled[0]}): convert to safetensors")
    raise ZipvlError(f"no weights in {directory}: expected {_WEIGHTS}, or {_INDEX} and its shards")


def _read_shards(index: Path) -> tuple[tuple[Path, ...], list[_Location]]:
    shard_of = _read_json_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ZipvlError(f"{index} is damaged: expected a 'weight_map' from tensor names to file names")
    shards = sorted(set(shard_of.values()))
    outside = [shard for shard in shards if Path(shard).name != shard]
    if outside:
        raise ZipvlError(f"{index} names a shard that is not in its own directory: {outside[0]!r}")
    missing = [repr(shard) for shard in shards if not (index.parent / shard).is_file()]
    for fault in _first_and_count("missing shard", missing):
        raise ZipvlError(f"{fault} in {index.parent}, named by {_INDEX}")

    headers = {shard: read_header(index.parent / shard) for shard in shards}
    absent = [f"{name!r} in {shard}" for name, shard in sorted(shard_of.items()) if name not in headers[shard]]
    for fault in _first_and_count("missing tensor", absent):
        raise ZipvlError(f"{fault} of {index.parent}, named by {_INDEX}")
    tensors = [_Location(index.parent / shard, name, headers[shard][name]) for name, shard in shard_of.items()]
    return (index, *(index.parent / shard for shard in shards)), tensors


def _by_canonical_name(stored: Iterable[_Location]) -> dict[str, _Location]:
    tensors: dict[str, _Location] = {}
    for location in stored:
        if is_computed(location.stored_name):
            continue
        name = canonical_name(location.stored_name)
        if name in tensors:
            first, second = sorted((tensors[name].stored_name, location.stored_name))
            raise ZipvlError(f"{location.file.parent} has tensor {name!r} twice: as {first!r} and {second!r}")
        tensors[name] = location
    return tensors


def _read_json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ZipvlError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ZipvlError(f"{path} is not valid JSON: {_first_line(error)}") from error
    if not isinstance(value, dict):
        raise ZipvlError(f"{path} is damaged: expected a JSON object")
    return value


def _first_and_count(kind: str, faults: list[str]) -> list[str]:
    """No fault, no entry; else one: the first, and how many more."""
    more = f" (+{len(faults) - 1} more)" if len(faults) > 1 else ""
    return [f"{kind} {faults[0]}{more}"] if faults else []


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
