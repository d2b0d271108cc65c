"""zipvl-compile build RECIPE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipvl_compile.commands import options
from zipvl_compile.commands.progress import step_progress


def build(
    recipe: options.Recipe,
    out: Annotated[Path | None, typer.Option(help="The bundle's directory; default: build/NAME.")] = None,
    overrides: options.Set = None,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Reuse and keep finished bundles.")] = True,
    as_json: options.Json = False,
) -> None:
    """Build a recipe into a bundle: export, weights, engines, manifest."""
    from zipvl_compile.bundling.pipeline import STEPS
    from zipvl_compile.bundling.pipeline import build as run
    from zipvl_compile.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    target = out or Path("build") / loaded.recipe.name
    with step_progress(STEPS, quiet=as_json) as on_step:
        result = run(loaded, target, use_cache=cache, on_step=on_step)
    if result.note:
        typer.echo(f"note: {result.note}", err=True)
    if as_json:
        options.print_json(
            {
                "bundle": str(result.bundle),
                "cache_hit": result.cache_hit,
                "cache_key": result.cache_key,
                "seconds": round(result.seconds, 3),
            }
        )
        return
    how = "cache hit" if result.cache_hit else "built"
    typer.echo(f"{how}: {result.bundle} ({result.seconds:.1f} s, key {result.cache_key[:12]})")
