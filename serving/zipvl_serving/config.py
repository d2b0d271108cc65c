"""How a bundle is served: limits, queueing, caches. The recipe sets defaults, `serve` and Triton's config override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zipvl_serving.errors import InputError, nearest


class ServingConfig(BaseModel):
    """Settings of the serving runtime that change no answer but one: whether a request is taken, and when."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stream_interval: Annotated[int, Field(ge=1)] = Field(default=1, description="Tokens per streamed response.")
    max_waiting: Annotated[int, Field(ge=1)] = Field(
        default=256, description="Requests that may wait for a place; one more is refused at once."
    )
    max_prefill_tokens: Annotated[int, Field(ge=1)] = Field(
        default=2048,
        description="Prompt tokens prefilled between two decode steps; a longer prompt goes alone.",
    )
    timeout_s: Annotated[float, Field(ge=0)] = Field(
        default=0.0, description="Seconds that a request may take where it names no number itself; 0 is no limit."
    )
    batch_invariant: bool = Field(
        default=True,
        description="Decode enough rows that no answer hangs on who else is served: one on ONNX Runtime, else two.",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0, description="Threads of the engine; 0 is one for each core that the process may use."
    )
    prepack: bool = Field(
        default=True,
        description="Keep a second copy of the weights as the processor multiplies them fastest, for decode (CPU).",
    )
    spinning: bool = Field(
        default=False,
        description="Let waiting threads of the engine spin: quicker alone on a machine, far slower beside others.",
    )
    preprocess_threads: Annotated[int, Field(ge=1, le=256)] = Field(
        default=2, description="Threads that read images, tokenise and run the vision engine."
    )
    image_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        default=64 << 20, description="Bytes of image embeddings kept for images that come again; 0 keeps none."
    )
    max_images: Annotated[int, Field(ge=0)] = Field(default=128, description="Images, or frames, in one request.")
    max_image_bytes: Annotated[int, Field(ge=1)] = Field(default=20 << 20, description="Bytes of one image file.")
    max_image_pixels: Annotated[int, Field(ge=1)] = Field(
        default=64_000_000, description="Pixels of one image; a larger one is refused before it is decoded."
    )
    drain_s: Annotated[float, Field(ge=0)] = Field(
        default=30.0, description="Seconds that running streams have left after SIGTERM before they are ended."
    )

    def override(self, settings: Mapping[str, Any]) -> ServingConfig:
        """This with some settings changed; strings are read as YAML would. InputError names a wrong one."""
        for name in settings:
            if name not in type(self).model_fields:
                raise InputError(f"{name}: no such setting of serving; {nearest(name, type(self).model_fields)}")
        try:
            return type(self).model_validate({**self.model_dump(), **settings})
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{first['loc'][0]}: {first['input']!r} is no valid setting: {first['msg']}") from None
