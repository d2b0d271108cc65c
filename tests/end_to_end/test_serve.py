"""`zipvl-compile serve` as users run it."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from helpers.bundles import QUESTION, random_image
from helpers.clients import png
from helpers.command_line import error_line, invoke, spawn
from helpers.gateway import HEAD, until

from zipvl_serving.bundle import Bundle
from zipvl_serving.generator import Generator
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.triton.repository import write_repository

PATIENCE_S = 60


class Served:
    """A running `serve`, and what its first lines say."""

    def __init__(self, process: subprocess.Popen[str], endpoints: dict[str, str]) -> None:
        self.process = process
        self.endpoints = endpoints

    @property
    def api(self) -> str:
        """The gateway's base URL for OpenAI's client."""
        return self.endpoints["gateway"].split()[0]

    @property
    def address(self) -> tuple[str, int]:
        url = httpx.URL(self.api)
        assert url.port
        return url.host, url.port

    def end(self, *signals: int) -> tuple[int, str]:
        """Exit code and stderr after the signals."""
        for number in signals:
            self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, stderr


@contextmanager
def serve(source: Path, *arguments: str | Path, lines: int = 1) -> Iterator[Served]:
    """Start it on a free port and wait until it says where it listens."""
    process = spawn("serve", source, "--gateway-port", "0", *arguments)
    try:
        assert process.stdout
        said = [process.stdout.readline() for _ in range(lines)]
        assert all(said), process.communicate()[1]
        yield Served(process, dict(line.rstrip("\n").split(": ", 1) for line in said))
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def generator(tiny_bundle: Path) -> Generator:
    return Generator(Bundle.open(tiny_bundle))


def check_answers(api: openai.OpenAI, generator: Generator) -> None:
    """With an image, whole and streamed: what the generator says."""
    wanted = generator.answer(generator.prepare(QUESTION, [random_image(0)]), SamplingParams())
    whole = ask(api)
    assert whole.choices[0].message.content == wanted.text
    assert whole.usage.completion_tokens == len(wanted.token_ids)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in ask(api, stream=True)) == wanted.text


def ask(api: openai.OpenAI, **more: Any) -> Any:
    """The question with an image, through OpenAI's client."""
    url = "data:image/png;base64," + base64.b64encode(png(random_image(0))).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": QUESTION}]
    return api.chat.completions.create(model="tiny", messages=[{"role": "user", "content": parts}], **more)  # type: ignore[call-overload]


def test_the_embedded_engine_answers_and_leaves_in_order(
    tiny_bundle: Path, generator: Generator, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alpha\n")
    keys.chmod(0o644)
    with serve(tiny_bundle, "--api-key-file", keys, "--set", "max_waiting=8") as served:
        assert set(served.endpoints) == {"gateway"} and served.endpoints["gateway"].endswith("(model tiny)")
        with openai.OpenAI(base_url=served.api, api_key="alpha") as api:
            check_answers(api, generator)
        code, stderr = served.end(signal.SIGTERM)
    assert code == 0, stderr
    assert stderr == f"warning: {keys}: every user of this machine can read the API keys; chmod o-r would end that\n"


def test_triton_answers_recovers_and_leaves_in_order(tiny_bundle: Path, generator: Generator) -> None:
    ports = [text for name in ("http", "grpc", "metrics") for text in (f"--{name}-port", "0")]
    with serve(tiny_bundle, "--engine", "triton", *ports, "--set", "max_waiting=8", lines=4) as served:
        assert set(served.endpoints) == {"gateway", "triton http", "triton grpc", "triton metrics"}
        with openai.OpenAI(base_url=served.api, api_key="none", max_retries=0) as api:
            check_answers(api, generator)
            with pytest.raises(openai.BadRequestError, match="dense"):
                ask(api, extra_body={"zipvl": {"tau": 0.5, "dense": True}})
            host = served.api.removesuffix("/v1")
            assert "zipvl_generated_tokens_total{" in httpx.get(f"{host}/metrics").text
            stub = next(child for child in descendants(served) if child.name().startswith("triton_python_b"))
            stub.kill()
            until(lambda: httpx.get(f"{host}/health/ready").status_code == 503)
            assert httpx.get(f"{host}/health/live").status_code == 200
            until(lambda: httpx.get(f"{host}/health/ready").status_code == 200)
            check_answers(api, generator)
        left = descendants(served)
        code, stderr = served.end(signal.SIGTERM)
    assert code == 0, stderr
    assert left and not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in left)


