"""zipvl-compile package BUNDLE --out REPO"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from zipvl_compile.commands import options
from zipvl_compile.commands.settings import Settings, parse_settings
from zipvl_serving.errors import InputError


def package(
    bundle: options.BundlePath,
    out: Annotated[Path, typer.Option(metavar="REPO", help="The model repository: a new directory, or one to add to.")],
    settings: Settings = None,
    as_json: options.Json = False,
) -> None:
    """Put a bundle into a Triton model repository; a model of the same name there is replaced."""
    from zipvl_compile.bundling.writer import Kind, staged_directory
    from zipvl_serving.bundle import Bundle
    from zipvl_serving.triton.repository import model_files, model_name, models, write_model

    overrides = parse_settings(settings)
    opened = Bundle.open(bundle)
    opened.manifest.serving.override(overrides)
    name = model_name(opened)
    if opened.path.resolve().is_relative_to((out / name).resolve()):
        raise InputError(f"{out / name}: would replace the bundle itself; --out takes another place")
    is_new = not out.exists()
    if not is_new and (out.is_file() or any(out.iterdir())):
        models(out)  # refuses what is no repository of ours
    try:
        with staged_directory(out / name, Kind("model of the same name", model_files)) as staging:
            write_model(opened, staging, overrides)
    except BaseException:
        if is_new:
            with suppress(OSError):
                out.rmdir()
        raise
    if as_json:
        options.print_json({"repository": str(out), "model": name, "settings": overrides})
        return
    typer.echo(f"packaged: {out / name}; serve it: zipvl-compile serve {out} --engine triton")
