"""Progress of long work on stderr: a bar on a terminal, a line per step elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def step_progress(steps: Sequence[str], *, quiet: bool = False) -> Iterator[Callable[[str, str], None]]:
    """Yields on_step(step, detail)."""
    console = Console(stderr=True)
    if quiet:
        yield lambda step, detail: None
        return
    if not console.is_terminal:
        yield lambda step, detail: None if detail else print(f"{step} ...", file=sys.stderr, flush=True)
        return
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(steps[0], total=len(steps), detail="")

        def on_step(step: str, detail: str) -> None:
            progress.update(task, description=step, completed=steps.index(step), detail=detail[-60:])

        yield on_step


@contextmanager
def stage_progress() -> Iterator[Callable[[str, int, int, str], None]]:
    """Yields report(stage, step, steps, figures), one bar per stage.

    Nothing is drawn between two reports: a thread that draws would take time from what is measured.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage, step, steps, figures: print(
            f"{stage} {step}/{steps} {figures}", file=sys.stderr, flush=True
        )
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        tasks: dict[str, object] = {}

        def report(stage: str, step: int, steps: int, figures: str) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=steps, figures="")
            progress.update(tasks[stage], completed=step, figures=figures)  # type: ignore[arg-type]
            progress.refresh()

        yield report
