"""Results as Markdown and on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable

from zipvl_compile.bench.results import Results
from zipvl_compile.bench.tables import Table, environment_rows, tables


def markdown(results: Results, pictures: list[str]) -> str:
    """The whole report; pictures: names of image files beside it."""
    target = results.target
    lines = [f"# {results.kind}: {results.name} on {target.name}", ""]
    lines += [f"- {note}" for note in results.notes] + ([""] if results.notes else [])
    for table in tables(results):
        lines += [f"## {table.title}", *_rows(table), ""]
    lines += [f"![{name.rsplit('.', 1)[0]}]({name})" for name in pictures] + ([""] if pictures else [])
    lines += ["## Where", *_rows(Table("", ["", ""], [list(row) for row in environment_rows(results.environment)])), ""]
    described = {"source": target.source, "manifest": target.digest, "weights": target.weights, **target.description}
    lines += ["## Target", *_rows(Table("", ["", ""], [list(row) for row in environment_rows(described)])), ""]
    lines += [
        "Medians with 95 % bootstrap intervals; `[low, high] of n` is the range of n samples, too few for an interval. "
        "Gains are medians of paired samples. Raw samples: results.json."
    ]
    return "\n".join(lines) + "\n"


def show(results: Results, console: Console) -> None:
    """Print the tables and notes."""
    for table in tables(results):
        show_table(table, console)
    for note in results.notes:
        console.print(f"note: {note}", markup=False, highlight=False)


def show_table(table: Table, console: Console) -> None:
    shown = RichTable(title=table.title, title_justify="left")
    for at, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if at == 0 else "right")
    for row in table.rows:
        shown.add_row(*row)
    console.print(shown)


def _rows(table: Table) -> list[str]:
    cells = [table.columns, ["---"] * len(table.columns), *table.rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
