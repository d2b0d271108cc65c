"""What a client sent, to a request that the scheduler takes: checked, read, tokenised, images embedded."""

from __future__ import annotations

import numpy as np

from zipvl_serving.bundle import Bundle
from zipvl_serving.config import ServingConfig
from zipvl_serving.errors import InputError
from zipvl_serving.method import MethodParams
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.sequence import Request, new_tokens
from zipvl_serving.vision.features import Vision
from zipvl_serving.wire import ImagePart, Message, TextPart, WireRequest


class Intake:
    """The work before a request may wait for its place; any thread may do it."""

    def __init__(self, bundle: Bundle, config: ServingConfig, processor: PromptProcessor, vision: Vision) -> None:
        self._manifest = bundle.manifest
        self._config = config
        self._processor = processor
        self._vision = vision
        self._defaults = MethodParams.defaults(bundle.manifest.method)

    def check(self, request: WireRequest) -> None:
        """Refuse what can be seen without work; raises InputError."""
        if (request.text is None) == (request.messages is None):
            raise InputError("a request has either a text or messages, and not both")
        if request.parameters.raw and request.text is None:
            raise InputError("raw: messages always go through the chat template; give a text")
        if len(request.images) > self._config.max_images:
            raise InputError(f"{len(request.images)} images are too many: at most {self._config.max_images} a request")
        for place, image in enumerate(request.images, start=1):
            if len(image) > self._config.max_image_bytes:
                limit = self._config.max_image_bytes
                raise InputError(f"image {place}: too large: {len(image)} bytes, more than the limit of {limit}")
        new_tokens(request.parameters.sampling(), self._manifest.limits)
        request.parameters.method(self._defaults)

    def deadline(self, request: WireRequest, arrived: float) -> float | None:
        """When the request's time is up, by the clock of `arrived`."""
        limit = request.parameters.timeout_s or self._config.timeout_s
        return arrived + limit if limit else None

    def prepare(self, number: int, request: WireRequest, arrived: float) -> Request:
        """Read the images, tokenise and embed; raises InputError."""
        features, hits = self._vision.embed(request.images)
        rows = [len(image) for image in features]
        if request.parameters.raw:
            assert request.text is not None
            prompt = self._processor.tokenise(request.text, rows)
        else:
            prompt = self._processor.prepare_messages(request.messages or _user(request), rows)
        return Request(
            number=number,
            prompt=prompt,
            features=np.concatenate(features) if features else None,
            sampling=request.parameters.sampling(),
            method=request.parameters.method(self._defaults),
            arrived=arrived,
            deadline=self.deadline(request, arrived),
            priority=request.parameters.priority,
            stream_interval=request.parameters.stream_interval or self._config.stream_interval,
            cached_images=hits,
        )


def _user(request: WireRequest) -> tuple[Message, ...]:
    """One user's message: the images, then the text."""
    images = [ImagePart() for _ in request.images]
    return (Message(role="user", content=[*images, TextPart(text=request.text or "")]),)
