"""The folder that a benchmark leaves: results.json, results.md and pictures, each whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zipvl_compile.bench.results import RESULTS_FILE, Results
from zipvl_compile.bundling.writer import check_outside_bundles
from zipvl_serving.errors import InputError, ZipvlError

PARTIAL_FILE = "partial.json"
"""Results of the points that are finished, while a run lasts; what an interrupted one leaves."""
REPORT_FILE = "results.md"
REQUESTS_FILE = "requests.jsonl"
"""Of serving: every request with the time of every piece of its answer, in seconds from the start of its round."""


def check_folder(out: Path) -> None:
    """Make the folder; InputError where it cannot be one or a bundle has the place, before anything is measured."""
    check_outside_bundles(out, out.resolve())
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise InputError(f"{out}: is not a directory; --out names one, new or old") from None
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}") from None


@contextmanager
def keeping(out: Path, on_left: Callable[[Path], None]) -> Iterator[Callable[[Results], None]]:
    """Yields keep(results), which writes what is finished so far; on_left(file) is told where the block then fails."""
    kept = False

    def keep(results: Results) -> None:
        nonlocal kept
        write_partial(out, results)
        kept = True

    try:
        yield keep
    except BaseException:
        if kept:
            on_left(out / PARTIAL_FILE)
        raise


def write_partial(out: Path, results: Results) -> None:
    """Keep what is finished so far."""
    put_files(out, {PARTIAL_FILE: results.to_json().encode()})


def write_results(out: Path, results: Results, requests: Sequence[str] | None = None) -> list[Path]:
    """Write the whole folder and drop what an earlier or interrupted run left of it; returns the files.

    requests: lines of REQUESTS_FILE; None where there is to be none.
    """
    from zipvl_compile.bench.plots import draw_all, picture_names
    from zipvl_compile.bench.report import markdown

    with tempfile.TemporaryDirectory() as folder:
        drawn = draw_all(results, Path(folder))
        files = {path.name: path.read_bytes() for path in drawn}
    pictures = [path.name for path in drawn if path.suffix == ".png"]
    if requests is not None:
        files[REQUESTS_FILE] = "".join(f"{line}\n" for line in requests).encode()
    files[REPORT_FILE] = markdown(results, pictures).encode()
    files[RESULTS_FILE] = results.to_json().encode()
    put_files(out, files)
    for stale in (picture_names() | {PARTIAL_FILE, REQUESTS_FILE}) - set(files):
        (out / stale).unlink(missing_ok=True)
    return [out / name for name in files]


def put_files(out: Path, files: dict[str, bytes]) -> None:
    """Write all files beside their places, then move each in; the last one, in order, proves the others."""
    staging = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=".partial-", dir=out))
        for name, data in files.items():
            with (staging / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (staging / name).replace(out / name)
    except OSError as error:
        raise ZipvlError(f"{out}: cannot be written: {error.strerror or error}; nothing half-written is left") from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
