"""A real Triton server over the tiny bundle."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import triton
from helpers.bundles import LAYERS, QUESTION, edit_manifest, flip_byte, random_image, refusal
from helpers.clients import png
from helpers.triton import Stream, events, generate, metrics, post, wait_for
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sequence import Generation
from zipvl_serving.triton.repository import write_repository
from zipvl_serving.triton.server import TritonServer

LONG = {"max_tokens": 3000, "sampling_parameters": '{"ignore_eos": true}', "stream": True}
"""A stream of some seconds: whoever wants to can break into it."""
USED = 'zipvl_kv_pages_used{model="tiny"}'
RUNNING = 'zipvl_requests_running{model="tiny"}'


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with room for long answers."""
    folder = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("long") / "bundle"))
    limits = {"max_new_tokens": 3000, "kv_bytes": 32 << 20}
    edit_manifest(folder, lambda body: body["limits"].update(limits), seal=True)
    return folder


@pytest.fixture(scope="module")
def repository(bundle: Path) -> Path:
    return write_repository(Bundle.open(bundle), bundle.parent / "repository", {"max_images": "2"}).parent


@pytest.fixture(scope="module")
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(scope="module")
def server(repository: Path, log: io.StringIO) -> Iterator[TritonServer]:
    made = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0, log=log)
    made.start()
    yield made
    made.stop(5)


@pytest.fixture
def stream(server: TritonServer) -> Iterator[Stream]:
    with Stream(server) as opened:
        yield opened


@pytest.fixture(scope="module")
def offline(bundle: Path) -> Generation:
    """What the generator answers to a question about an image."""
    generator = Generator(Bundle.open(bundle))
    return generator.answer(generator.prepare(QUESTION, [random_image(0)]), SamplingParams(max_new_tokens=8))


