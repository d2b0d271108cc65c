"""Atomic directories: a bundle, or a model of a repository, appears whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.manifest import MANIFEST_FILE

_STAGING = re.compile(r"^\.(?P<name>.+)\.partial-[a-z0-9_]+(?P<old>\.old)?$")
"""A bundle in the making, or (`.old`) the one that it is about to replace."""
_LOOKS = 5


@dataclass(frozen=True)
class Kind:
    """What may be replaced.

    listed: the files of one at a folder, by relative name; None where there is no such thing of ours.
    """

    noun: str
    listed: Callable[[Path], set[str] | None]


def _listed_files(folder: Path) -> set[str] | None:
    """The files of the bundle at `folder`, its manifest included; None where there is no bundle of ours."""
    try:
        body = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or not {"schema_version", "engine", "cache_key", "files"} <= body.keys():
        return None
    return {*body["files"], MANIFEST_FILE} if isinstance(body["files"], dict) else None


BUNDLE = Kind("bundle", _listed_files)


@contextmanager
def staged_directory(out: Path, kind: Kind = BUNDLE) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well and vanishes when it does not.

    An existing bundle (or whatever `kind` says) at `out` is replaced whole; anything else there is refused (InputError)
    and left alone. What killed processes left behind is swept up. A full disk or a missing permission is a one-line
    ZipvlError.
    """
    out = out.resolve()  # what a link points to is replaced, not the link
    check_replaceable(out, kind)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        staging, life = _stage(out)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: cannot be written: {out.parent} is not a directory") from None
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}") from None
    try:
        yield staging
        _sync(staging)
        _replace(out, staging, kind)
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(life)


def check_outside_bundles(out: Path, folder: Path) -> None:
    """InputError about `out` where `folder`, an absolute path, is a bundle of ours or lies in one."""
    for place in (folder, *folder.parents):
        if _listed_files(place) is not None:
            raise InputError(f"{out}: lies inside the bundle {place}; --out takes a place of its own")


def check_replaceable(out: Path, kind: Kind = BUNDLE, aside: Path | None = None) -> None:
    """InputError unless `out`, which may have been put `aside`, is free, an empty directory or a bundle of ours.

    A directory is a bundle only where its manifest is one of ours and names everything in it: files of anybody else
    are never deleted. The same holds for another `kind`.
    """
    place = aside or out
    check_outside_bundles(out, out.parent)
    for look in range(_LOOKS):
        if not (place.exists() or place.is_symlink()):
            return
        if place.is_dir():
            foreign = _foreign_files(place, kind)
            if not foreign:
                return
            problem = f"is a directory with other content ({foreign[0]})"
            message = f"{out}: {problem}; --out takes a new directory or a {kind.noun} to replace"
        else:
            message = f"{out}: is a file; --out names a directory"
        time.sleep(0.02 * look)  # another process may be replacing the bundle under this one's eyes
    raise InputError(message)


def _foreign_files(folder: Path, kind: Kind) -> list[str]:
    """Files of a directory that are not of a thing of ours."""
    try:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    except FileNotFoundError:  # it went away while it was read
        return []
    return sorted(found - (kind.listed(folder) or set()))


def _stage(out: Path) -> tuple[Path, int]:
    """A new directory beside `out` and the lock that proves that its owner lives."""
    while True:
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        with suppress(FileNotFoundError):
            staging.chmod(0o755)
            life = _hold(staging)
            # Another process may have swept it between the two: then its lock was first, or the path is gone.
            if life is not None and staging.exists():
                return staging, life
            if life is not None:
                os.close(life)


def _hold(folder: Path) -> int | None:
    """Lock a directory for as long as this process lives or the descriptor is open; None where it is locked already.

    A lock proves life where a process id does not: containers that share a disk do not share process ids.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(out: Path) -> None:
    """Remove what killed processes left beside `out`; a bundle that one of them had put aside comes back."""
    for candidate in out.parent.iterdir():
        match = _STAGING.match(candidate.name)
        if not match or match["name"] != out.name:
            continue
        with suppress(OSError):  # another process was quicker
            life = _hold(candidate)
            if life is None:
                continue
            try:
                if match["old"] and not out.exists():
                    candidate.rename(out)
                else:
                    shutil.rmtree(candidate, ignore_errors=True)
            finally:
                os.close(life)


def _replace(out: Path, staging: Path, kind: Kind) -> None:
    """Put `staging` in the place of `out`, whatever other processes put there meanwhile."""
    old = staging.with_name(f"{staging.name}.old")
    lives: list[int] = []
    try:
        while True:
            with suppress(FileNotFoundError):
                life = _hold(out)  # the lock goes where the directory goes
                lives += [] if life is None else [life]
                out.rename(old)
                check_replaceable(out, kind, aside=old)
            try:
                staging.rename(out)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            shutil.rmtree(old, ignore_errors=True)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        for life in lives:
            os.close(life)


def _sync(folder: Path) -> None:
    """Everything on disk before the rename makes it visible."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
