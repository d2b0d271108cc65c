"""The tensors of the Triton model: their names, types and shapes, and how requests and answers travel in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError, nearest
from zipvl_serving.output.sampling import TokenLogprob
from zipvl_serving.vision.image_data import from_field
from zipvl_serving.wire import Chunk, FinishReason, Parameters, Statistics, WireRequest, parse_messages

Kind = Literal["STRING", "INT32", "INT64", "FP32", "BOOL"]
_DTYPES: dict[Kind, type] = {
    "STRING": np.object_,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "BOOL": np.bool_,
}
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of one axis: `count` elements, -1 for any number."""

    name: str
    kind: Kind
    count: Literal[1, -1] = 1

    @property
    def dtype(self) -> type:
        return _DTYPES[self.kind]

    @property
    def protocol_type(self) -> str:
        """The type's name in requests of the KServe v2 protocol, where strings are BYTES."""
        return "BYTES" if self.kind == "STRING" else self.kind

    def array(self, *values: Any) -> NDArray[Any]:
        """These values as this tensor, [len(values)]; text becomes UTF-8. InputError for text that has none."""
        if self.kind == "STRING":
            values = tuple(self._utf8(value) if isinstance(value, str) else value for value in values)
        made: NDArray[Any] = np.empty(len(values), self.dtype)
        made[:] = values
        return made

    def values(self, array: NDArray[Any]) -> list[Any]:
        """What the tensor holds: bytes, bool, int or float. InputError where type or shape are not this tensor's.

        A float is the shortest decimal that is the same FP32, so that 0.975 stays 0.975.
        """
        if array.dtype != self.dtype and not (self.kind == "STRING" and array.dtype.kind in "SU"):
            raise InputError(f"{self.name}: the tensor's type is {array.dtype}; must be {self.kind}")
        if array.ndim != 1 or self.count not in (-1, len(array)):
            raise InputError(
                f"{self.name}: the tensor's shape is {list(array.shape)}; must be [{'N' if self.count < 0 else 1}]"
            )
        if self.kind == "STRING":
            return [self._utf8(value) if isinstance(value, str) else bytes(value) for value in array]
        return [float(str(value)) for value in array] if self.kind == "FP32" else array.tolist()

    def text(self, array: NDArray[Any]) -> str:
        """The one text of the tensor; InputError where it is not UTF-8."""
        try:
            return str(self.values(array)[0].decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{self.name}: not UTF-8 at byte {error.start}") from None

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{self.name}: not Unicode: a lone surrogate at character {error.start}") from None


_SCALARS = {
    spec.name: spec
    for spec in (
        TensorSpec("max_tokens", "INT32"),
        TensorSpec("temperature", "FP32"),
        TensorSpec("top_p", "FP32"),
        TensorSpec("top_k", "INT32"),
        TensorSpec("min_p", "FP32"),
        TensorSpec("repetition_penalty", "FP32"),
        TensorSpec("seed", "INT64"),
        TensorSpec("tau", "FP32"),
        TensorSpec("ratio_min", "FP32"),
        TensorSpec("ratio_max", "FP32"),
        TensorSpec("dense", "BOOL"),
        TensorSpec("probe_seed", "INT64"),
        TensorSpec("priority", "INT32"),
        TensorSpec("timeout_s", "FP32"),
    )
}
"""Fields of wire.Parameters that have a tensor of their own; it wins over `sampling_parameters`."""

INPUTS = {
    spec.name: spec
    for spec in (
        TensorSpec("text_input", "STRING"),
        TensorSpec("messages", "STRING"),
        TensorSpec("image", "STRING", -1),
        TensorSpec("sampling_parameters", "STRING"),
        TensorSpec("stream", "BOOL"),
        *_SCALARS.values(),
    )
}
"""All are optional, but one of `text_input` and `messages` must be there."""

OUTPUTS = {
    spec.name: spec
    for spec in (
        TensorSpec("text_output", "STRING"),
        TensorSpec("token_ids", "INT32", -1),
        TensorSpec("logprobs", "STRING"),
        TensorSpec("finish_reason", "STRING"),
        TensorSpec("statistics", "STRING"),
    )
}
"""Of each response; `logprobs` and `statistics` are JSON, or empty, and `finish_reason` is empty until the last."""


def to_tensors(request: WireRequest, *, stream: bool) -> dict[str, NDArray[Any]]:
    """A request as input tensors. `stream` asks for a response per chunk instead of one with the whole answer."""
    made = {"stream": INPUTS["stream"].array(stream)}
    if request.text is not None:
        made["text_input"] = INPUTS["text_input"].array(request.text)
    if request.messages is not None:
        turns = [message.model_dump() for message in request.messages]
        made["messages"] = INPUTS["messages"].array(json.dumps(turns))
    if request.images:
        made["image"] = INPUTS["image"].array(*request.images)
    if set_here := request.parameters.model_dump(exclude_defaults=True, mode="json"):
        made["sampling_parameters"] = INPUTS["sampling_parameters"].array(json.dumps(set_here))
    return made


def from_tensors(tensors: Tensors, request_parameters: Mapping[str, Any]) -> tuple[WireRequest, bool]:
    """The request that a client sent, and whether it asked for a response per chunk.

    A parameter may come as a tensor of its own, in `sampling_parameters` or in Triton's request parameters (the
    `parameters` object of the generate endpoint); the first of these that has it counts. InputError, one line, names
    the tensor or the parameter that is wrong.
    """
    for name in tensors:
        if name not in INPUTS:
            raise InputError(f"{name!r} is no input tensor; {nearest(name, INPUTS)}")
    if ("text_input" in tensors) == ("messages" in tensors):
        problem = "both were given" if "text_input" in tensors else "neither was given"
        raise InputError(f"one of text_input and messages is required; {problem}")
    weakest = dict(request_parameters)
    stream = weakest.pop("stream", False)
    if not isinstance(stream, bool):
        raise InputError(f"parameters.stream: {stream!r} is no valid setting; valid: true, false")
    if "stream" in tensors:
        stream = INPUTS["stream"].values(tensors["stream"])[0]
    typed = {name: spec.values(tensors[name])[0] for name, spec in _SCALARS.items() if name in tensors}
    files = INPUTS["image"].values(tensors["image"]) if "image" in tensors else ()
    request = WireRequest(
        text=INPUTS["text_input"].text(tensors["text_input"]) if "text_input" in tensors else None,
        messages=parse_messages(INPUTS["messages"].text(tensors["messages"])) if "messages" in tensors else None,
        images=tuple(from_field(file, f"image {place}") for place, file in enumerate(files, start=1)),
        parameters=Parameters.parse({**weakest, **_named_parameters(tensors), **typed}),
    )
    return request, stream


def _named_parameters(tensors: Tensors) -> dict[str, Any]:
    """The object in `sampling_parameters`."""
    if "sampling_parameters" not in tensors:
        return {}
    try:
        found = json.loads(INPUTS["sampling_parameters"].text(tensors["sampling_parameters"]) or "{}")
    except (ValueError, RecursionError) as error:
        raise InputError(f"sampling_parameters: not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise InputError("sampling_parameters: a JSON object was expected")
    return found


def chunk_to_tensors(chunk: Chunk) -> dict[str, NDArray[Any]]:
    """A piece of an answer as all the output tensors."""
    return {
        "text_output": OUTPUTS["text_output"].array(chunk.text),
        "token_ids": OUTPUTS["token_ids"].array(*chunk.token_ids),
        "logprobs": OUTPUTS["logprobs"].array(
            "" if chunk.logprobs is None else json.dumps([asdict(entry) for entry in chunk.logprobs])
        ),
        "finish_reason": OUTPUTS["finish_reason"].array(chunk.finish_reason or ""),
        "statistics": OUTPUTS["statistics"].array(
            "" if chunk.statistics is None else json.dumps(asdict(chunk.statistics))
        ),
    }


def chunk_from_tensors(tensors: Tensors) -> Chunk:
    """A piece of an answer from the output tensors; ZipvlError where they are not this model's."""
    try:
        text, logprobs, reason, statistics = (
            OUTPUTS[name].text(tensors[name]) for name in ("text_output", "logprobs", "finish_reason", "statistics")
        )
        return Chunk(
            text=text,
            token_ids=OUTPUTS["token_ids"].values(tensors["token_ids"]),
            logprobs=_reader(list[TokenLogprob]).validate_json(logprobs) if logprobs else None,
            finish_reason=_reader(FinishReason).validate_python(reason) if reason else None,
            statistics=_reader(Statistics).validate_json(statistics) if statistics else None,
        )
    except KeyError as error:
        raise ZipvlError(f"the answer has no tensor {error}: the server's model is of another version") from None
    except (InputError, ValidationError) as error:
        raise ZipvlError(f"the answer cannot be read: {str(error).splitlines()[0]}") from None


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


_KINDS: dict[type[ZipvlError], tuple[str, str]] = {
    InputError: ("invalid request", "INVALID_ARG"),
    OverloadedError: ("overloaded", "UNAVAILABLE"),
    # What Triton itself answers when a request's queue timeout expires.
    DeadlineError: ("deadline exceeded", "UNAVAILABLE"),
    UnavailableError: ("unavailable", "UNAVAILABLE"),
    ZipvlError: ("failed", "INTERNAL"),
}
"""How each kind of error starts on the wire, and the name of its code in pb_utils.TritonError."""
_NOT_NOW = ("is not healthy", "has no available versions", "is not ready")
"""What Triton says of a model whose Python died, and of one that is being loaded or unloaded."""


def error_text(error: ZipvlError) -> str:
    """One line that says the kind of the error as well: in a gRPC stream nothing else arrives."""
    return f"{_KINDS[_kind(error)][0]}: {' '.join(str(error).split())}"


def error_code(error: ZipvlError) -> str:
    """The name of the error's code in pb_utils.TritonError."""
    return _KINDS[_kind(error)][1]


def error_from_text(text: str) -> ZipvlError:
    """The error that a message from the server stands for; one that does not say its kind is Triton's own."""
    for kind, (name, _) in _KINDS.items():
        if text.startswith(f"{name}: "):
            return kind(text.removeprefix(f"{name}: "))
    return UnavailableError(text) if any(said in text for said in _NOT_NOW) else ZipvlError(text)


def _kind(error: ZipvlError) -> type[ZipvlError]:
    return next(kind for kind in type(error).__mro__ if kind in _KINDS)
