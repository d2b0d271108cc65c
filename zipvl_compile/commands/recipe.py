"""zipvl-compile recipe validate|show|schema|list"""

from __future__ import annotations

import typer

from zipvl_compile.commands import options

app = typer.Typer(help="Check and show recipes.", no_args_is_help=True)


@app.command()
def validate(recipe: options.Recipe, overrides: options.Set = None) -> None:
    """Check a recipe; an error names file, line and key."""
    from zipvl_compile.engines.base import check_target
    from zipvl_compile.recipe.load import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    check_target(loaded.recipe)
    typer.echo(f"valid: {loaded.path} (model: {loaded.model_source})")


@app.command()
def show(recipe: options.Recipe, overrides: options.Set = None, as_json: options.Json = False) -> None:
    """Print a recipe with everything it extends and every default filled in."""
    from zipvl_compile.recipe.load import load_recipe
    from zipvl_compile.recipe.schema import dump_yaml

    loaded = load_recipe(recipe, overrides or ())
    if as_json:
        options.print_json(loaded.recipe.lock())
    else:
        typer.echo(dump_yaml(loaded.recipe), nl=False)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from zipvl_compile.recipe.schema import Recipe

    options.print_json(Recipe.model_json_schema())


@app.command("list")
def list_recipes() -> None:
    """Print the recipes that ship with the package."""
    from zipvl_compile.recipe.source import recipe_names

    for name in recipe_names():
        typer.echo(name)
