"""Conversations to prompts: as transformers renders them, in the form that each template takes."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.prompts import DEMO_TEMPLATE, LLAMA_3_TEMPLATE, LLAVA_TEMPLATE, QWEN_TEMPLATE, STRING_TEMPLATE, as_dicts
from transformers.utils.chat_template_utils import render_jinja_template

from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.prompts.chat_template import ChatTemplate
from zipvl_serving.wire import ImagePart, Message, TextPart

VARIABLES = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "demo": (DEMO_TEMPLATE, "either", "<image>"),
    "llava-1.5": (LLAVA_TEMPLATE, "parts", "<image>"),
    "llama-3": (LLAMA_3_TEMPLATE, "string", "<image>"),
    "qwen2-vl": (QWEN_TEMPLATE, "either", "<|image_pad|>"),
    "strings": (STRING_TEMPLATE, "string", "<image>"),
}


def message(role: Any, *content: str | None) -> Message:
    """A string, or parts, of which None are images."""
    if len(content) == 1 and content[0] is not None:
        return Message(role=role, content=content[0])
    return Message(role=role, content=[ImagePart() if part is None else TextPart(text=part) for part in content])


CONVERSATIONS = {
    "one": [message("user", "What?")],
    "image": [message("user", None, "What is this?")],
    "images in any order": [message("user", "This ", None, " and ", None, " this: 自転車 🚲?")],
    "turns": [message("user", None, " What "), message("assistant", " A bike "), message("user", "Whose?")],
    "system": [
        message("system", "Be brief.\n"),
        message("user", "Hi"),
        message("assistant", "Ho"),
        message("user", "?"),
    ],
    "parts everywhere": [
        message("system", "Be", "kind"),
        message("assistant", "So", "?"),
        message("user", "A", None, "B"),
    ],
    "markup": [message("user", "{% raw %} {{ x }} <b>&amp;</b>")],
    "images again": [message("user", None, "a"), message("assistant", "b"), message("user", None, None, "c")],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers_does(template: str, conversation: str) -> None:
    source, form, image_token = TEMPLATES[template]
    messages = CONVERSATIONS[conversation]
    expected, _ = render_jinja_template(
        [as_dicts(messages, form)], chat_template=source, add_generation_prompt=True, **VARIABLES
    )
    assert ChatTemplate(source, VARIABLES, image_token).render(messages) == expected[0]


def test_templates_see_the_variables_that_transformers_gives() -> None:
    source = "{{ [tools, documents, add_generation_prompt, bos_token, pad_token is defined] }}"
    messages = CONVERSATIONS["one"]
    expected, _ = render_jinja_template(
        [as_dicts(messages)], chat_template=source, add_generation_prompt=True, **VARIABLES
    )
    rendered = ChatTemplate(source, VARIABLES, "<image>").render(messages)
    assert rendered == expected[0] == "[None, None, True, '<s>', False]"


def test_templates_get_helpers() -> None:
    def render(source: str) -> str:
        return ChatTemplate(source, {}, "<image>").render([message("user", "<é>", "")])

    assert render("{{ messages[0].content[0] | tojson }}") == '{"type": "text", "text": "<é>"}'
    assert render("{{ strftime_now('%Y') }}").isdigit()
    assert render("{% for i in [1, 2, 3] %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "12"
    assert render("{% generation %}words{% endgeneration %}") == "words"


def test_every_text_can_be_written_differently() -> None:
    messages = [
        message("system", "a"),
        message("user", "b", None, "c"),
        message("assistant", "d"),
        message("user", "e"),
    ]
    for source, _, image_token in TEMPLATES.values():
        template = ChatTemplate(source, VARIABLES, image_token)
        rewritten = template.render(messages, lambda text: f"({text})")
        assert rewritten == template.render([message(m.role, *_bracketed(m)) for m in messages])


def _bracketed(message: Message) -> list[str | None]:
    parts = [message.content] if isinstance(message.content, str) else message.content
    return [None if isinstance(part, ImagePart) else f"({getattr(part, 'text', part)})" for part in parts]


def test_without_a_template_the_form_is_llavas() -> None:
    template = ChatTemplate(None, VARIABLES, "<image>")
    turns = [message("user", "What", None, "is this?"), message("assistant", "A bike."), message("user", "Whose?")]
    prompt = "USER: <image>\nWhat is this? ASSISTANT: A bike.</s>USER: Whose? ASSISTANT:"
    assert template.render(turns) == prompt
    assert template.render([message("system", "Be brief."), *turns]) == f"Be brief. {prompt}"


@pytest.mark.parametrize(
    ("source", "refusal"),
    [
        (
            "{{ raise_exception('System role\n not supported') if messages[0].role == 'system' }}",
            "System role not supported",
        ),
        (
            "{% for m in messages %}{% if (m.role == 'user') != loop.first %}"
            "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}",
            "Conversation roles must alternate",
        ),
        ("{% for m in messages %}{{ m.content + m }}{% endfor %}", "can only concatenate str"),
        ("{{ [] + messages[0]['role'] }}", "can only concatenate list"),
        ("{{ messages.__class__.__base__.__subclasses__() }}", "access to attribute '__class__' .*unsafe"),
        ("{{ messages.append(1) }}", "access to attribute 'append' .*unsafe"),
    ],
)
def test_a_refusal_is_one_line(source: str, refusal: str) -> None:
    template = ChatTemplate(source, {}, "<image>")
    with pytest.raises(InputError, match=f"the chat template cannot render this prompt: .*{refusal}") as caught:
        template.render([message("system", "a"), message("user", "b"), message("user", "c")])
    assert "\n" not in str(caught.value)


def test_names_the_broken_line() -> None:
    with pytest.raises(ZipvlError, match="the chat template is broken: line 2: "):
        ChatTemplate("a\n{% if %}", {}, "<image>")


def test_knows_all_text_that_the_template_may_write() -> None:
    pieces = ChatTemplate(QWEN_TEMPLATE, {}, "<|image_pad|>").literals.split("\0")
    assert {"<|im_start|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>assistant\n"} <= set(pieces)
    assert not any("messages" in piece or "content" in piece for piece in pieces if "<" in piece)
    assert "<|im_start|>" in ChatTemplate("{{ '<|im_start|>' + 'x' }}", {}, "<image>").literals
