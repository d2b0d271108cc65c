"""Tokenizers of every kind with the chat templates that go with them, as transformers' LlavaProcessor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from zipvl_compile.demo.model import CHAT_TEMPLATE as DEMO_TEMPLATE
from zipvl_compile.demo.questions import VOCABULARY
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.wire import Message, TextPart

SENTENCES = [
    "What is in this picture? A red bicycle leans against a wall.",
    "Read the sign: 自転車は左側を走ります 🚲🚦",
    "USER: how many digits are there? ASSISTANT: 42",
    "the user said: end of text, system, assistant, image, s",
]

# Of llava-hf/llava-1.5-7b-hf.
LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\\n' }}{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}"
    "{% endfor %}{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# Of the days before parts: strings alone, and no word about the roles' order.
STRING_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}{% endif %}{% endfor %}"
)
LLAMA_3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content %}{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}"
).replace("\\n", "\n")

_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Kind:
    """A tokenizer with a chat template.

    form: how the template takes a message's content.
    plain: the ids of a text without any special token in it, by a tokenizer that knows none; its second argument is
    whether the text begins the prompt.
    special: the tokens that must come from nobody but the template.
    """

    tokenizer: Tokenizer
    template: str
    form: Literal["string", "parts", "either"]
    named: dict[str, str]
    plain: Callable[[str, bool], list[int]]
    special: list[str]

    def save(self, directory: Path, template: str | None = None) -> tuple[PromptProcessor, LlavaProcessor]:
        """Save the processor's files, with another template where one is given, and read them with both libraries."""
        reference = llava(self.tokenizer, template or self.template, **self.named)
        reference.save_pretrained(directory)
        return PromptProcessor(directory), reference


def llava(tokenizer: Tokenizer, template: str | None, image_token: str, **named: str) -> LlavaProcessor:
    """Images are 28 x 28 and take four tokens."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens={"image_token": image_token}, **named
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(count)
    sizes = [(31, 50), (90, 28), (28, 28)]
    return [Image.fromarray(random.integers(0, 256, (*sizes[i % 3], 3), np.uint8)) for i in range(count)]


def as_dicts(messages: list[Message], form: str = "either") -> list[dict[str, Any]]:
    """Messages as transformers takes them, in the form that a template takes, which it leaves to the caller."""

    def convert(content: Any) -> Any:
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if form == "parts" else content
        if form == "string":
            return "\n".join(part.text if isinstance(part, TextPart) else "<image>" for part in content)
        return [part.model_dump() for part in content]

    return [{"role": message.role, "content": convert(message.content)} for message in messages]


def texts_of(message: Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content if isinstance(part, TextPart)]


def byte_level(special: list[str], bos: str | None = None) -> Tokenizer:
    """Too small to hold an emoji or a Chinese character in one token; adds a bos token where one is named."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330 + len(special),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos is not None:
        tokenizer.post_processor = _writes_bos(tokenizer, bos)
    return tokenizer


def _writes_bos(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def _words() -> Kind:
    """The demo's: one word, one token."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
    ordinary = {word: i for i, word in enumerate(VOCABULARY) if word not in special}
    unknown = VOCABULARY.index("<unk>")
    return Kind(
        tokenizer,
        DEMO_TEMPLATE,
        "either",
        {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "image_token": "<image>"},
        lambda text, first: [ordinary.get(word, unknown) for word in text.split()],
        special,
    )


def _chatml() -> Kind:
    """Qwen's: bytes, no bos token, and added tokens that are not special, in the template or not."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    tokenizer = byte_level(special)
    bare = Tokenizer(tokenizer.model)
    bare.pre_tokenizer = tokenizer.pre_tokenizer
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    bare.add_tokens([AddedToken("<think>", normalized=False)])
    return Kind(
        tokenizer,
        QWEN_TEMPLATE,
        "either",
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "image_token": "<|image_pad|>"},
        lambda text, first: bare.encode(text).ids,
        special,
    )


def _sentencepiece(unigram: bool) -> Kind:
    """Llama's or T5's: '▁' for spaces, one before the very first word, bytes for what the vocabulary lacks."""
    special = ["<unk>", "<s>", "</s>"]
    letters = "▁abcdeghimnorstuwxyz</>[].:ASEUINTR"
    pieces = [*_BYTES, *letters, "▁a", "ab", "▁i", "</", "s>", "▁u", "▁us"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "i"), ("<", "/"), ("s", ">"), ("▁", "u"), ("▁u", "s")]

    def build(names: list[str], prepend: str) -> Tokenizer:
        if unigram:  # the special tokens have the best scores of all, as converted checkpoints give them
            vocabulary = [
                *((name, 0.0) for name in names),
                *((piece, -float(6 + i % 3)) for i, piece in enumerate(pieces)),
            ]
            tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
        else:
            ids = {piece: i for i, piece in enumerate([*names, *pieces])}
            tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True, unk_token=names[0]))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
        return tokenizer

    tokenizer = build(special, "first")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = _writes_bos(tokenizer, "<s>")
    first, later = (build([f"\ue000{i}" for i in range(3)], prepend) for prepend in ("first", "never"))
    return Kind(
        tokenizer,
        LLAVA_TEMPLATE if unigram else STRING_TEMPLATE,
        "parts" if unigram else "string",
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "image_token": "<image>"},
        lambda text, at_start: (first if at_start else later).encode(text).ids,
        [*special, "<image>"],
    )


@cache
def kind(name: str) -> Kind:
    """One of KINDS; read only."""
    match name:
        case "words":
            return _words()
        case "chatml":
            return _chatml()
        case "sentencepiece":
            return _sentencepiece(unigram=False)
        case "unigram":
            return _sentencepiece(unigram=True)
    raise ValueError(name)


KINDS = ("words", "chatml", "sentencepiece", "unigram")
