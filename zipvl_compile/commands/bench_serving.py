"""zipvl-compile bench serving URL|BUNDLE"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zipvl_compile.commands import options
from zipvl_compile.commands.bench_options import Out, Set, Workload, folder_of
from zipvl_compile.commands.bench_output import say_what_is_left, tell
from zipvl_compile.commands.progress import stage_progress
from zipvl_compile.commands.serve import EngineKind
from zipvl_compile.commands.settings import parse_settings

Target = Annotated[
    str,
    typer.Argument(
        metavar="URL|BUNDLE",
        help="http(s)://HOST:PORT of an OpenAI-compatible server, grpc://HOST:PORT of Triton, or a bundle to serve.",
    ),
]


def serving(
    target: Target,
    workload: Workload = "serving",
    out: Out = None,
    overrides: Set = None,
    engine: Annotated[EngineKind, typer.Option(help="Of a bundle: behind its gateway.")] = EngineKind.EMBEDDED,
    settings: Annotated[
        list[str] | None,
        typer.Option("--serve-set", metavar="NAME=VALUE", help="Of a bundle: a setting of serving, max_waiting=64."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which model, where the server has several.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file whose first line is the server's API key.")] = None,
    as_json: options.Json = False,
) -> None:
    """Latency, throughput and goodput of a server under load: every mode, interleaved."""
    from zipvl_compile.bench.load import load_workload
    from zipvl_compile.bench.serving.run import run
    from zipvl_compile.bench.serving.target import Address
    from zipvl_compile.bench.workload import ServingLoad

    load = load_workload(workload, ServingLoad, overrides or ())
    folder = folder_of(out, load.name)
    parse_settings(settings)
    key = None
    if api_key_file:
        from zipvl_serving.gateway.auth import read_keys

        key = read_keys(api_key_file)[0]
    address = Address(target, engine.value, tuple(settings or ()), model, key)
    with stage_progress() as report:
        results = run(address, load, folder, report, say_what_is_left)
    tell(results, folder, as_json=as_json)
