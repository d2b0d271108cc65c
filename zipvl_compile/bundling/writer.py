"""Atomic directories: a bundle appears whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.manifest import MANIFEST_FILE

_STAGING = re.compile(r"^\.(?P<name>.+)\.partial-(?P<pid>\d+)(?P<old>\.old)?$")
"""A bundle in the making, or (`.old`) the one that it is about to replace."""


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well and vanishes when it does not.

    An existing bundle at `out` is replaced whole; anything else there is refused (InputError) and left alone. What
    killed processes left behind is swept up. A full disk or a missing permission is a one-line ZipvlError.
    """
    out = out.resolve()  # what a link points to is replaced, not the link
    check_replaceable(out)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        staging.mkdir()
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: cannot be written: {out.parent} is not a directory") from None
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}") from None
    try:
        yield staging
        _sync(staging)
        _replace(out, staging)
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}; nothing was left behind") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(out: Path, aside: Path | None = None) -> None:
    """InputError unless `out`, which may have been put `aside`, is free, an empty directory or a bundle."""
    place = aside or out
    if (place / MANIFEST_FILE).is_file() or not (place.exists() or place.is_symlink()):
        return
    if not place.is_dir():
        raise InputError(f"{out}: is a file; --out names a directory")
    if any(place.iterdir()) and not (place / MANIFEST_FILE).is_file():
        raise InputError(
            f"{out}: is a directory with other content; --out takes a new directory or a bundle to replace"
        )


def _sweep(out: Path) -> None:
    """Remove what killed processes left beside `out`; a bundle that one of them had put aside comes back."""
    for candidate in out.parent.iterdir():
        match = _STAGING.match(candidate.name)
        if not match or match["name"] != out.name or _runs(int(match["pid"])):
            continue
        if match["old"] and not out.exists():
            with suppress(OSError):  # another process was quicker
                candidate.rename(out)
        else:
            shutil.rmtree(candidate, ignore_errors=True)


def _runs(pid: int) -> bool:
    # This process has staged nothing yet: in a container, where every run may be process 1, it was an earlier one.
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _replace(out: Path, staging: Path) -> None:
    """Put `staging` in the place of `out`, whatever other processes put there meanwhile."""
    old = staging.with_name(f"{staging.name}.old")
    try:
        while True:
            with suppress(FileNotFoundError):
                out.rename(old)
                check_replaceable(out, aside=old)
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


def _sync(folder: Path) -> None:
    """Everything on disk before the rename makes it visible."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
