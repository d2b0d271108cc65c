"""--set NAME=VALUE: settings of serving, as `package` and `serve` take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from zipvl_serving.errors import InputError

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of serving, e.g. max_waiting=64."),
]


def parse_settings(given: Iterable[str] | None) -> dict[str, str]:
    """Names and values as they were given; InputError for a text without a name or a '='."""
    settings = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise InputError(f"--set {text}: NAME=VALUE was expected, e.g. max_waiting=64")
        settings[name] = value
    return settings
