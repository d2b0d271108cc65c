"""A first request through gRPC after every start: does what goes in arrive, and does what comes out?"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from zipvl_serving.errors import InputError, OverloadedError, ZipvlError
from zipvl_serving.triton.tensors import INPUTS, OUTPUTS, Tensors, chunk_from_tensors, error_from_text
from zipvl_serving.wire import Chunk

_TAU = 1.625
"""No valid tau, and exact in FP32: the refusal says which number arrived."""
_FIRST = 1_000_000
"""A priority: clients may have been quicker than the canary."""
_CHANNEL = (
    # gRPC shares connections within a process, and with them the pause after a connection that failed: a client that
    # waits for the server to come back would make the canary fail.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
_MISREAD = "its Python misreads tensors (numpy 2 with an old Python backend does); install numpy below 2"


def check_model(grpc_address: str, model: str, timeout_s: float) -> None:
    """Raises ZipvlError, one line, unless the model reads an FP32 tensor right and answers a text with a token."""
    try:
        _ask(grpc_address, model, {"text_input": "canary", "tau": _TAU}, timeout_s)
        raise ZipvlError(f"model {model}: tau {_TAU} was not refused: {_MISREAD}")
    except InputError as refusal:
        if str(_TAU) not in str(refusal):
            arrived = f"model {model}: tau {_TAU} was sent, and something else arrived ({refusal})"
            raise ZipvlError(f"{arrived}: {_MISREAD}") from None
    try:
        asked = {"text_input": "canary", "max_tokens": 1, "priority": _FIRST}
        answer = _ask(grpc_address, model, asked, timeout_s)
    except OverloadedError:  # it reads and refuses: clients have filled it
        return
    if len(answer.token_ids) != 1 or answer.statistics is None or answer.statistics.completion_tokens != 1:
        raise ZipvlError(f"model {model}: one token was asked for, {answer} came: {_MISREAD}")


def _ask(address: str, model: str, values: Mapping[str, Any], timeout_s: float) -> Chunk:
    """The whole answer to a request. Raises the error that the model answers with, ZipvlError where none comes."""
    try:
        from tritonclient import grpc
    except ImportError as error:
        raise ZipvlError(f"{error}; install Triton's client: pip install 'tritonclient[grpc]'") from None
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = grpc.InferenceServerClient(address, channel_args=_CHANNEL)
    try:
        client.start_stream(lambda result, error: answers.put((result, error)))
        inputs = [_tensor(grpc, name, value) for name, value in values.items()]
        with suppress(grpc.InferenceServerException):  # a stream that broke at once says why among the answers
            client.async_stream_infer(model, inputs)
        result, refusal = answers.get(timeout=timeout_s)
    except queue.Empty:
        raise ZipvlError(f"model {model}: did not answer within {timeout_s:.0f} s") from None
    finally:
        client.stop_stream(cancel_requests=True)
        client.close()
    if refusal is None:
        tensors: Tensors = {name: found for name in OUTPUTS if (found := result.as_numpy(name)) is not None}
        return chunk_from_tensors(tensors)
    if refusal.status() is not None:  # of the connection, not of the model
        raise ZipvlError(f"model {model}: {' '.join(refusal.message().split())}")
    raise error_from_text(refusal.message())


def _tensor(grpc: Any, name: str, value: Any) -> Any:
    spec = INPUTS[name]
    array = spec.array(value)
    tensor = grpc.InferInput(name, list(array.shape), spec.protocol_type)
    tensor.set_data_from_numpy(array)
    return tensor
