"""SHA-256 of large files, remembered from one run to the next."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

_MEMO_FILE = "checkpoint-hashes.json"
_CHUNK = 1 << 20


def hash_files(
    paths: Iterable[Path], memo: Path | None = None, progress: Callable[[int], None] | None = None
) -> dict[Path, str]:
    """The hexadecimal SHA-256 of every file, read in chunks.

    `memo` is a cache directory (made where it lacks): a file whose resolved path, size and mtime are those of an
    earlier run is not read again. Processes may share it; when two write at once one may lose what it learnt, and
    only time with it. `progress` is told the bytes done since its last call, remembered files included.
    """
    known = _read_memo(memo) if memo else {}
    learnt: dict[str, list[object]] = {}
    digests = {}
    for path in paths:
        where, stat = str(path.resolve()), path.stat()  # stat first: a file that changes meanwhile is not remembered
        key = [stat.st_size, stat.st_mtime_ns]
        match known.get(where):
            case [size, mtime, str(digest)] if [size, mtime] == key:
                if progress:
                    progress(stat.st_size)
            case _:
                digest = _sha256(path, progress)
                learnt[where] = [*key, digest]
        digests[path] = digest
    if memo and learnt:
        # The memo saves time and nothing else: a read-only or full cache directory must not stop a build.
        with contextlib.suppress(OSError):
            _write_memo(memo, learnt)
    return digests


def _sha256(path: Path, progress: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            if progress:
                progress(len(chunk))
    return digest.hexdigest()


def _read_memo(directory: Path) -> dict[str, object]:
    """{resolved path: [size, mtime_ns, digest]}; empty where there is none or it is damaged."""
    try:
        memo = json.loads((directory / _MEMO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(directory: Path, learnt: dict[str, list[object]]) -> None:
    """Add `learnt` to the memo as it is now, without files that are gone, and replace it in one step."""
    directory.mkdir(parents=True, exist_ok=True)
    merged = {where: entry for where, entry in _read_memo(directory).items() if Path(where).is_file()} | learnt
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=_MEMO_FILE)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(merged, file, indent=0)
        Path(temporary).replace(directory / _MEMO_FILE)
    except BaseException:
        Path(temporary).unlink()
        raise
