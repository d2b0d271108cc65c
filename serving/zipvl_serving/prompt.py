"""A user's text and images to the arrays that a prefill takes, from the Hugging Face processor files of a bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.images import ImageProcessor


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt as the prefill takes it; n counts every token, the image tokens among them.

    text: what was encoded, with one image token per image.
    input_ids: int64 [n].
    is_text: bool [n], False at image tokens.
    position_ids: int64 [n], 0 to n - 1.
    pixel_values: float32 [images, 3, H, W].
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
    """

    def __init__(self, directory: str | Path) -> None:
        """Read the processor files of `directory`.

        Needed: tokenizer.json, processor_config.json (with `patch_size` and `vision_feature_select_strategy`), and
        the image processor's settings in it or in preprocessor_config.json. Read where present:
        tokenizer_config.json, chat_template.jinja, chat_template.json, config.json, generation_config.json.
        Raises ZipvlError for a missing or broken file, InputError for a processor of an unsupported kind.
        """
        directory = Path(directory)
        try:
            self._read(directory)
        except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ZipvlError(f"{directory}: a processor file holds what it should not: {what}") from error

    def _read(self, directory: Path) -> None:
        processor = _read_json(directory / "processor_config.json", required=True)
        tokenizer_config = _read_json(directory / "tokenizer_config.json")
        config = _read_json(directory / "config.json")

        kind = processor.get("processor_class", "LlavaProcessor")
        if kind != "LlavaProcessor":
            raise InputError(f"{directory / 'processor_config.json'}: unsupported {kind!r}; valid: LlavaProcessor")
        self._patch_size, self._additional_tokens = _read_token_counts(directory / "processor_config.json", processor)

        images = (
            processor if "image_processor" in processor else _read_json(directory / "preprocessor_config.json", True)
        )
        self.image_processor = ImageProcessor.from_config(images)

        self.tokenizer = _read_tokenizer(directory / "tokenizer.json")
        self._special_tokens = _named_tokens(tokenizer_config)
        self.image_token = self._special_tokens.get("image_token") or str(processor.get("image_token") or "<image>")
        self.image_token_id = self._find_image_token(config)
        self.eos_token_ids = self._find_eos_tokens(_read_json(directory / "generation_config.json"), config)
        self._chat_template = _compile_chat_template(_read_chat_template(directory, processor, tokenizer_config))

    def prepare(self, text: str, images: Sequence[Image.Image], raw: bool = False) -> EncodedPrompt:
        """Encode what a user typed.

        raw: `text` is the whole prompt as the model sees it, with an image token where each image goes. Otherwise it
        is a user's message, which the chat template wraps: the images go before it, or, where it contains image
        tokens itself, in their places. Raises InputError as `render_chat` and `encode` do.
        """
        if not raw:
            text = self.render_chat(text, 0 if self.image_token in text else len(images))
        return self.encode(text, images)

    def render_chat(self, text: str, images: int) -> str:
        """The prompt for one user message of `images` images followed by `text`, ready for the answer.

        Without a chat template the form is LLaVA-1.5's, "USER: <image>\\n{text} ASSISTANT:". Raises InputError for an
        empty text, and when the chat template refuses the message.
        """
        _require_text(text)
        if self._chat_template is None:
            marks = f"{self.image_token}\n" * images
            return f"USER: {marks}{text} ASSISTANT:"
        content = [{"type": "image"} for _ in range(images)] + [{"type": "text", "text": text}]
        try:
            return self._chat_template.render(
                messages=[{"role": "user", "content": content}], add_generation_prompt=True, **self._special_tokens
            )
        except Exception as error:  # a template is a program: it raises what its author, or a bug in it, makes it raise
            raise InputError(f"the chat template cannot render this prompt: {' '.join(str(error).split())}") from error

    def encode(self, text: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        """Expand each image token to as many as its image has patches, and tokenise.

        The tokenizer adds its special tokens (its post-processor decides which: for Llama the bos token), unless
        `text` starts with the bos token already, as most chat templates write it. That is what Hugging Face's
        `apply_chat_template(tokenize=True)` does; a plain `processor(text=...)` would add a second bos token.
        Raises InputError for an empty text, and when the image tokens in it are not as many as the images.
        """
        _require_text(text)
        parts = text.split(self.image_token)
        if len(parts) - 1 != len(images):
            raise InputError(
                f"the prompt has {_count(len(parts) - 1, 'image token')} ({self.image_token!r}) but "
                f"{_count(len(images), 'image')} {'was' if len(images) == 1 else 'were'} given; "
                f"put one {self.image_token} where each image goes"
            )
        pixel_values = self.image_processor(images)
        height, width = pixel_values.shape[2:]
        per_image = (height // self._patch_size) * (width // self._patch_size) + self._additional_tokens
        bos = self._special_tokens.get("bos_token")
        encoding = self.tokenizer.encode(
            (self.image_token * per_image).join(parts),
            add_special_tokens=bos is None or not text.startswith(bos),
        )
        input_ids = np.array(encoding.ids, np.int64)
        is_text = input_ids != self.image_token_id
        if np.count_nonzero(~is_text) != per_image * len(images):
            raise ZipvlError(f"tokenizer.json does not keep {self.image_token} as one token of its own")
        return EncodedPrompt(text, input_ids, is_text, np.arange(len(input_ids), dtype=np.int64), pixel_values)

    def _find_image_token(self, config: Mapping[str, Any]) -> int:
        found = self.tokenizer.token_to_id(self.image_token)
        if found is None:
            raise ZipvlError(f"the tokenizer has no image token {self.image_token!r}")
        expected = config.get("image_token_index", config.get("image_token_id", found))
        if expected != found:
            raise ZipvlError(f"the model's image token is {expected} but the tokenizer's {self.image_token} is {found}")
        return found

    def _find_eos_tokens(self, generation: Mapping[str, Any], config: Mapping[str, Any]) -> frozenset[int]:
        """The first of generation_config.json, config.json, its text_config and the tokenizer that names any."""
        for source in (generation, config, config.get("text_config") or {}):
            eos = source.get("eos_token_id")
            if eos is not None:
                return frozenset(int(token) for token in (eos if isinstance(eos, list) else [eos]))
        token = self.tokenizer.token_to_id(self._special_tokens.get("eos_token", ""))
        return frozenset() if token is None else frozenset({token})


def _require_text(text: str) -> None:
    if not text.strip():
        raise InputError("the prompt is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # a command line that was not UTF-8 leaves surrogates
        raise InputError(f"the prompt is not valid Unicode: {text[error.start : error.end]!r}") from error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _read_json(path: Path, required: bool = False) -> dict[str, Any]:
    """The object in a JSON file; empty where the file is missing and not required."""
    if not required and not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ZipvlError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise ZipvlError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ZipvlError(f"{path}: an object was expected, not {type(value).__name__}")
    return value


def _read_token_counts(path: Path, processor: Mapping[str, Any]) -> tuple[int, int]:
    """The patch size in pixels, and how many image tokens an image has beyond its patches."""
    patch_size, additional = processor.get("patch_size"), processor.get("num_additional_image_tokens") or 0
    strategy = processor.get("vision_feature_select_strategy")
    if not isinstance(patch_size, int) or patch_size < 1:
        raise ZipvlError(f"{path}: patch_size is {patch_size!r}; valid: an integer >= 1")
    if not isinstance(additional, int) or additional < 0:
        raise ZipvlError(f"{path}: num_additional_image_tokens is {additional!r}; valid: an integer >= 0")
    if strategy not in ("default", "full"):
        raise ZipvlError(f"{path}: vision_feature_select_strategy is {strategy!r}; valid: default, full")
    # "default" drops the class token of the vision tower again.
    return patch_size, additional - (strategy == "default")


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ZipvlError(f"{path} is missing")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust side raises plain Exception
        raise ZipvlError(f"{path} cannot be read: {error}") from error
    # Both are settings of training; a prompt must come out whole.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _named_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, `image_token` and so on, the variables a chat template may use."""
    extra = tokenizer_config.get("extra_special_tokens")
    entries = {**tokenizer_config, **(extra if isinstance(extra, dict) else {})}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in entries.items()}
    return {name: value for name, value in contents.items() if name.endswith("_token") and isinstance(value, str)}


def _read_chat_template(
    directory: Path, processor: Mapping[str, Any], tokenizer_config: Mapping[str, Any]
) -> str | None:
    """The chat template's source, from the first place that has one, in Hugging Face's order."""
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    sources = (_read_json(directory / "chat_template.json"), processor, tokenizer_config)
    template = next((source["chat_template"] for source in sources if source.get("chat_template")), None)
    if isinstance(template, list):  # several by name
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if not isinstance(template, str | None):
        raise ZipvlError(f"{directory}: the chat template must be text, not {type(template).__name__}")
    return template


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; serving passes its body through."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile_chat_template(source: str | None) -> jinja2.Template | None:
    """The template in a sandbox (bundles come from anywhere), with the names that Hugging Face gives to templates."""
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ZipvlError(f"the chat template is broken: line {error.lineno}: {error.message}") from error


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own tojson escapes HTML, which a model has never seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
