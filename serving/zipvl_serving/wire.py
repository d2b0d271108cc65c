"""The form in which requests and answers travel, whichever way they come: Triton's tensors, HTTP, or in process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zipvl_serving.errors import InputError, nearest
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams, TokenLogprob

FinishReason = Literal["stop", "length", "deadline", "cancelled"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TextPart(_Part):
    """A piece of a message's text."""

    type: Literal["text"] = "text"
    text: str


class ImagePart(_Part):
    """The place of the next image of the request."""

    type: Literal["image"] = "image"


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(_Part):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[Part]


class Parameters(_Part):
    """Everything that a request may set; what it leaves out is the bundle's default."""

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[Annotated[int, Field(strict=False)], float] = Field(default_factory=dict)
    """By token id; JSON has it as text."""
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)
    """Texts that end the answer; they are not part of it."""
    ignore_eos: bool = False
    logprobs: int | None = None
    """Return the log-probability of every token, and this many of the likeliest beside it; None returns none."""
    tau: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    dense: bool = False
    probe_seed: int | None = None
    priority: int = 0
    """Requests of a higher priority enter first; within one, first come, first served."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Seconds from arrival: a request that still waits then is refused, one that runs ends (`deadline`)."""
    stream_interval: Annotated[int, Field(ge=1)] | None = None
    raw: bool = False
    """The text is the whole prompt as the model sees it: no chat template."""

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Parameters:
        """Check values that came over the wire; InputError, one line, names the wrong one and what is valid."""
        values = dict(values)
        for name in values:
            if name not in cls.model_fields:
                raise InputError(f"parameters: {name!r} is no parameter; {nearest(name, cls.model_fields)}")
        if isinstance(values.get("stop"), str):
            values["stop"] = [values["stop"]]
        return _validate(cls, values, "parameters")

    def sampling(self) -> SamplingParams:
        """Raises InputError for a value outside its range."""
        return SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=self.seed,
            max_new_tokens=self.max_tokens,
            stop=tuple(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
        )

    def method(self, defaults: MethodParams) -> MethodParams:
        """Raises InputError for a value outside its range."""
        return defaults.override(self.tau, self.ratio_min, self.ratio_max, self.probe_seed, dense=self.dense)


@dataclass(frozen=True)
class WireRequest:
    """A request as a client sent it: nothing in it has been decoded. Either `text` or `messages` is given.

    text: a user's message, or with `parameters.raw` the prompt itself.
    images: encoded image files in the order of their places.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    images: tuple[bytes, ...] = ()
    parameters: Parameters = field(default_factory=Parameters)


def parse_messages(text: str) -> tuple[Message, ...]:
    """Messages from their JSON: a list of {role, content}; InputError, one line, names what is wrong."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"messages: not JSON: {str(error).splitlines()[0]}") from None
    if not isinstance(found, list) or not found:
        raise InputError("messages: a list of at least one message was expected")
    return tuple(_validate(Message, message, f"messages[{at}]") for at, message in enumerate(found))


_Model = TypeVar("_Model", bound=BaseModel)


def _validate(kind: type[_Model], value: Any, where: str) -> _Model:
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join([where, *(str(part) for part in first["loc"])])
        raise InputError(f"{place}: {first['msg']}; got {_shorten(first['input'])}") from None


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Statistics:
    """What one answer cost, with the last chunk; `asdict` is its JSON."""

    prompt_tokens: int
    completion_tokens: int
    cached_images: int
    """Images whose embeddings were in the cache."""
    dense: bool
    ratio_per_layer: list[float]
    kept_tokens_per_layer: list[int]
    kv_bytes: int
    """Bytes of KV pages held after prefill."""
    queue_s: float
    """Seconds from arrival to the start of prefill."""
    ttft_s: float
    """Seconds from arrival to the first token."""
    total_s: float


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; the last one has `finish_reason` and `statistics`."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    """Of each token of `token_ids`, where the request asked for them."""
    finish_reason: FinishReason | None = None
    statistics: Statistics | None = None


def merge(chunks: Iterable[Chunk]) -> Chunk:
    """Chunks of one answer, in order, as one chunk."""
    pieces = list(chunks)
    logprobs = [entry for piece in pieces for entry in piece.logprobs or ()]
    return Chunk(
        text="".join(piece.text for piece in pieces),
        token_ids=[token for piece in pieces for token in piece.token_ids],
        logprobs=logprobs if any(piece.logprobs is not None for piece in pieces) else None,
        finish_reason=pieces[-1].finish_reason,
        statistics=pieces[-1].statistics,
    )
