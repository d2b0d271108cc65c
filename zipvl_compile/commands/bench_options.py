"""Options that every `bench` which measures has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Workload = Annotated[str, typer.Option("--workload", help="Workload file, or the name of one in recipes/bench.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the results; default: build/bench/WORKLOAD.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a workload key, e.g. rounds=3.")
]


def folder_of(out: Path | None, workload: str) -> Path:
    """Where the results of a workload go."""
    return out or Path("build") / "bench" / workload
