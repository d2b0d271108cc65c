"""config.json of a model's directory, and the other JSON objects beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zipvl_compile.checkpoint.base import CONFIG
from zipvl_serving.errors import InputError, ZipvlError


def read_config(directory: Path, expected: str) -> tuple[dict[str, Any], str]:
    """config.json and the architecture that it names; `expected` says what a directory must hold.

    Raises InputError where there is none, ZipvlError where it is damaged or names no architecture.
    """
    path = directory / CONFIG
    if not path.is_file():
        raise InputError(f"no {CONFIG} in {directory}; expected {expected}")
    config = read_json_object(path)
    match config.get("architectures"):
        case [str(architecture), *_]:
            return config, architecture
        case _:
            raise ZipvlError(f"{path} names no architecture: expected a list of class names in 'architectures'")


def read_json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object; ZipvlError where it cannot be read or holds something else."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ZipvlError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ZipvlError(f"{path} is not valid JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise ZipvlError(f"{path} is damaged: expected a JSON object")
    return value


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
