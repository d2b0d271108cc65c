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

CHARACTERS_PER_TOKEN = 32
"""More than any text has on average: real ones have about four."""


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
        self._check_length(request)
        if len(request.images) > self._config.max_images:
            raise InputError(f"{len(request.images)} images are too many: at most {self._config.max_images} a request")
        for place, image in enumerate(request.images, start=1):
            if len(image) > self._config.max_image_bytes:
                limit = self._config.max_image_bytes
                raise InputError(f"image {place}: too large: {len(image)} bytes, more than the limit of {limit}")
        visual = len(request.images) * self._manifest.model.shape.tokens_per_image
        if visual > self._manifest.limits.max_input_tokens:
            most = self._manifest.limits.max_input_tokens
            raise InputError(f"{len(request.images)} images take {visual} tokens, this bundle takes {most} at most")
        sampling = request.parameters.sampling()
        new_tokens(sampling, self._manifest.limits)
        vocabulary = self._manifest.model.shape.vocabulary
        for token in sampling.logit_bias:
            if token >= vocabulary:
                raise InputError(f"logit_bias: there is no token {token}; valid: 0 to {vocabulary - 1}")
        request.parameters.method(self._defaults)

    def _check_length(self, request: WireRequest) -> None:
        """Tokenising a text that is far too long would itself be an attack: megabytes of it hold everybody up."""
        characters = len(request.text or "")
        for message in request.messages or ():
            parts = [TextPart(text=message.content)] if isinstance(message.content, str) else message.content
            characters += sum(len(part.text) for part in parts if isinstance(part, TextPart))
        limit = self._manifest.limits.max_input_tokens
        if characters > limit * CHARACTERS_PER_TOKEN:
            raise InputError(
                f"the prompt has {characters} characters, far more than the {limit} tokens that this bundle takes can "
                f"hold ({CHARACTERS_PER_TOKEN} a token)"
            )

    def deadline(self, request: WireRequest, arrived: float) -> float | None:
        """When the request's time is up, by the clock of `arrived`."""
        limit = request.parameters.timeout_s or self._config.timeout_s
        return arrived + limit if limit else None

    def prepare(self, number: int, request: WireRequest, arrived: float, deadline: float | None) -> Request:
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
            deadline=deadline,
            priority=request.parameters.priority,
            stream_interval=request.parameters.stream_interval or self._config.stream_interval,
            cached_images=hits,
        )


def _user(request: WireRequest) -> tuple[Message, ...]:
    """One user's message: the images, then the text."""
    images = [ImagePart() for _ in request.images]
    return (Message(role="user", content=[*images, TextPart(text=request.text or "")]),)
