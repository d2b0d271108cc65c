"""Stands in for triton_python_backend_utils, which is only inside Triton's stub, and records what is done with it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from zipvl_serving.arrays import Array
from zipvl_serving.triton.tensors import chunk_from_tensors
from zipvl_serving.wire import Chunk

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
PATIENCE_S = 30.0


class TritonModelException(Exception):  # noqa: N818
    pass


class TritonError:
    INTERNAL, INVALID_ARG, UNAVAILABLE = "INTERNAL", "INVALID_ARG", "UNAVAILABLE"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self.message = message
        self.code = code


class Tensor:
    def __init__(self, name: str, array: Array) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> Array:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: TritonError | None = None) -> None:
        self.error = error
        self.tensors = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or ()}


class ResponseSender:
    """What was sent to one client. Like the real one it must not be touched after the final response."""

    def __init__(self) -> None:
        self.sent: list[Chunk | TritonError] = []
        self.ended = False
        self.cancelled = False
        self.broken = False
        self.on_send: Callable[[], object] = lambda: None
        self._changed = threading.Condition()

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        self.on_send()
        with self._changed:
            assert not self.ended, "sent after the final response"
            if self.broken:
                raise RuntimeError("the pipe is broken")
            self.sent.append(response.error or chunk_from_tensors(response.tensors))
            self.ended = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
            self._changed.notify_all()

    def is_cancelled(self) -> bool:
        assert not self.ended, "the real server dies of this"
        return self.cancelled

    def wait(self, responses: int | None = None) -> list[Chunk | TritonError]:
        """What was sent when there are so many responses, or the final one."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self.ended or (responses is not None and len(self.sent) >= responses), PATIENCE_S
            )
            assert done, self.sent
            return list(self.sent)


class Request:
    def __init__(self, inputs: Mapping[str, Array], parameters: Mapping[str, Any] | None = None, timeout_us: int = 0):
        self.sender = ResponseSender()
        self._inputs, self._parameters, self._timeout = inputs, parameters or {}, timeout_us

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self._inputs.items()]

    def parameters(self) -> str:
        return json.dumps(self._parameters)

    def timeout(self) -> int:
        return self._timeout

    def get_response_sender(self) -> ResponseSender:
        return self.sender


class Metric:
    def __init__(self, labels: dict[str, str], buckets: list[float] | None = None) -> None:
        self.labels, self.buckets = labels, buckets
        self.value = 0.0
        self.observed: list[float] = []

    def increment(self, amount: float) -> None:
        self.value += amount

    def set(self, value: float) -> None:
        self.value = value

    def observe(self, value: float) -> None:
        self.observed.append(value)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"
    made: ClassVar[dict[str, MetricFamily]] = {}

    def __init__(self, name: str, description: str, kind: str) -> None:
        assert description
        self.kind = kind
        self.metrics: list[Metric] = []
        self.made[name] = self

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:  # noqa: N802
        assert (buckets is not None) == (self.kind == self.HISTOGRAM)
        self.metrics.append(Metric(labels, buckets))
        return self.metrics[-1]
