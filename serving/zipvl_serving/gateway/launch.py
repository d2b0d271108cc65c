"""Puts engine, gateway and socket together, and takes them apart in the right order."""

from __future__ import annotations

import errno
import ipaddress
import resource
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import ZipvlError
from zipvl_serving.gateway.app import DEFAULT_MAX_BODY_MIB, create_app
from zipvl_serving.gateway.backends.base import Backend
from zipvl_serving.gateway.backends.embedded import EmbeddedBackend
from zipvl_serving.gateway.limits import MIB
from zipvl_serving.gateway.server import STARTUP_S, GatewayServer, bind
from zipvl_serving.gateway.sources import find_source
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.prompts.prompt import PromptProcessor

_FILES = 65536


@dataclass(frozen=True)
class GatewayOptions:
    """Where the gateway listens, whom it lets in, and how long the engine may take to answer first.

    Port 0 takes a free one.
    """

    host: str = "127.0.0.1"
    port: int = 9000
    api_keys: tuple[str, ...] = ()
    max_body_bytes: int = DEFAULT_MAX_BODY_MIB * MIB
    startup_s: float = STARTUP_S


@dataclass(frozen=True)
class Voice:
    """How a server speaks to whoever started it.

    ready: gets a line per endpoint, "name: where it is", once the model answers. warn: gets a line per doubt. log:
    takes what a Triton server prints, if anything does.
    """

    ready: Callable[[str], None]
    warn: Callable[[str], None]
    log: IO[str] | None = None


def serve_embedded(path: Path, settings: Mapping[str, str], options: GatewayOptions, voice: Voice) -> None:
    """Serve a bundle, or the one in a repository, with the engine in this process until a signal ends it.

    `settings` override those of the repository, which override the bundle's. Raises InputError for a wrong setting,
    ZipvlError where a port is taken, the bundle is damaged, or answers had to be cut off at the end, and
    KeyboardInterrupt where a second SIGINT was the end.
    """
    with bind(options.host, options.port) as listening:
        source = find_source(path)
        bundle = Bundle.open(source.bundle)
        config = bundle.manifest.serving.override({**source.settings, **settings})
        backend = EmbeddedBackend(Engine(bundle, config))
        server = run_gateway(backend, bundle, listening, options, voice, config.drain_s)
    check_end(server, config.drain_s)


def run_gateway(
    backend: Backend,
    bundle: Bundle,
    listening: socket.socket,
    options: GatewayOptions,
    voice: Voice,
    drain_s: float,
    endpoints: Mapping[str, str] | None = None,
) -> GatewayServer:
    """Serve a backend until a signal ends it, close it, and return the server that has ended.

    `endpoints` are other ways in, to be announced as well.
    """
    address, port = listening.getsockname()[:2]
    if not options.api_keys and is_exposed(listening):
        voice.warn(f"{options.host} is reachable from other machines and no --api-key-file was given: anyone may ask")
    _allow_many_connections()
    host = f"[{address}]" if ":" in address else address
    gateway = {"gateway": f"http://{host}:{port}/v1 (model {backend.model.name})"}

    def announce() -> None:
        for name, where in {**gateway, **(endpoints or {})}.items():
            voice.ready(f"{name}: {where}")

    texts = TokenTexts(PromptProcessor(bundle.processor_folder).tokenizer)
    app = create_app(backend, texts, api_keys=options.api_keys, max_body_bytes=options.max_body_bytes)
    server = GatewayServer(app, backend, startup_s=options.startup_s, drain_s=drain_s, on_ready=announce)
    try:
        server.run(sockets=[listening])
    except OSError as error:  # another process that had bound it as well was quicker to listen
        if error.errno != errno.EADDRINUSE:
            raise
        raise ZipvlError(f"port {port} of {host} was taken by another server; choose another one") from None
    return server


def is_exposed(listening: socket.socket) -> bool:
    """Whether other machines can reach the address of a bound socket."""
    address: str = listening.getsockname()[0]
    return not ipaddress.ip_address(address.partition("%")[0]).is_loopback


def check_end(server: GatewayServer, drain_s: float) -> None:
    """Raises KeyboardInterrupt or ZipvlError where the server did not end in its own time."""
    if server.hurried:
        raise KeyboardInterrupt
    if server.cut:
        raise ZipvlError(f"{server.cut} answers had not ended {drain_s:g} s after the signal and were cut off")


def _allow_many_connections() -> None:
    """Each waiting client is an open file, and the usual limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