def descendants(served: Served) -> list[psutil.Process]:
    return psutil.Process(served.process.pid).children(recursive=True)


def test_a_repository_is_served_with_its_settings(tiny_bundle: Path, tmp_path: Path) -> None:
    """By the embedded engine as well."""
    write_repository(Bundle.open(tiny_bundle), tmp_path / "repository", {"max_image_bytes": "10"})
    with (
        serve(tmp_path / "repository") as served,
        openai.OpenAI(base_url=served.api, api_key="none", max_retries=0) as api,
        pytest.raises(openai.BadRequestError, match="10"),
    ):
        ask(api)


def test_a_repository_of_triton_takes_no_settings(tiny_bundle: Path, tmp_path: Path) -> None:
    write_repository(Bundle.open(tiny_bundle), tmp_path, {})
    result = invoke("serve", tmp_path, "--engine", "triton", "--gateway-port", "0", "--set", "max_waiting=8")
    assert result.exit_code == 2 and "set max_waiting in `package`" in error_line(result.stderr)


def half_a_request(served: Served) -> socket.socket:
    """A client that keeps the server from ending by itself."""
    connection = socket.create_connection(served.address)
    connection.sendall(HEAD + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n{")
    assert connection.recv(1024).startswith(b"HTTP/1.1 100 ")
    return connection


def test_sigterm_waits_no_longer_than_the_drain_time(tiny_bundle: Path) -> None:
    with serve(tiny_bundle, "--set", "drain_s=0.2") as served, half_a_request(served):
        code, stderr = served.end(signal.SIGTERM)
    assert (code, stderr) == (0, "")


def not_listening(served: Served) -> bool:
    try:
        socket.create_connection(served.address).close()
    except ConnectionError:
        return True
    return False


def test_a_second_sigint_ends_it_at_once(tiny_bundle: Path) -> None:
    with serve(tiny_bundle) as served, half_a_request(served):
        served.process.send_signal(signal.SIGINT)
        until(lambda: not_listening(served))  # the first one closes the doors
        code, stderr = served.end(signal.SIGINT)
    assert code == 130 and error_line(stderr).startswith("interrupted")


def test_a_taken_port_is_one_line_and_nothing_is_left(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = invoke("serve", tiny_bundle, "--gateway-port", str(port))
    assert result.exit_code == 1
    assert error_line(result.stderr) == (
        f"port {port} of 127.0.0.1 cannot be used: Address already in use; choose another one"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--http-port", "8000"], 2, "--http-port: only Triton has this port"),
        (["--set", "max_waiting"], 2, "--set max_waiting: NAME=VALUE was expected"),
        (["--set", "max_wating=4"], 2, "did you mean 'max_waiting'?"),
        (["--set", "max_waiting=many"], 2, "max_waiting: 'many' is no valid setting"),
        (["--api-key-file", "nowhere"], 2, "nowhere: the API keys cannot be read: No such file"),
        (["--host", "192.0.2.1"], 1, "192.0.2.1 cannot be used"),
        (["--gateway-port", "70000"], 2, "--gateway-port"),
        (["--engine", "cuda"], 2, "cuda"),
        (["--max-body-mb", "0"], 2, "max-body-mb"),
    ],
)
def test_wrong_options_are_one_line(tiny_bundle: Path, arguments: list[str], code: int, part: str) -> None:
    result = invoke("serve", tiny_bundle, "--gateway-port", "0", *arguments)
    assert result.exit_code == code, result.output
    assert part in error_line(result.stderr)


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    result = invoke("serve", tmp_path / "nothing", "--gateway-port", "0")
    assert result.exit_code == 2 and "does not exist" in error_line(result.stderr)


def test_a_missing_extra_is_named(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = invoke("serve", tiny_bundle)
    assert result.exit_code == 1
    assert error_line(result.stderr) == "serve needs uvicorn: pip install -e '.[serve]' in the checkout"


def test_other_machines_without_a_key_are_worth_a_warning(tiny_bundle: Path) -> None:
    with serve(tiny_bundle, "--host", "0.0.0.0") as served:
        code, stderr = served.end(signal.SIGTERM)
    assert code == 0
    assert "0.0.0.0 is reachable from other machines and no --api-key-file was given" in stderr
