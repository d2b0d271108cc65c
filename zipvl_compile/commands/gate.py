"""zipvl-compile gate deterministic|paired|baseline|all|self-test, gate update deterministic|baseline"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zipvl_compile.commands import options
from zipvl_compile.commands.progress import stage_progress
from zipvl_compile.gate.errors import ENVIRONMENT, BaselineMissingError, GateError, as_gate_error
from zipvl_serving.errors import InputError, ZipvlError

if TYPE_CHECKING:
    from zipvl_compile.gate.paired import Plan
    from zipvl_compile.gate.process import Clock as ClockName
    from zipvl_compile.gate.report import Report

EXIT_CODES = "Exit codes: 0 pass; 1 regression; 2 usage or environment; 3 inconclusive; 4 baseline missing."
app = typer.Typer(help=f"Keep figures from regressing (docs/gates.md). {EXIT_CODES}", no_args_is_help=True)
update = typer.Typer(
    help="Pin new baselines, each with the reason for it; nothing else ever does.", no_args_is_help=True
)
app.add_typer(update, name="update")

Bundle = Annotated[Path | None, typer.Argument(help="A bundle of this checkout; default: builds `digits` for a while.")]
Baseline = Annotated[Path | None, typer.Option(help="The baseline's file; default: that in benchmarks/baselines.")]
Reason = Annotated[str, typer.Option(help="Why the baseline changes; kept in its history.")]
Base = Annotated[str | None, typer.Option(metavar="REV", help="The git revision to compare with.")]
BaseDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Its exported tree, where there is no git history.")]
Figures = Annotated[str, typer.Option(help="Of ttft, prefill, decode, dense; separated by commas.")]
Lengths = Annotated[str, typer.Option(help="Prompt lengths in tokens; separated by commas.")]
Tolerance = Annotated[float, typer.Option(help="Share of slowdown that is let pass.")]
Rounds = Annotated[int, typer.Option(help="Pairs of samples to begin with.")]
MaxRounds = Annotated[int, typer.Option(help="Pairs to double up to while a figure is undecided.")]
Recipe = Annotated[str, typer.Option("--bundle-recipe", help="The recipe that both revisions build.")]
Threads = Annotated[int, typer.Option(min=0, help="Threads of the engine; 0 is all cores.")]
NewTokens = Annotated[int, typer.Option(min=2, help="Tokens of each answer, for the decode figure.")]
Clock = Annotated[str, typer.Option(help="Judge by `wall`, or by `cpu`, processor time, for busy machines.")]
Out = Annotated[Path | None, typer.Option(help="Folder for junit.xml, summary.md and results.json.")]
Annotations = Annotated[
    bool | None,
    typer.Option("--annotations/--no-annotations", help="GitHub annotations on stdout; default: in GitHub Actions."),
]


@app.command(epilog=EXIT_CODES)
def deterministic(
    bundle: Bundle = None, baseline: Baseline = None, out: Out = None, annotations: Annotations = None
) -> None:
    """Figures that repeat exactly, against the committed ones: any change fails, a gain as well."""
    with _environment(out):
        from zipvl_compile.gate.run import run_deterministic

        _finish(run_deterministic(bundle, baseline), out, annotations)


@app.command(epilog=EXIT_CODES)
def paired(
    base: Base = None,
    base_dir: BaseDir = None,
    figures: Figures = "ttft,decode",
    lengths: Lengths = "256,1024",
    tolerance: Tolerance = 0.05,
    rounds: Rounds = 40,
    max_rounds: MaxRounds = 320,
    recipe: Recipe = "digits",
    overrides: options.Set = None,
    threads: Threads = 0,
    new_tokens: NewTokens = 16,
    clock: Clock = "wall",
    out: Out = None,
    annotations: Annotations = None,
) -> None:
    """Times of this checkout against those of a base revision, built and run side by side in ABBA order."""
    if (base is None) == (base_dir is None):
        raise InputError("gate paired: name what to compare with: either --base REV or --base-dir DIR")
    with _environment(out), _rounds() as on_round:
        from zipvl_compile.gate.run import Timed, run_paired

        plan = _plan(figures, lengths, tolerance, rounds=rounds, max_rounds=max_rounds, clock=clock)
        timed = Timed(threads, new_tokens)
        report = run_paired(plan, timed, base, base_dir, recipe, overrides or (), on_round)
        _finish(report, out, annotations)


@app.command(epilog=EXIT_CODES)
def baseline(
    bundle: Bundle = None,
    file: Annotated[Path | None, typer.Option("--baseline", help="Its file; default: this machine class's.")] = None,
    tolerance: Tolerance = 0.2,
    out: Out = None,
    annotations: Annotations = None,
) -> None:
    """Times against the pinned baseline of this machine class, in units of a matrix product timed beside them."""
    with _environment(out), _rounds() as on_round:
        from zipvl_compile.gate.run import run_pinned

        _finish(run_pinned(bundle, file, tolerance, on_round), out, annotations)


@app.command("all", epilog=EXIT_CODES)
def run_all(
    base: Base = None,
    base_dir: BaseDir = None,
    figures: Figures = "ttft,decode",
    lengths: Lengths = "256,1024",
    tolerance: Tolerance = 0.05,
    rounds: Rounds = 40,
    max_rounds: MaxRounds = 320,
    threads: Threads = 0,
    new_tokens: NewTokens = 16,
    clock: Clock = "wall",
    with_pinned: Annotated[bool, typer.Option("--pinned/--no-pinned", help="Whether the pinned gate runs.")] = True,
    out: Out = None,
    annotations: Annotations = None,
) -> None:
    """The deterministic gate, the paired one where a base is named, and the pinned one but with --no-pinned."""
    if base is not None and base_dir is not None:
        raise InputError("gate all: --base and --base-dir name two bases; leave one out")
    with _environment(out), _rounds() as on_round:
        from zipvl_compile.gate.run import Timed, run_all

        plan = _plan(figures, lengths, tolerance, rounds=rounds, max_rounds=max_rounds, clock=clock)
        timed = Timed(threads, new_tokens)
        _finish(run_all(plan, timed, base, base_dir, on_round, with_pinned=with_pinned), out, annotations)


@app.command("self-test", epilog=EXIT_CODES)
def self_test(
    bundle: Bundle = None,
    threads: Threads = 0,
    clock: Clock = "wall",
    out: Out = None,
    annotations: Annotations = None,
) -> None:
    """Test the gate: the same sources twice must pass, and a TTFT that is 10 % slower must be a regression."""
    with _environment(out), _rounds() as on_round:
        from zipvl_compile.gate.run import run_self_test

        _finish(run_self_test(bundle, threads, _clock(clock), on_round), out, annotations)


@update.command("deterministic", epilog=EXIT_CODES)
def update_deterministic(reason: Reason, bundle: Bundle = None, baseline: Baseline = None) -> None:
    """Write the figures of this checkout as the ones to come to."""
    with _environment():
        from zipvl_compile.gate.run import update_deterministic as run

        path, found = run(bundle, baseline, reason)
    _show_update(path, len(found.figures), len(found.history[-1].replaced))


@update.command("baseline", epilog=EXIT_CODES)
def update_baseline(
    reason: Reason,
    bundle: Bundle = None,
    file: Annotated[Path | None, typer.Option("--baseline", help="Its file; default: this machine class's.")] = None,
    figures: Figures = "ttft,decode",
    lengths: Lengths = "256,1024",
    rounds: Rounds = 60,
    threads: Threads = 0,
    new_tokens: NewTokens = 16,
    clock: Clock = "wall",
) -> None:
    """Measure this machine and pin its times for its class."""
    with _environment(), _rounds() as on_round:
        from zipvl_compile.gate.run import Timed, update_pinned

        plan = _plan(figures, lengths, rounds=rounds, max_rounds=2 * rounds, clock=clock)
        path, found = update_pinned(bundle, file, plan, Timed(threads, new_tokens), reason, on_round)
    _show_update(path, len(found.samples), len(found.history[-1].replaced))


@contextmanager
def _environment(out: Path | None = None) -> Iterator[None]:
    """Exit code 1 says that something regressed; whatever else goes wrong in a gate is the environment's, 2.

    The folder of reports is made before anything is measured.
    """
    try:
        if out:
            from zipvl_compile.gate.report_files import clear

            clear(out)
        yield
    except (InputError, BaselineMissingError, GateError):
        raise
    except Exception as error:
        if type(error).__module__.startswith(("click", "typer")):
            raise
        raise as_gate_error(error) from error


@contextmanager
def _rounds() -> Iterator[Callable[[int, int], None]]:
    """Yields on_round(done, planned): a bar, or a line for every fourth of the rounds."""
    with stage_progress() as report:
        yield lambda done, planned: report("rounds", done, planned, "") if done % max(1, planned // 4) == 0 else None


def _plan(figures: str, lengths: str, tolerance: float = 0.05, *, rounds: int, max_rounds: int, clock: str) -> Plan:
    from zipvl_compile.gate.paired import Plan

    try:
        tokens = tuple(int(length) for length in lengths.split(","))
    except ValueError:
        raise InputError(f"--lengths: {lengths!r} is no list; must be token counts such as 256,1024") from None
    names = tuple(figure.strip() for figure in figures.split(","))
    return Plan(names, tokens, tolerance, rounds, max_rounds, _clock(clock))


def _clock(name: str) -> ClockName:
    from zipvl_compile.gate.process import CLOCKS

    for known in CLOCKS:
        if name == known:
            return known
    raise InputError(f"--clock: {name!r} is no clock; valid: {', '.join(CLOCKS)}")


def _finish(report: Report, out: Path | None, annotations: bool | None) -> None:
    """Print the report, leave its files, and exit with its code; where they cannot be left, a pass becomes 2."""
    from zipvl_compile.gate import report_files

    for section, cases in report.sections.items():
        for case in cases:
            if case.outcome != "passed" or section != "deterministic":
                typer.echo(f"{case.outcome}: {section}: {case.figure}: {case.message}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    typer.echo(report.headline())
    if os.environ.get("GITHUB_ACTIONS") == "true" if annotations is None else annotations:
        for line in report_files.workflow_commands(report):
            typer.echo(line)
    code = report.exit_code
    try:
        if out:
            report_files.write_reports(report, out)
        report_files.append_step_summary(report)
    except ZipvlError as error:
        typer.echo(f"error: {error}", err=True)
        code = code or ENVIRONMENT
    raise typer.Exit(code)


def _show_update(path: Path, figures: int, replaced: int) -> None:
    typer.echo(f"pinned: {path} ({figures} figures, {replaced} of them changed)")