def processes(server: int) -> list[str]:
    """Names of what still runs in the server's process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        state, _, group = rest.split()[:3]
        if int(group) == server and state not in "ZX":
            found.append(head)
    return found


# --- as curl sends it ------------------------------------------------------------------------------------------------


def test_generate_answers_as_the_generator_does(server: TritonServer, offline: Generation) -> None:
    image = base64.b64encode(png(random_image(0))).decode()
    status, body = generate(server, text_input=QUESTION, image=image, max_tokens=8)
    assert status == 200, body
    assert (body["text_output"], body["token_ids"]) == (offline.text, offline.token_ids)
    assert body["finish_reason"] == offline.finish_reason
    assert f'"kept_tokens_per_layer": {offline.prompt.counts}' in body["statistics"]


def test_generate_stream_sends_the_answer_in_pieces(server: TritonServer) -> None:
    image = f"data:image/png;base64,{base64.b64encode(png(random_image(0))).decode()}"
    asked = {"text_input": QUESTION, "image": image, "max_tokens": 300, "sampling_parameters": '{"ignore_eos": true}'}
    _, whole = generate(server, **asked)
    found = list(events(server, **asked, parameters={"stream": True}))
    assert len(found) > 1  # pieces that pile up are joined, but never so many
    assert "".join(event["text_output"] for event in found) == whole["text_output"]
    assert [event["finish_reason"] for event in found] == [""] * (len(found) - 1) + ["length"]
    assert not any(event["statistics"] for event in found[:-1])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "invalid request: one of text_input and messages is required; neither was given"),
        ({"text_input": "a", "tau": 1.5}, "invalid request: tau: 1.5 is out of range; must be > 0 and <= 1"),
        ({"text_input": "a", "taut": 1}, "invalid request: parameters: 'taut' is no parameter; did you mean 'tau'?"),
        ({"text_input": "a", "image": "http://localhost/a.png"}, "URLs are never fetched"),
        ({"text_input": "a", "image": "AAAA"}, "not an image in a known format"),
        ({"text_input": "a", "tau": [0.5, 0.6]}, "The schema can not convert input 'tau' to tensor with proper shape"),
    ],
)
def test_a_wrong_body_is_a_400_with_the_reason(server: TritonServer, body: dict[str, Any], said: str) -> None:
    status, answer = generate(server, **body)
    assert status == 400
    assert said in answer["error"]


def test_inference_clients_cannot_unload_models(server: TritonServer) -> None:
    status, answer = post(server, "/v2/repository/models/tiny/unload", {})
    assert (status, "restricted" in answer["error"]) == (403, True)


# --- gRPC ------------------------------------------------------------------------------------------------------------


def test_a_grpc_stream_carries_an_image_as_bytes(stream: Stream, offline: Generation) -> None:
    stream.send(text_input=QUESTION, image=png(random_image(0)), max_tokens=8, stream=True)
    chunks = stream.answer()
    assert [token for chunk in chunks for token in chunk.token_ids] == offline.token_ids
    assert "".join(chunk.text for chunk in chunks) == offline.text
    statistics = chunks[-1].statistics
    assert statistics
    assert statistics.kept_tokens_per_layer == offline.prompt.counts
    assert all(chunk.statistics is None for chunk in chunks[:-1])


def test_requests_of_one_stream_are_told_apart(stream: Stream) -> None:
    for number in range(8):
        stream.send(str(number), text_input=f"which digit is {number} ?", max_tokens=4, stream=number % 2 == 0)
    tokens: dict[str, list[int]] = {str(number): [] for number in range(8)}
    open_requests = set(tokens)
    while open_requests:
        request, chunk = stream.receive()
        tokens[request] += chunk.token_ids
        if chunk.finish_reason:
            open_requests.remove(request)
    for number, ids in tokens.items():
        stream.send(text_input=f"which digit is {number} ?", max_tokens=4, stream=False)
        assert stream.answer()[0].token_ids == ids


def test_typed_tensors_arrive_as_they_were_meant(stream: Stream) -> None:
    stream.send(text_input=QUESTION, tau=0.975, max_tokens=1, seed=2**40, dense=False, stream=False)
    assert len(stream.answer()[0].token_ids) == 1
    stream.send(text_input=QUESTION, tau=0.975, dense=True)
    with pytest.raises(InferenceServerException, match="invalid request: dense keeps every token: tau has no effect"):
        stream.receive()


def test_logprobs_come_with_the_tokens(stream: Stream) -> None:
    stream.send(text_input=QUESTION, max_tokens=2, stream=False, sampling_parameters='{"logprobs": 2}')
    [chunk] = stream.answer()
    assert chunk.logprobs
    assert [entry.token_id for entry in chunk.logprobs] == chunk.token_ids
    assert all(len(entry.top) == 2 for entry in chunk.logprobs)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"text_input": "a", "tau": np.array([0.5])}, "input 'tau' data-type is 'FP64', but model 'tiny' expects"),
        ({"text_input": "a", "seed": np.array([1, 2])}, "unexpected shape for input 'seed'"),
        ({"text_input": "a", "tauu": np.array([1.0])}, "unexpected inference input 'tauu'"),
        ({"tau": 0.5}, "invalid request: one of text_input and messages is required"),
        ({"text_input": np.array([b"\xff"], object)}, "invalid request: text_input: not UTF-8 at byte 0"),
        ({"text_input": "a", "image": b"\x89PNG nothing"}, "invalid request: image"),
        ({"text_input": "a", "image": np.array([png(random_image(0))] * 3, object)}, "invalid request: "),
        ({"text_input": "a " * 2000}, "invalid request: "),
        ({"messages": '[{"role": "robot"}]'}, "invalid request: messages[0].role"),
    ],
)  # fmt: skip
def test_a_wrong_request_ends_with_one_line_and_the_stream_goes_on(
    stream: Stream, values: dict[str, Any], said: str
) -> None:
    stream.send(**values)
    with pytest.raises(InferenceServerException) as caught:
        stream.receive()
    assert said in caught.value.message()
    assert len(caught.value.message().splitlines()) == 1
    stream.send(text_input=QUESTION, max_tokens=1, stream=False)
    assert len(stream.answer()[0].token_ids) == 1


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_that_goes_away_gives_its_pages_back(server: TritonServer, protocol: str) -> None:
    if protocol == "grpc":
        with Stream(server) as stream:
            stream.send(text_input=QUESTION, **LONG)
            stream.receive()
            assert metrics(server)[RUNNING] in (0, 1)  # as old as the last flush
            wait_for(server, RUNNING, 1)
    else:
        reading = events(server, text_input=QUESTION, **LONG)
        next(reading)
        wait_for(server, RUNNING, 1)
        reading.close()
    wait_for(server, USED, 0, within_s=2)
    wait_for(server, RUNNING, 0, within_s=2)


def test_metrics_tell_of_requests_pages_and_layers(server: TritonServer, stream: Stream) -> None:
    before = metrics(server)
    stream.send(text_input=QUESTION, max_tokens=3, stream=True, sampling_parameters='{"ignore_eos": true}')
    assert stream.answer()[-1].finish_reason == "length"
    length = 'zipvl_requests_total{model="tiny",outcome="length"}'
    wait_for(server, length, before.get(length, 0) + 1)
    layers = [f'zipvl_kept_ratio_count{{layer="{layer}",model="tiny"}}' for layer in range(LAYERS)]
    for sample in ('zipvl_ttft_seconds_count{model="tiny"}', 'zipvl_request_seconds_count{model="tiny"}', *layers):
        wait_for(server, sample, before.get(sample, 0) + 1)
    assert before['zipvl_kv_pages_capacity{model="tiny"}'] > 0


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["stub", "server"])
def test_killed_it_ends_its_streams_and_answers_again(server: TritonServer, victim: str) -> None:
    generation = server.generation
    assert server._process
    with Stream(server) as running, Stream(server) as idle:
        idle.send(text_input=QUESTION, max_tokens=1, stream=False)
        idle.answer()
        running.send(text_input=QUESTION, **LONG)
        running.receive()
        [stub] = server._process.stubs()
        os.kill(stub if victim == "stub" else server._process.pid, signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(InferenceServerException) as caught:
            while not running.receive()[1].finish_reason:
                pass
        assert "UNAVAILABLE" in str(caught.value.status())
        assert time.monotonic() - killed < 10
    deadline = killed + 20
    while server.generation == generation or server.health():
        assert time.monotonic() < deadline, server.health()
        time.sleep(0.02)
    with Stream(server) as stream:
        stream.send(text_input=QUESTION, max_tokens=1, stream=False)
        assert len(stream.answer()[0].token_ids) == 1
    assert time.monotonic() < deadline
    assert server.generation == generation + 1


def test_clients_that_wait_for_the_server_do_not_disturb_its_start(repository: Path) -> None:
    other = TritonServer(repository, http_port=0, grpc_port=0, metrics_port=0)
    client = grpc.InferenceServerClient(other.grpc_address)
    for _ in range(2):  # the first failure makes gRPC wait for a second, and refuse all calls meanwhile
        with pytest.raises(InferenceServerException):
            client.is_server_live(client_timeout=5)
    try:
        other.start()
        assert other.health() is None
    finally:
        other.stop(0)
        client.close()


def test_a_taken_port_is_said_at_once(server: TritonServer, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        other = TritonServer(repository, http_port=0, grpc_port=port, metrics_port=0)
        with refusal(ZipvlError, f"port {port} on 127.0.0.1 is taken; choose another --grpc-port"):
            other.start()
    assert other.health() == "the Triton server is not running"


def test_a_repository_that_is_none_is_refused(tiny_bundle: Path) -> None:
    with refusal(InputError, tiny_bundle, "is no model of it"):
        TritonServer(tiny_bundle)


def test_a_damaged_bundle_is_named(repository: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(repository, tmp_path / "damaged"))
    weights = damaged / "tiny" / "1" / "bundle" / "weights.safetensors"
    flip_byte(weights)
    other = TritonServer(damaged, http_port=0, grpc_port=0, metrics_port=0)
    with refusal(ZipvlError, "the Triton server did not start: model tiny:", weights, "SHA-256"):
        other.start()
    assert other._process is None


# --- the end ---------------------------------------------------------------------------------------------------------


def test_stopping_lets_streams_end_refuses_new_ones_and_leaves_nothing(server: TritonServer, log: io.StringIO) -> None:
    """The last test of the module: it stops the module's server."""
    process, said_before = server._process, len(log.getvalue())
    assert process
    with ThreadPoolExecutor(1) as pool, Stream(server) as running:
        running.send(text_input=QUESTION, **LONG)
        running.receive()
        stopping = pool.submit(server.stop, triton.PATIENCE_S)
        while generate(server, text_input=QUESTION, max_tokens=1)[0] == 200:
            time.sleep(0.01)
        assert not stopping.done()
        chunks = running.answer()
        assert chunks[-1].finish_reason == "length"
        assert chunks[-1].statistics
        assert chunks[-1].statistics.completion_tokens == LONG["max_tokens"]
        stopping.result(timeout=triton.PATIENCE_S)
    assert server.health() == "the Triton server is not running"
    assert not processes(process.pid)
    assert not list(Path("/dev/shm").glob(f"{process._region}*"))
    assert "successfully loaded 'tiny'" in log.getvalue()
    assert "Traceback" not in log.getvalue()[said_before:]
    server.stop()  # once more does no harm
