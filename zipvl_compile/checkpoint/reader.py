"""A Hugging Face checkpoint, read tensor by tensor under canonical names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from zipvl_compile.checkpoint.base import Source, refuse_revision
from zipvl_compile.checkpoint.config import first_line, read_config, read_json_object
from zipvl_compile.checkpoint.hub import fetch_checkpoint, is_hub_id
from zipvl_compile.checkpoint.names import canonical_name, is_computed
from zipvl_compile.weights_file import StoredTensor, read_header
from zipvl_serving.errors import InputError, ZipvlError

if TYPE_CHECKING:
    import torch

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EXPECTED = "a directory with config.json and *.safetensors"


@dataclass(frozen=True)
class _Location:
    file: Path
    stored_name: str
    header: StoredTensor


@dataclass(frozen=True)
class Checkpoint(Source):
    """An opened checkpoint: its headers have been read and checked, its tensors have not been read."""

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
        config, architecture = read_config(directory, _EXPECTED)
        files, stored = _find_weights(directory)
        return cls(str(source), commit, directory, config, architecture, files, _by_canonical_name(stored))

    def weights(self, expected: Mapping[str, tuple[int, ...]], optional: Collection[str] = ()) -> Checkpoint:
        self.verify(expected, optional)
        return self

    def weight_files(self) -> tuple[Path, ...]:
        return self._weight_files

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
            raise ZipvlError(f"cannot read tensor {name!r} from {location.file}: {first_line(error)}") from error
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

    def _location(self, name: str) -> _Location:
        try:
            return self._tensors[name]
        except KeyError:
            raise ZipvlError(f"{self.directory} has no tensor {name!r}") from None


def _locate(source: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The checkpoint's directory, and its commit if it came from the hub."""
    not_found = InputError(f"checkpoint not found: {str(source)!r}; expected {_EXPECTED}, or a hub id owner/name")
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
    refuse_revision(source, revision)
    return path, None


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
    shard_of = read_json_object(index).get("weight_map")
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


def _first_and_count(kind: str, faults: list[str]) -> list[str]:
    """No fault, no entry; else one: the first, and how many more."""
    more = f" (+{len(faults) - 1} more)" if len(faults) > 1 else ""
    return [f"{kind} {faults[0]}{more}"] if faults else []
