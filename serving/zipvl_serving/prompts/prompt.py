"""A user's text and images to the arrays that a prefill takes, from the Hugging Face processor files of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.prompts.chat_template import ChatTemplate
from zipvl_serving.prompts.processor_files import ProcessorFiles
from zipvl_serving.prompts.text_encoder import TextEncoder
from zipvl_serving.wire import ImagePart, Message, TextPart


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the prefill takes it; n counts every token, the image tokens among them.

    text: what was encoded, before image tokens were repeated.
    input_ids: int64 [n].
    is_text: bool [n], False at image tokens.
    position_ids: int64 [n], 0 to n - 1.
    pixel_values: float32 [images, 3, H, W]; [0, 3, H, W] where the caller has the images' features.
    """

    text: str
    input_ids: NDArray[np.int64]
    is_text: NDArray[np.bool_]
    position_ids: NDArray[np.int64]
    pixel_values: NDArray[np.float32]


class PromptProcessor:
    """What Hugging Face's LlavaProcessor does, without transformers.

    tokenizer: the tokenizer, for StreamDecoder.
    image_processor: the image half.
    image_token, image_token_id: the token that stands for an image in a prompt.
    eos_token_ids: the tokens that end an answer.

    `prepare`, `encode` and `tokenise` are for the operator's own prompts: special tokens in them are special tokens.
    `prepare_messages` is for the words of strangers.
    """

    def __init__(self, directory: str | Path) -> None:
        """Read the processor files of `directory`; raises as ProcessorFiles.read does."""
        files = ProcessorFiles.read(Path(directory))
        self.tokenizer = files.tokenizer
        self.image_processor = files.image_processor
        self.image_token = files.image_token
        self.image_token_id = files.image_token_id
        self.eos_token_ids = files.eos_token_ids
        self._patch_size = files.patch_size
        self._additional_tokens = files.additional_tokens
        self._template = ChatTemplate(files.chat_template, files.named_tokens, files.image_token)
        written = f"{self._template.literals}\0{files.image_token}"
        self._encoder = TextEncoder(files.tokenizer, written, files.named_tokens.get("bos_token"))

    def prepare(self, text: str, images: Sequence[Image.Image], raw: bool = False) -> EncodedPrompt:
        """Encode what a user typed.

        raw: `text` is the whole prompt as the model sees it, with an image token where each image goes. Otherwise it
        is a user's message, which the chat template wraps: the images go before it, or, where it contains image
        tokens itself, in their places. Raises InputError as `render_chat` and `encode` do.
        """
        if not raw:
            text = self.render_chat(text, 0 if self.image_token in text else len(images))
        return self.encode(text, images)

    def prepare_messages(self, messages: Sequence[Message], image_tokens: Sequence[int]) -> EncodedPrompt:
        """Encode a conversation whose text is nothing but text: only what the chat template writes, and image parts,
        become special tokens.

        image_tokens: how many tokens each image takes, in the order of their parts. Raises InputError, one line, as
        `render_messages` does, for image parts that are not as many as the images, and for text that neither the
        template nor the tokenizer leaves a way to keep from being a special token.
        """
        _require_conversation(messages)
        parts = sum(_count_images(message) for message in messages)
        if parts != len(image_tokens):
            raise InputError(
                f"the messages have {_count(parts, 'image part')} but {_given(len(image_tokens))}; "
                "put one image part where each image goes"
            )
        text, ids = self._encoder.encode_chat(lambda write: self._template.render(messages, write))
        places = ids.count(self.image_token_id)
        if places != parts:
            raise InputError(
                f"the chat template writes {_count(places, 'image token')} ({self.image_token!r}) for "
                f"{_count(parts, 'image part')}"
            )
        return self._with_images(text, ids, image_tokens)

    def render_messages(self, messages: Sequence[Message]) -> str:
        """The prompt for a conversation that ends with the user's words, ready for the answer.

        Without a chat template the form is LLaVA-1.5's, images first in each message: "{system} USER: <image>\\n{text}
        ASSISTANT: {text}</s>USER: {text} ASSISTANT:". Raises InputError, one line, for a last message that is not the
        user's or is empty, and when the chat template refuses the conversation.
        """
        _require_conversation(messages)
        return self._template.render(messages)

    def render_chat(self, text: str, images: int) -> str:
        """The prompt for one user message of `images` images followed by `text`; raises InputError for an empty text
        and as `render_messages` does."""
        _require_text(text)
        content: list[TextPart | ImagePart] = [*(ImagePart() for _ in range(images)), TextPart(text=text)]
        return self.render_messages([Message(role="user", content=content)])

    def encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """`tokenise` for images, with their pixels; raises InputError for images that cannot be handled as well."""
        _require_text(text)
        self._require_places(text, len(images))
        pixel_values = self.image_processor(images)
        height, width = pixel_values.shape[2:]
        per_image = (height // self._patch_size) * (width // self._patch_size) + self._additional_tokens
        return replace(self.tokenise(text, [per_image] * len(images)), pixel_values=pixel_values)

    def tokenise(self, text: str, image_tokens: Sequence[int]) -> EncodedPrompt:
        """Tokenise, with each image token repeated as often as `image_tokens` says of its image.

        The tokenizer adds its special tokens (its post-processor decides which: for Llama the bos token), unless
        `text` starts with the bos token already, as most chat templates write it. That is what Hugging Face's
        `apply_chat_template(tokenize=True)` does; a plain `processor(text=...)` would add a second bos token.
        Raises InputError for an empty text, and when the image tokens in it are not as many as the images.
        """
        _require_text(text)
        self._require_places(text, len(image_tokens))
        ids = self._encoder.encode(text)
        if ids.count(self.image_token_id) != len(image_tokens):
            raise ZipvlError(f"tokenizer.json does not keep {self.image_token} as one token of its own")
        return self._with_images(text, ids, image_tokens)

    def _require_places(self, text: str, images: int) -> None:
        places = text.count(self.image_token)
        if places != images:
            raise InputError(
                f"the prompt has {_count(places, 'image token')} ({self.image_token!r}) but {_given(images)}; "
                f"put one {self.image_token} where each image goes"
            )

    def _with_images(self, text: str, ids: Sequence[int], image_tokens: Sequence[int]) -> EncodedPrompt:
        input_ids = np.array(ids, np.int64)
        repeats = np.ones(len(input_ids), np.int64)
        repeats[input_ids == self.image_token_id] = image_tokens
        input_ids = np.repeat(input_ids, repeats)
        is_text = input_ids != self.image_token_id
        positions = np.arange(len(input_ids), dtype=np.int64)
        return EncodedPrompt(text, input_ids, is_text, positions, self.image_processor([]))


def _require_conversation(messages: Sequence[Message]) -> None:
    for at, message in enumerate(messages):
        for text in _texts(message):
            _require_unicode(f"messages[{at}]", text)
    if not messages or messages[-1].role != "user":
        last = f"not the {messages[-1].role}'s" if messages else "but there are none"
        raise InputError(f"messages: the last one must be the user's, {last}")
    if not _count_images(messages[-1]) and not any(text.strip() for text in _texts(messages[-1])):
        raise InputError("the prompt is empty")


def _texts(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content if isinstance(part, TextPart)]


def _count_images(message: Message) -> int:
    return sum(isinstance(part, ImagePart) for part in message.content)


def _require_text(text: str) -> None:
    if not text.strip():
        raise InputError("the prompt is empty")
    _require_unicode("the prompt", text)


def _require_unicode(where: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a character: of a command line that was not UTF-8, or of JSON's \\u
        raise InputError(f"{where} is not valid Unicode: {text[error.start : error.end]!r}") from error


def _given(images: int) -> str:
    return f"{_count(images, 'image')} {'was' if images == 1 else 'were'} given"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
