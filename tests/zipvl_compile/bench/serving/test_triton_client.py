"""The client over gRPC, against a real Triton server over the tiny bundle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import refusal
from helpers.load import workload

from zipvl_compile.bench.serving.clients.triton import TritonClient
from zipvl_compile.bench.serving.sweep import Sweep, sweep
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError, UnavailableError
from zipvl_serving.triton.repository import write_repository
from zipvl_serving.triton.server import TritonServer


@pytest.fixture(scope="module")
def server(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = write_repository(Bundle.open(tiny_bundle), tmp_path_factory.mktemp("triton") / "repository", {}).parent
    made = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0)
    made.start()
    yield made
    made.stop(5)


def ignore(*told: object) -> None: ...


def run_sweep(address: str, model: str | None = None, **changes: Any) -> Sweep:
    return asyncio.run(sweep(TritonClient(address), workload(**changes), model, ignore, ignore))


def test_a_sweep_knows_the_tokens_of_every_piece(server: TritonServer) -> None:
    done = run_sweep(server.grpc_address, requests=6, new_tokens={"low": 5})
    assert all(cell.facts["requests_ended"] == 6 and cell.facts["requests_short"] == 0 for cell in done.cells)
    assert '"counts":[' in done.exchanges[0] and '"tokens":5' in done.exchanges[0]
    dense, tau = done.cells
    assert dense.facts["ratio_per_layer"] == [1.0, 1.0] != tau.facts["ratio_per_layer"]


def test_a_refusal_is_the_servers_own(server: TritonServer) -> None:
    with refusal(InputError, "the first request (20 images, 3 tokens, dense) failed", "tokens"):
        run_sweep(server.grpc_address, images={"low": 20})


def test_a_model_that_is_not_there_is_named(server: TritonServer) -> None:
    with refusal(InputError, "serves no model 'tniy'; did you mean 'tiny'?"):
        run_sweep(server.grpc_address, model="tniy")


def test_no_server_is_one_line() -> None:
    with refusal(UnavailableError, "grpc://127.0.0.1:1: no server answers"):
        run_sweep("127.0.0.1:1")
