"""What POST /v1/chat/completions takes, in OpenAI's names; fields unknown to OpenAI and to us are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

_INT32, _INT64 = 2**31, 2**63


def _null_is_absent(default: Any) -> BeforeValidator:
    """OpenAI takes null for what is not set."""
    return BeforeValidator(lambda value: default if value is None else value)


def _one_or_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Part(BaseModel):
    """A number is no text, a boolean no number; unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class TextContent(_Part):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Where an image is; `detail` is ignored, the model has one resolution."""

    url: str


class ImageContent(_Part):
    """An image."""

    type: Literal["image_url"]
    image_url: ImageUrl


Content = Annotated[TextContent | ImageContent, Field(discriminator="type")]


def _kind_of_content(value: Any) -> str | None:
    # The angle brackets mark what is no field's name in the location of an error.
    return "<text>" if isinstance(value, str) else "<parts>" if isinstance(value, list) else None


class ChatMessage(_Part):
    """One turn; `developer` is OpenAI's newer name of `system`. `name` is ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[str, Tag("<text>")] | Annotated[list[Content], Field(min_length=1, fail_fast=True), Tag("<parts>")],
        Discriminator(
            _kind_of_content,
            custom_error_type="expected",
            custom_error_message="{expected}",
            custom_error_context={"expected": "one of a string or an array of objects"},
        ),
    ]


class StreamOptions(_Part):
    """Options of a stream; `include_obfuscation` is ignored."""

    include_usage: Annotated[bool, _null_is_absent(False)] = False


class ZipvlOptions(_Part):
    """Our extension: what the method and the scheduler take per request. What is absent is the bundle's default."""

    model_config = ConfigDict(extra="forbid")

    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    ratio_min: Annotated[float, Field(ge=0, le=1)] | None = None
    ratio_max: Annotated[float, Field(ge=0, le=1)] | None = None
    dense: Annotated[bool, _null_is_absent(False)] = False
    probe_seed: Annotated[int, Field(ge=0, lt=_INT64)] | None = None
    timeout_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


class ChatRequest(_Part):
    """The body. The default temperature is 0, the greedy choice, where OpenAI's own is 1."""

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    stream: Annotated[bool, _null_is_absent(False)] = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, _null_is_absent(1)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2), _null_is_absent(0.0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1), _null_is_absent(1.0)] = 1.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2), _null_is_absent(0.0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2), _null_is_absent(0.0)] = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: Annotated[list[str], Field(fail_fast=True), BeforeValidator(_one_or_list)] | None = None
    logprobs: Annotated[bool, _null_is_absent(False)] = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    # As vLLM names them; OpenAI has none of these.
    top_k: Annotated[int, Field(ge=-1, lt=_INT32), _null_is_absent(0)] = 0
    """0 and -1 take all tokens."""
    min_p: Annotated[float, Field(ge=0, lt=1), _null_is_absent(0.0)] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False), _null_is_absent(1.0)] = 1.0
    ignore_eos: Annotated[bool, _null_is_absent(False)] = False
    priority: Annotated[int, Field(ge=-_INT32, lt=_INT32), _null_is_absent(0)] = 0
    """Requests of a higher priority enter first, here as in Triton's tensors (vLLM lets the lower one go first)."""

    zipvl: ZipvlOptions | None = None
