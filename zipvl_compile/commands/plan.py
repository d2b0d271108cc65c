"""zipvl-compile plan RECIPE"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipvl_compile.commands import options

if TYPE_CHECKING:
    from zipvl_compile.planning.figures import Plan


_TABLE_WIDTH = 104
"""Columns, also where a pipe or a narrow terminal has fewer: a number cut short is worse than a wrapped line."""


def plan(
    recipe: options.Recipe,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A GPU such as a100-80gb or h200, or cpu; default: the recipe's target."),
    ] = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option("--ratio", help="Share of tokens kept, repeatable; default: the one forced, else .37 and .5."),
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(help="Input length, repeatable; default: the recipe's longest and its halves.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Most sequences together in the figures of speed; default: all that are admitted."),
    ] = None,
    kv_bytes: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="A page pool such as 2GiB; default: the recipe's limits.kv_bytes."),
    ] = None,
    overrides: options.Set = None,
    out: Annotated[
        Path | None, typer.Option(help="Directory for plan.json, plan.md, plan.png and plan.svg.", metavar="DIR")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Predict memory, maximum batch, TTFT and throughput of a recipe before any build, from config.json alone."""
    from zipvl_compile.planning.planner import Choices, chosen_device
    from zipvl_compile.planning.planner import plan as make_plan
    from zipvl_compile.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    choices = Choices(gpu, ratios or (), tokens or (), batch, _size(kv_bytes))
    choices.check()
    chosen_device(loaded.recipe, gpu)  # what is misspelt shows before torch is imported

    from zipvl_compile.planning.subject import read_subject

    made = make_plan(loaded.recipe, read_subject(loaded), choices)
    if out is not None:
        from zipvl_compile.planning.write import write_plan

        write_plan(made, out)
    if as_json:
        options.print_json(made.model_dump(mode="json"))
        return
    _show(made)
    if out is not None:
        typer.echo(f"written: {out}")


def _size(text: str | None) -> int | None:
    from zipvl_compile.recipe.schema import parse_size
    from zipvl_serving.errors import InputError

    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise InputError(f"--kv-bytes: {error}") from None


def _show(made: Plan) -> None:
    from rich.console import Console
    from rich.table import Table

    from zipvl_compile.planning.table import HEADER, MODE_HEADER, cells, mode_cells, summary

    console = Console(highlight=False, width=max(Console().width, _TABLE_WIDTH))
    for line in summary(made):
        console.print(line, markup=False, soft_wrap=True)
    for header, rows in ((MODE_HEADER, map(mode_cells, made.modes)), (HEADER, map(cells, made.rows))):
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, justify="left" if name in ("mode", "bounded by") else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        console.print()
        console.print(table)
    console.print()
    for line in made.limits:
        console.print(f"does not fit: {line}", markup=False, soft_wrap=True)
    for note in made.notes:
        console.print(f"- {note}", markup=False, soft_wrap=True)
