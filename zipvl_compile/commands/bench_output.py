"""What every `bench` that measures says at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from zipvl_compile.commands import options

if TYPE_CHECKING:
    from zipvl_compile.bench.results import Results


def tell(results: Results, folder: Path, *, as_json: bool) -> None:
    """The results as JSON, or as tables and where they lie."""
    from rich.console import Console

    from zipvl_compile.bench.report import show
    from zipvl_compile.bench.writer import REPORT_FILE

    if as_json:
        options.print_json(results.model_dump(mode="json"))
        return
    show(results, Console())
    typer.echo(f"results: {folder / REPORT_FILE}")


def say_what_is_left(file: Path) -> None:
    """Of a run that did not come to its end."""
    typer.echo(f"note: what was finished until then is in {file}", err=True)
