"""Options that several commands share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Recipe = Annotated[str, typer.Argument(help="Recipe file, or the name of one that ships with the package.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. zipvl.tau=0.96.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
BundlePath = Annotated[Path, typer.Argument(help="A bundle, as `build` leaves it.")]
Images = Annotated[list[Path] | None, typer.Option("--image", help="An image file; repeat for several, in order.")]
Tau = Annotated[float | None, typer.Option(help="Attention mass to retain per layer, (0, 1]; default: the bundle's.")]
RatioMin = Annotated[
    float | None, typer.Option(help="Floor on the share of tokens chosen per layer, 0 to 1; forced tokens come on top.")
]
RatioMax = Annotated[
    float | None,
    typer.Option(help="Ceiling on the share of tokens chosen per layer, 0 to 1; forced tokens come on top."),
]
Dense = Annotated[bool, typer.Option("--dense", help="Keep every token: full attention on the same engine.")]
ProbeSeed = Annotated[int | None, typer.Option(help="Seed of the random probe tokens; default: the bundle's.")]
Raw = Annotated[bool, typer.Option("--raw", help="Take the prompt as the model sees it: no chat template.")]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2))
