"""Atomic directories: a bundle appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.manifest import MANIFEST_FILE

_STAGING = re.compile(r"^\.(?P<name>.+)\.partial-(?P<pid>\d+)$")


@contextmanager
def staged_directory(out: Path) -> Iterator[Path]:
    """A fresh directory beside `out` that takes its place when the block ends well and vanishes when it does not.

    An existing bundle at `out` is replaced whole; anything else there is refused (InputError) and left alone. What
    killed processes left behind is swept up. A full disk or a missing permission is a one-line ZipvlError.
    """
    out = out.absolute()
    check_replaceable(out)
    staging = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        staging.mkdir()
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


def check_replaceable(out: Path) -> None:
    """InputError unless `out` is free, an empty directory or a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise InputError(f"{out}: is a file; --out names a directory")
    if any(out.iterdir()) and not (out / MANIFEST_FILE).is_file():
        raise InputError(
            f"{out}: is a directory with other content; --out takes a new directory or a bundle to replace"
        )


def _sweep(out: Path) -> None:
    """Remove staging directories of processes that no longer run."""
    for candidate in out.parent.iterdir():
        match = _STAGING.match(candidate.name)
        if match and match["name"] == out.name and not Path(f"/proc/{match['pid']}").exists():
            shutil.rmtree(candidate, ignore_errors=True)


def _replace(out: Path, staging: Path) -> None:
    if not out.exists():
        staging.rename(out)
        return
    old = out.parent / f".{out.name}.replaced.partial-{os.getpid()}"
    out.rename(old)
    try:
        staging.rename(out)
    except OSError:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Everything on disk before the rename makes it visible."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
