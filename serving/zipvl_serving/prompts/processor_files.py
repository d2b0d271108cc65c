"""The Hugging Face processor files of a directory, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.vision.images import ImageProcessor


@dataclass(frozen=True)
class ProcessorFiles:
    """What a directory says of its prompts.

    named_tokens: `bos_token`, `eos_token`, `image_token` and so on, the variables a chat template may use.
    image_token, image_token_id: the token that stands for an image in a prompt.
    eos_token_ids: the tokens that end an answer.
    chat_template: its source; None where the directory has none.
    patch_size: pixels along the edge of a patch.
    additional_tokens: image tokens that an image has beyond its patches; may be -1.
    """

    tokenizer: Tokenizer
    image_processor: ImageProcessor
    named_tokens: dict[str, str]
    image_token: str
    image_token_id: int
    eos_token_ids: frozenset[int]
    chat_template: str | None
    patch_size: int
    additional_tokens: int

    @classmethod
    def read(cls, directory: Path) -> ProcessorFiles:
        """Read the processor files of `directory`.

        Needed: tokenizer.json, processor_config.json (with `patch_size` and `vision_feature_select_strategy`), and
        the image processor's settings in it or in preprocessor_config.json. Read where present:
        tokenizer_config.json, chat_template.jinja, chat_template.json, config.json, generation_config.json.
        Raises ZipvlError for a missing or broken file, InputError for a processor of an unsupported kind.
        """
        try:
            return cls._read(directory)
        except (ValueError, TypeError, AttributeError, KeyError, ArithmeticError) as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ZipvlError(f"{directory}: a processor file holds what it should not: {what}") from error

    @classmethod
    def _read(cls, directory: Path) -> ProcessorFiles:
        processor = _read_json(directory / "processor_config.json", required=True)
        tokenizer_config = _read_json(directory / "tokenizer_config.json")
        config = _read_json(directory / "config.json")
        generation = _read_json(directory / "generation_config.json")

        kind = processor.get("processor_class", "LlavaProcessor")
        if kind != "LlavaProcessor":
            raise InputError(f"{directory / 'processor_config.json'}: unsupported {kind!r}; valid: LlavaProcessor")
        patch_size, additional_tokens = _token_counts(directory / "processor_config.json", processor)

        images = (
            processor if "image_processor" in processor else _read_json(directory / "preprocessor_config.json", True)
        )
        image_processor = ImageProcessor.from_config(images)

        tokenizer = _read_tokenizer(directory / "tokenizer.json")
        named_tokens = _named_tokens(tokenizer_config)
        image_token = named_tokens.get("image_token") or str(processor.get("image_token") or "<image>")
        return cls(
            tokenizer,
            image_processor,
            named_tokens,
            image_token,
            _image_token_id(tokenizer, image_token, config),
            _eos_token_ids(tokenizer, named_tokens, generation, config),
            _read_chat_template(directory, processor, tokenizer_config),
            patch_size,
            additional_tokens,
        )


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


def _token_counts(path: Path, processor: Mapping[str, Any]) -> tuple[int, int]:
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
    extra = tokenizer_config.get("extra_special_tokens")
    entries = {**tokenizer_config, **(extra if isinstance(extra, dict) else {})}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in entries.items()}
    return {name: value for name, value in contents.items() if name.endswith("_token") and isinstance(value, str)}


def _image_token_id(tokenizer: Tokenizer, image_token: str, config: Mapping[str, Any]) -> int:
    found = tokenizer.token_to_id(image_token)
    if found is None:
        raise ZipvlError(f"the tokenizer has no image token {image_token!r}")
    expected = config.get("image_token_index", config.get("image_token_id", found))
    if expected != found:
        raise ZipvlError(f"the model's image token is {expected} but the tokenizer's {image_token} is {found}")
    return found


def _eos_token_ids(
    tokenizer: Tokenizer, named_tokens: Mapping[str, str], generation: Mapping[str, Any], config: Mapping[str, Any]
) -> frozenset[int]:
    """The first of generation_config.json, config.json, its text_config and the tokenizer that names any."""
    for source in (generation, config, config.get("text_config") or {}):
        eos = source.get("eos_token_id")
        if eos is not None:
            return frozenset(int(token) for token in (eos if isinstance(eos, list) else [eos]))
    token = tokenizer.token_to_id(named_tokens.get("eos_token", ""))
    return frozenset() if token is None else frozenset({token})


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
