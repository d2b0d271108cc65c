"""zipvl-compile serve BUNDLE|REPO"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from zipvl_compile.commands.settings import Settings, parse_settings
from zipvl_serving.errors import InputError, ZipvlError


class EngineKind(StrEnum):
    """Who steps the requests."""

    EMBEDDED = "embedded"
    TRITON = "triton"


_EXTRAS = {EngineKind.EMBEDDED: "serve", EngineKind.TRITON: "serve-triton"}
_MODULES = {
    EngineKind.EMBEDDED: ("fastapi", "uvicorn", "prometheus_client"),
    EngineKind.TRITON: ("fastapi", "uvicorn", "prometheus_client", "tritonclient", "grpc"),
}
"""What an engine imports of its extra."""


TRITON_PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}


def _port(text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(min=0, max=65535, metavar="PORT", help=text)
    return option


def serve(
    source: Annotated[
        Path, typer.Argument(metavar="BUNDLE|REPO", help="A bundle, or a model repository as `package` leaves it.")
    ],
    engine: Annotated[
        EngineKind, typer.Option(help="embedded: in this process; triton: in a Triton server beside it.")
    ] = EngineKind.EMBEDDED,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int | None, _port("Triton's HTTP port; default 8000.")] = None,
    grpc_port: Annotated[int | None, _port("Triton's gRPC port; default 8001.")] = None,
    metrics_port: Annotated[int | None, _port("Triton's metrics port; default 8002.")] = None,
    gateway_port: Annotated[int, _port("The OpenAI-compatible API; 0 takes a free port.")] = 9000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file of API keys, one per line; without it anyone may ask.")
    ] = None,
    settings: Settings = None,
    max_body_mb: Annotated[int, typer.Option(min=1, help="MiB that the body of a request may have.")] = 64,
    startup_timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="How long the model may take to load, and to answer first.")
    ] = 120,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Pass on what Triton prints, on stderr.")] = False,
) -> None:
    """Serve a bundle: an OpenAI-compatible API over the embedded engine or a Triton server."""
    ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    named = {name: port for name, port in ports.items() if port is not None}
    if engine is EngineKind.EMBEDDED and named:
        option = next(iter(named)).replace("_", "-")
        raise InputError(f"--{option}: only Triton has this port: add --engine triton, or leave it out")
    if engine is EngineKind.TRITON:
        _require_different(TRITON_PORTS | named | {"gateway_port": gateway_port})
    overrides = parse_settings(settings)
    _require_modules(engine)

    from zipvl_serving.gateway import auth, launch

    keys = auth.read_keys(api_key_file) if api_key_file else ()
    if api_key_file and auth.is_world_readable(api_key_file):
        _warn(f"{api_key_file}: every user of this machine can read the API keys; chmod o-r would end that")
    gateway = launch.GatewayOptions(host, gateway_port, keys, max_body_mb << 20, startup_timeout)
    voice = launch.Voice(typer.echo, _warn, sys.stderr if verbose else None)
    if engine is EngineKind.EMBEDDED:
        launch.serve_embedded(source, overrides, gateway, voice)
    else:
        from zipvl_serving.gateway import launch_triton

        launch_triton.serve_triton(source, overrides, gateway, launch_triton.TritonPorts(**named), voice)


def _require_different(ports: Mapping[str, int]) -> None:
    taken: dict[int, str] = {}
    for name, port in ports.items():
        option = "--" + name.replace("_", "-")
        if port and port in taken:
            raise InputError(f"{option}: {port} is {taken[port]} as well; each needs a port of its own")
        taken[port] = option


def _require_modules(engine: EngineKind) -> None:
    missing = [name for name in _MODULES[engine] if importlib.util.find_spec(name) is None]
    if missing:
        raise ZipvlError(f"serve needs {', '.join(missing)}: pip install -e '.[{_EXTRAS[engine]}]' in the checkout")


def _warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)
