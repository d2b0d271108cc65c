"""What a load can be sent to."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from helpers.bundles import refusal

from zipvl_compile.bench.serving.clients.openai import OpenAIClient
from zipvl_compile.bench.serving.clients.triton import TritonClient
from zipvl_compile.bench.serving.target import Address, check_modes, describe, reached
from zipvl_compile.bench.workload import Mode
from zipvl_serving.errors import InputError, ZipvlError


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("nowhere", "nowhere: no such folder, and no URL; must be http(s)://HOST:PORT"),
        ("localhost:9000", "no such folder, and no URL"),
        ("ftp://host:1", "no address of a server"),
        ("http://", "no address of a server"),
        ("http://host:9000/v1/chat/completions", "has more than a host and a port"),
        ("http://host:99999", "Port out of range"),
        ("http://[::1", "Invalid IPv6 URL"),
        ("grpc://host", "has no port"),
    ],
)
def test_what_is_no_target_is_one_line(target: str, part: str) -> None:
    with refusal(InputError, part), reached(Address(target)):
        pass


@pytest.mark.parametrize(
    "address", [Address("http://host:1", engine="triton"), Address("http://host:1", settings=("max_waiting=2",))]
)
def test_a_running_server_takes_no_settings(address: Address) -> None:
    with refusal(InputError, "a running server keeps its settings"), reached(address):
        pass


def test_a_bundle_that_is_served_here_takes_no_key(tmp_path: Path) -> None:
    with refusal(InputError, "asks for no key"), reached(Address(str(tmp_path), api_key="alpha")):
        pass


@pytest.mark.parametrize(
    ("target", "kind"),
    [("http://host:1/v1", OpenAIClient), ("https://host", OpenAIClient), ("grpc://h:1", TritonClient)],
)
def test_the_scheme_chooses_the_client(target: str, kind: type) -> None:
    with reached(Address(target)) as client:
        assert isinstance(client, kind)
    told = describe(Address(target), "m")
    assert (told.name, told.digest, told.weights) == ("m", None, "unknown")


def test_a_bundle_that_cannot_be_served_says_why(tiny_bundle: Path, tmp_path: Path) -> None:
    address = Address(str(tiny_bundle), settings=("max_wating=2",))
    with refusal(InputError, "serve: ", "did you mean 'max_waiting'?"), reached(address):
        pass
    (tmp_path / "manifest.json").write_text("{}")
    with refusal(ZipvlError, "manifest.json"), reached(Address(str(tmp_path))):
        pass


def test_a_forced_ratio_is_for_random_weights(tiny_bundle: Path) -> None:
    modes = [Mode(kind="forced_ratio", value=0.5)]
    with refusal(InputError, "mode zipvl forced .5", "tiny is trained; use fixed_ratio: 0.5"):
        check_modes(Address(str(tiny_bundle)), modes)
    check_modes(Address(str(tiny_bundle)), [Mode(kind="fixed_ratio", value=0.5)])
    check_modes(Address("http://host:1"), modes)  # it does not tell


def test_a_bundle_is_served_while_the_block_runs_whatever_ends_it(tiny_bundle: Path) -> None:
    address = Address(str(tiny_bundle), settings=("max_waiting=3",))
    with pytest.raises(KeyboardInterrupt), reached(address) as client:
        url = httpx.URL(client.where)
        assert httpx.get(f"{client.where}/v1/models").json()["data"][0]["id"] == "tiny"
        raise KeyboardInterrupt
    assert url.port
    with pytest.raises(ConnectionError):
        socket.create_connection((url.host, url.port))
    told = describe(address, "tiny")
    assert told.digest and told.weights == "checkpoint" and told.description["settings"] == ["max_waiting=3"]


KILLED = """
import sys
from pathlib import Path
from zipvl_compile.bench.serving.server import serving
with serving(Path(sys.argv[1]), "embedded") as url:
    print(url, flush=True)
    sys.stdin.read()
"""


def test_a_bench_that_is_killed_leaves_no_server(tiny_bundle: Path) -> None:
    bench = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tiny_bundle)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with bench:
        assert bench.stdout
        url = httpx.URL(bench.stdout.readline().strip())
        place = (url.host, url.port or 0)
        with socket.create_connection(place, timeout=60) as connection:
            bench.kill()
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # the server closes it as it ends
        with pytest.raises(ConnectionError):
            socket.create_connection(place)
