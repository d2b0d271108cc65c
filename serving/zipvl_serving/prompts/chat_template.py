"""Conversations to prompts: Hugging Face's chat templates, compiled once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.wire import ImagePart, Message, TextPart

# LLaVA-1.5's own form, for checkpoints that bring no template: what a message says is after its images.
_LLAVA = """
{%- for message in messages -%}
    {{- message['role'] | upper + ': ' if message['role'] != 'system' -}}
    {%- for part in message['content'] if part['type'] == 'image' -%} {{- image_token + '\n' -}} {%- endfor -%}
    {{- message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -}}
    {{- eos_token if message['role'] == 'assistant' else ' ' -}}
{%- endfor -%}
ASSISTANT:"""

_Form = Literal["string", "parts", "either"]
_PROBE = "2718281828"  # upper and title leave digits alone
_IMAGE_PART = {"type": "image"}


class ChatTemplate:
    """A chat template, and in which form it takes a message's content: a string, a list of parts, or either."""

    def __init__(self, source: str | None, variables: Mapping[str, str], image_token: str) -> None:
        """Compile `source`, or LLaVA-1.5's form where it is None.

        variables: the tokenizer's named tokens, which the template may write. Raises ZipvlError for broken syntax.
        """
        if source is None:
            source, variables = _LLAVA, {"image_token": image_token, **variables}
        environment = _environment()
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ZipvlError(f"the chat template is broken: line {error.lineno}: {error.message}") from error
        self._variables = dict(variables)
        self._image_token = image_token
        self.literals = _literals(environment, source)
        strings, parts = self._repeats_string(), self._repeats_parts()
        self._form: _Form = "either" if strings == parts else "string" if strings else "parts"

    literals: str
    """Every piece of text that the template itself may write, NUL between them."""

    def render(self, messages: Sequence[Message], write: Callable[[str], str] = str) -> str:
        """The prompt for a conversation, ready for the answer; `write` is applied to every text of a message.

        Raises InputError, one line, where the template refuses the conversation.
        """
        plain = [{"role": message.role, "content": self._content(message.content, write)} for message in messages]
        try:
            return self._render(plain)
        except Exception as error:  # a template is a program: it raises what its author, or a bug in it, makes it raise
            raise InputError(f"the chat template cannot render this prompt: {' '.join(str(error).split())}") from error

    def _render(self, messages: list[dict[str, Any]]) -> str:
        return self._template.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._variables
        )

    def _content(
        self, content: str | Sequence[TextPart | ImagePart], write: Callable[[str], str]
    ) -> str | list[dict[str, str]]:
        """A message's content in the form that the template takes; as it came where that is either, or unknown."""
        if isinstance(content, str):
            return [_text_part(write(content))] if self._form == "parts" else write(content)
        if self._form == "string":
            return "\n".join(write(part.text) if isinstance(part, TextPart) else self._image_token for part in content)
        return [_text_part(write(part.text)) if isinstance(part, TextPart) else _IMAGE_PART for part in content]

    def _repeats_string(self) -> bool:
        """Whether a message that is a string comes out in the prompt, rather than failing or being dropped."""
        return _PROBE in self._try(_PROBE)

    def _repeats_parts(self) -> bool:
        """Whether a message of an image and a text comes out in the prompt; a printed list has no image token."""
        prompt = self._try([_IMAGE_PART, _text_part(_PROBE)])
        return _PROBE in prompt and prompt.count(self._image_token) == 1

    def _try(self, content: str | list[dict[str, str]]) -> str:
        try:
            return self._render([{"role": "user", "content": content}])
        except Exception:
            return ""


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


class _GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; serving passes its body through."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.Environment:
    """A sandbox (bundles come from anywhere) with the names that Hugging Face gives to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    helpers: dict[str, Callable[..., Any]] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
    environment.globals.update(helpers)
    environment.filters["tojson"] = _to_json
    return environment


def _literals(environment: jinja2.Environment, source: str) -> str:
    texts = {node.data for node in environment.parse(source).find_all(nodes.TemplateData)}
    texts |= {str(node.value) for node in environment.parse(source).find_all(nodes.Const)}
    return "\0".join(sorted(texts))


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
