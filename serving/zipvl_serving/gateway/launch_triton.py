"""The gateway in front of a Triton server of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.gateway.backends.base import ModelInfo
from zipvl_serving.gateway.backends.triton import TritonBackend
from zipvl_serving.gateway.launch import GatewayOptions, Voice, check_end, is_exposed, run_gateway
from zipvl_serving.gateway.server import bind
from zipvl_serving.gateway.sources import Source, find_source
from zipvl_serving.triton.repository import write_repository
from zipvl_serving.triton.server import TritonServer


@dataclass(frozen=True)
class TritonPorts:
    """Where the Triton server listens; 0 takes a free port."""

    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002


def serve_triton(
    path: Path, settings: Mapping[str, str], options: GatewayOptions, ports: TritonPorts, voice: Voice
) -> None:
    """Serve a bundle or a repository of one model through a Triton server until a signal ends it.

    A bundle is linked into a temporary repository; a repository is served as it is. The gateway stops first, then
    the server. Raises as `serve_embedded`, and InputError for `settings` beside a repository.
    """
    with bind(options.host, options.port) as listening, tempfile.TemporaryDirectory(prefix="zipvl-serve-") as scratch:
        source = find_source(path)
        if source.model and settings:
            raise InputError(f"--set: {path} is served as it was packaged; set {next(iter(settings))} in `package`")
        bundle = Bundle.open(source.bundle)
        config = bundle.manifest.serving.override({**source.settings, **settings})
        repository = _repository(source, bundle, settings, Path(scratch))
        triton = TritonServer(repository, host=options.host, log=voice.log, **asdict(ports))
        if is_exposed(listening):
            voice.warn(f"Triton's own ports are open on {options.host} too, and never ask for an API key")
        try:
            triton.start(options.startup_s)
            model = replace(ModelInfo.of(bundle.manifest), name=triton.models[0])
            backend = TritonBackend(model, triton.grpc_address, triton.metrics_address, triton.health)
            server = run_gateway(backend, bundle, listening, options, voice, config.drain_s, _endpoints(triton))
            if not server.hurried:
                # Clients of Triton itself have the rest of the time.
                triton.stop(server.seconds_left + _END_S)
        finally:
            triton.stop(0)
    check_end(server, config.drain_s)


_END_S = 5.0
"""What a server without work takes to end."""


def _repository(source: Source, bundle: Bundle, settings: Mapping[str, str], scratch: Path) -> Path:
    """A repository that holds this model and no other."""
    if source.model is None:
        write_repository(bundle, scratch, settings, link=True)
    else:
        (scratch / source.model.name).symlink_to(source.model.resolve(), target_is_directory=True)
    return scratch


def _endpoints(triton: TritonServer) -> dict[str, str]:
    return {
        "triton http": f"http://{triton.http_address}",
        "triton grpc": triton.grpc_address,
        "triton metrics": f"http://{triton.metrics_address}/metrics",
    }
