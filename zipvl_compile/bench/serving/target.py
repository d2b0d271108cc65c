"""What the load goes to: a gateway by its URL, a Triton server, or a bundle that is served for the run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from zipvl_compile.bench.results import Target
from zipvl_compile.bench.serving.server import serving
from zipvl_compile.bench.target import check_forced, describe_bundle
from zipvl_compile.bench.workload import Mode
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.manifest import Manifest

if TYPE_CHECKING:
    from zipvl_compile.bench.serving.clients.base import Client

_VALID = "must be http(s)://HOST:PORT (OpenAI), grpc://HOST:PORT (Triton) or a bundle's folder"


@dataclass(frozen=True)
class Address:
    """Where to send the load.

    engine, settings: of `serve`, for a bundle's folder. model: which one, where a server has several. api_key: of an
    OpenAI-compatible server.
    """

    target: str
    engine: Literal["embedded", "triton"] = "embedded"
    settings: tuple[str, ...] = ()
    model: str | None = None
    api_key: str | None = None

    @property
    def folder(self) -> Path | None:
        """The bundle's folder, where the target is no URL."""
        return None if "://" in self.target else Path(self.target)

    def manifest(self) -> Manifest | None:
        """Of the bundle, where the target is no URL; InputError for one that is neither."""
        if self.folder is None:
            return None
        if not self.folder.is_dir():
            raise InputError(f"{self.target}: no such folder, and no URL; {_VALID}")
        return Bundle.open(self.folder, verify=False).manifest


def check_modes(address: Address, modes: Sequence[Mode]) -> None:
    """InputError for a mode that the target cannot be measured in, as far as it tells before it is asked."""
    if manifest := address.manifest():
        check_forced(manifest, modes)


@contextmanager
def reached(address: Address) -> Iterator[Client]:
    """A client of the target, not yet connected; a bundle is served while the block runs.

    Raises InputError for a target that is none, and what `serve` says where a bundle cannot be served.
    """
    target = address.target
    if address.folder is not None:
        if address.api_key:
            raise InputError("--api-key-file: a bundle that is served for the run asks for no key")
        address.manifest()  # what is no bundle says so without a server
        with serving(address.folder, address.engine, address.settings) as url:
            yield _openai(url, None)
        return
    scheme, place = _split(target)
    if address.settings or address.engine != "embedded":
        raise InputError(f"{target}: a running server keeps its settings; --serve-set and --engine are for a bundle")
    yield _triton(place) if scheme == "grpc" else _openai(target, address.api_key)


def describe(address: Address, model: str) -> Target:
    """What the results say of the target; a running server tells no more than its model's name."""
    protocol = "grpc" if address.target.startswith("grpc://") else "openai http"
    manifest = address.manifest()
    if manifest is None:
        description = {"protocol": protocol}
        return Target(name=model, source=address.target, digest=None, weights="unknown", description=description)
    limits = manifest.limits
    how = {
        "protocol": protocol,
        "engine": address.engine,
        "settings": list(address.settings),
        "kv_bytes": limits.kv_bytes,
        "max_batch": limits.max_batch,
    }
    return describe_bundle(manifest, address.target, how)


def _split(url: str) -> tuple[str, str]:
    """Scheme and HOST:PORT of a URL; InputError for one that no client takes."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"{url}: {error}; {_VALID}") from None
    if parts.scheme not in ("http", "https", "grpc") or not host:
        raise InputError(f"{url}: no address of a server; {_VALID}")
    if parts.path.rstrip("/") not in ("", "/v1") or parts.query or parts.fragment:
        raise InputError(f"{url}: has more than a host and a port; {_VALID}")
    if parts.scheme == "grpc" and port is None:
        raise InputError(f"{url}: has no port; Triton's gRPC port is 8001 unless it was told otherwise")
    return parts.scheme, parts.netloc


def _openai(url: str, api_key: str | None) -> Client:
    _require("httpx", "'.[bench]'")
    from zipvl_compile.bench.serving.clients.openai import OpenAIClient

    return OpenAIClient(url, api_key)


def _triton(address: str) -> Client:
    _require("tritonclient", "'.[serve-triton]'")
    from zipvl_compile.bench.serving.clients.triton import TritonClient

    return TritonClient(address)


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ZipvlError(f"bench serving needs {module}: pip install -e {extra} in the checkout")
