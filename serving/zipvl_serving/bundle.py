"""Open a bundle: read the manifest, refuse what does not match it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from zipvl_serving.backends import BACKENDS
from zipvl_serving.contract import GraphName
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.manifest import MANIFEST_FILE, SCHEMA_VERSION, FileEntry, Manifest, digest

PROCESSOR_FOLDER = "processor"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """A bundle whose manifest has been read and whose files have been checked against it."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open the bundle at `path`.

        `verify` compares the SHA-256 of every file; sizes are always compared. Raises InputError where there is no
        bundle and ZipvlError, naming the file, where one is damaged or made for another version.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        _check_listing(folder, manifest)
        for name, entry in manifest.files.items():
            _check_file(folder, name, entry, verify=verify)
        _check_runtime(folder, manifest)
        return cls(folder, manifest)

    @property
    def processor_folder(self) -> Path:
        """Tokenizer, image processor and chat template, as the checkpoint had them."""
        return self.path / PROCESSOR_FOLDER

    def graph_path(self, graph: GraphName) -> Path:
        return self.path / self.manifest.engine.graphs[graph]


def read_manifest(folder: Path) -> Manifest:
    """Parse and check manifest.json alone."""
    file = folder / MANIFEST_FILE
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        state = "has no manifest.json" if folder.is_dir() else "is a file" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: not a bundle: it {state}; expected what `zipvl-compile build` leaves") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ZipvlError(f"{file}: cannot be read: {str(error).splitlines()[0]}; rebuild the bundle") from None
    version = body.get("schema_version") if isinstance(body, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ZipvlError(
            f"{file}: schema version {version!r} is not readable here; this zipvl_serving reads {SCHEMA_VERSION}; "
            "rebuild the bundle"
        )
    if body.pop("digest", None) != digest(body):
        raise ZipvlError(f"{file}: was changed after the build: its digest does not match; rebuild the bundle")
    try:
        return Manifest.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ZipvlError(f"{file}: {where}: {first['msg']}; rebuild the bundle") from None


def describe_files(folder: Path) -> Iterator[tuple[str, FileEntry]]:
    """(relative name, entry) of every file under a folder, the manifest excepted, in order of name."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != MANIFEST_FILE:
            yield name, FileEntry(sha256=_sha256(file), bytes=file.stat().st_size)


def _sha256(file: Path) -> str:
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()


def _check_listing(folder: Path, manifest: Manifest) -> None:
    """Nothing but what the manifest lists: an added chat template would change answers unseen."""
    if not manifest.files:
        raise ZipvlError(f"{folder / MANIFEST_FILE}: lists no files; rebuild the bundle")
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise ZipvlError(f"{path}: is a symbolic link; a bundle holds its own files; rebuild the bundle")
        if not path.is_dir() and name not in manifest.files and name != MANIFEST_FILE:
            raise ZipvlError(f"{path}: is not listed in the manifest; remove it or rebuild the bundle")


def _check_file(folder: Path, name: str, entry: FileEntry, *, verify: bool) -> None:
    file = folder / name
    if not file.is_file():
        raise ZipvlError(f"{file}: is missing; the manifest lists it; rebuild the bundle")
    size = file.stat().st_size
    if size != entry.bytes:
        raise ZipvlError(f"{file}: has {size} bytes, the manifest says {entry.bytes}; rebuild the bundle")
    if verify and _sha256(file) != entry.sha256:
        raise ZipvlError(f"{file}: was changed after the build: its SHA-256 does not match; rebuild the bundle")


def _check_runtime(folder: Path, manifest: Manifest) -> None:
    """The engine runtime must be the build's major version and not older than it; for compiled engines, the same."""
    engine = manifest.engine
    backend = BACKENDS[engine.backend]
    try:
        here = importlib.metadata.version(backend.distribution)
    except importlib.metadata.PackageNotFoundError:
        raise ZipvlError(f"{folder}: needs {backend.distribution}; install it: {backend.install}") from None
    if backend.exact and here != engine.backend_version:
        raise ZipvlError(
            f"{folder}: was built with {backend.distribution} {engine.backend_version}, here is {here}; its engines "
            f"load in that version only: install {backend.distribution}=={engine.backend_version} or rebuild the bundle"
        )
    wanted, found = _major_minor(engine.backend_version), _major_minor(here)
    if found[0] != wanted[0] or found < wanted:
        raise ZipvlError(
            f"{folder}: was built with {backend.distribution} {engine.backend_version}, here is {here}; "
            f"install {backend.distribution}>={wanted[0]}.{wanted[1]},<{wanted[0] + 1} or rebuild the bundle"
        )


def _major_minor(version: str) -> tuple[int, int]:
    major, minor, *_ = [int(number) for number in re.findall(r"\d+", version)] + [0, 0]
    return major, minor
