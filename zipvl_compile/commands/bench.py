"""zipvl-compile bench ttft|throughput TARGET, bench serving URL|BUNDLE, bench compare A B."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipvl_compile.commands import bench_serving, options
from zipvl_compile.commands.bench_options import Out, Set, Workload, folder_of
from zipvl_compile.commands.bench_output import say_what_is_left, tell
from zipvl_compile.commands.progress import stage_progress, step_progress

if TYPE_CHECKING:
    from zipvl_compile.bench.workload import TTFT, Throughput

app = typer.Typer(help="Measure a bundle or a server by a workload, and compare results.", no_args_is_help=True)
app.command()(bench_serving.serving)

Target = Annotated[str, typer.Argument(help="A bundle's directory; or a recipe, by file or name, to build first.")]
ResultsPath = Annotated[Path, typer.Argument(help="results.json, or the folder that holds it.")]


@app.command()
def ttft(
    target: Target,
    workload: Workload = "ttft",
    out: Out = None,
    overrides: Set = None,
    as_json: options.Json = False,
) -> None:
    """Time to first token of one request alone, by input length: every mode, interleaved."""
    from zipvl_compile.bench.load import load_workload
    from zipvl_compile.bench.workload import TTFT

    _measure(target, load_workload(workload, TTFT, overrides or ()), out, as_json=as_json)


@app.command()
def throughput(
    target: Target,
    workload: Workload = "throughput",
    out: Out = None,
    overrides: Set = None,
    as_json: options.Json = False,
) -> None:
    """The most sequences that one KV budget holds, found by admission, and how fast they decode together."""
    from zipvl_compile.bench.load import load_workload
    from zipvl_compile.bench.workload import Throughput

    _measure(target, load_workload(workload, Throughput, overrides or ()), out, as_json=as_json)


@app.command()
def compare(a: ResultsPath, b: ResultsPath, as_json: options.Json = False) -> None:
    """Two results side by side: the ratio of medians, and whether their intervals overlap."""
    from rich.console import Console

    from zipvl_compile.bench.compare import compare as put_side_by_side
    from zipvl_compile.bench.compare import table
    from zipvl_compile.bench.report import show_table
    from zipvl_compile.bench.results import read_results

    comparison = put_side_by_side(read_results(a), read_results(b))
    if comparison.differs:
        typer.echo(f"warning: A and B differ in {', '.join(comparison.differs)}", err=True)
    if as_json:
        options.print_json(comparison.model_dump(mode="json"))
    else:
        show_table(table(comparison), Console())


def _measure(target: str, workload: TTFT | Throughput, out: Path | None, *, as_json: bool) -> None:
    from zipvl_compile.bench.run import open_for_bench, run
    from zipvl_compile.bundling.pipeline import STEPS

    folder = folder_of(out, workload.name)
    with step_progress(STEPS) as on_step:
        opened = open_for_bench(target, folder, on_step)
    with stage_progress() as report:
        results = run(opened, workload, folder, report, say_what_is_left)
    tell(results, folder, as_json=as_json)
