"""Prompts: the same ids and pixels as Hugging Face's LlavaProcessor."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers.prompts import byte_level, llava, pictures
from transformers import LlavaProcessor

from zipvl_compile.demo.model import build_config, build_processor
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.wire import ImagePart, Message, TextPart, parse_messages

TEMPLATE = """{%- for message in messages %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
{{ bos_token if loop.first }}{{ message['role'] | upper }}: {% for part in message['content'] %}
    {%- if part['type'] == 'image' %}{{ image_token }}
{% else %}{% generation %}{{ part['text'] }}{% endgeneration %}{% endif %}
    {%- endfor %}
{% endfor %}
{% if add_generation_prompt %} ASSISTANT:{% endif %}"""


BYTE_LEVEL = byte_level(["<pad>", "<s>", "</s>", "<image>"], bos="<s>")


@pytest.fixture(scope="module")
def reference() -> LlavaProcessor:
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}
    return llava(BYTE_LEVEL, TEMPLATE, **named)


@pytest.fixture(scope="module")
def saved(reference: LlavaProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processor")
    reference.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mine(saved: Path) -> PromptProcessor:
    return PromptProcessor(saved)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_chat_equals_hugging_face(mine: PromptProcessor, reference: LlavaProcessor, count: int) -> None:
    text, images = "Read the sign: 自転車 🚲?  {% raw %} <b>&amp;</b>", pictures(count)
    content = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    messages = [{"role": "user", "content": content}]
    assert mine.render_chat(text, count) == reference.apply_chat_template(messages, add_generation_prompt=True)
    expected = reference.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
    )
    prompt = mine.prepare(text, images)
    np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][0])
    assert prompt.is_text.sum() == len(prompt.input_ids) - 4 * count
    assert prompt.pixel_values.shape == (count, 3, 28, 28)
    if count:
        np.testing.assert_array_equal(prompt.pixel_values, expected["pixel_values"])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_encode_equals_hugging_face_call(mine: PromptProcessor, reference: LlavaProcessor, count: int) -> None:
    """Without a bos token in the text both leave it to the tokenizer; with one, only ours does not write a second."""
    text, images = "Compare " + " and <image>, " * count + "please", pictures(count)
    expected = reference(text=text, images=images or None, return_tensors="np")
    prompt = mine.encode(text, images)
    np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][0])
    assert prompt.input_ids[:2].tolist().count(mine.tokenizer.token_to_id("<s>")) == 1
    np.testing.assert_array_equal(mine.encode("<s>" + text, images).input_ids, prompt.input_ids)

    arrays = (prompt.input_ids, prompt.is_text, prompt.position_ids, prompt.pixel_values)
    assert [array.dtype for array in arrays] == [np.int64, np.bool_, np.int64, np.float32]
    np.testing.assert_array_equal(prompt.position_ids, np.arange(len(prompt.input_ids)))
    np.testing.assert_array_equal(prompt.is_text, prompt.input_ids != mine.image_token_id)
    assert prompt.text == text


@pytest.mark.parametrize("count", [0, 1, 2])
def test_demo_processor_equals_hugging_face(tmp_path: Path, count: int) -> None:
    reference = build_processor()
    reference.save_pretrained(tmp_path)
    build_config().save_pretrained(tmp_path)
    mine, images = PromptProcessor(tmp_path), pictures(count)
    text = mine.render_chat("which digit is at row 1 col 2 ?", count)
    expected = reference(text=text, images=images or None, return_tensors="np")
    prompt = mine.prepare("which digit is at row 1 col 2 ?", images)
    np.testing.assert_array_equal(prompt.input_ids, expected["input_ids"][0])
    if count:
        np.testing.assert_array_equal(prompt.pixel_values, expected["pixel_values"])
    assert mine.eos_token_ids == {mine.tokenizer.token_to_id("</s>")}


def test_image_tokens_in_the_text_place_the_images(mine: PromptProcessor) -> None:
    prompt = mine.prepare("First <image> then <image>?", pictures(2))
    assert prompt.text == "<s>USER: First <image> then <image>? ASSISTANT:"
    assert mine.prepare("What is this?", pictures(1)).text == "<s>USER: <image>\nWhat is this? ASSISTANT:"


def test_raw_text_is_taken_as_it_is(mine: PromptProcessor) -> None:
    assert mine.prepare("See <image>", pictures(1), raw=True).text == "See <image>"
    with pytest.raises(InputError, match=r"the prompt has 0 image tokens \('<image>'\) but 1 image was given; "):
        mine.prepare("What is this?", pictures(1), raw=True)


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("<image> and <image>", 1, r"has 2 image tokens \('<image>'\) but 1 image was given; put one <image>"),
        ("<image>", 0, r"has 1 image token \('<image>'\) but 0 images were given"),
        ("", 1, "the prompt is empty"),
        (" \n\t", 0, "the prompt is empty"),
        ("caf\udce9", 0, r"not valid Unicode: '\\udce9'"),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
def test_refuses_prompts(mine: PromptProcessor, text: str, count: int, message: str, raw: bool) -> None:
    with pytest.raises(InputError, match=message):
        mine.prepare(text, pictures(count), raw=raw)


def test_tokenise_leaves_the_pixels_to_the_caller(mine: PromptProcessor) -> None:
    text = "Compare <image> and <image>, please"
    whole, prompt = mine.encode(text, pictures(2)), mine.tokenise(text, [4, 4])
    assert prompt.pixel_values.shape == (0, 3, 28, 28)
    assert prompt.text == text
    for name in ("input_ids", "is_text", "position_ids"):
        np.testing.assert_array_equal(getattr(prompt, name), getattr(whole, name))
        assert getattr(prompt, name).dtype == getattr(whole, name).dtype

    uneven = mine.tokenise(text, [1, 6])
    np.testing.assert_array_equal(uneven.input_ids[uneven.is_text], whole.input_ids[whole.is_text])
    runs = "".join("t" if is_text else "i" for is_text in uneven.is_text).replace("t", " ").split()
    assert runs == ["i", "iiiiii"]
    with pytest.raises(InputError, match=r"has 2 image tokens .* but 3 images were given"):
        mine.tokenise(text, [4, 4, 4])


def test_needs_a_tokenizer_that_keeps_the_image_token(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ZipvlError, match="does not keep <image> as one token"):
        PromptProcessor(tmp_path).tokenise("<image>", [4])


def user(*content: str | None) -> Message:
    """A message whose parts are texts, or images where they are None."""
    return Message(role="user", content=[ImagePart() if part is None else TextPart(text=part) for part in content])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_message_is_prepared_as_the_operators_own_text(mine: PromptProcessor, count: int) -> None:
    text = "Read the sign: 自転車 🚲?"
    whole, prompt = (
        mine.prepare(text, pictures(count)),
        mine.prepare_messages([user(*[None] * count, text)], [4] * count),
    )
    assert prompt.text == whole.text
    np.testing.assert_array_equal(prompt.input_ids, whole.input_ids)
    np.testing.assert_array_equal(prompt.is_text, whole.is_text)
    assert prompt.pixel_values.shape == (0, 3, 28, 28)


def test_only_image_parts_are_places(mine: PromptProcessor) -> None:
    prompt = mine.prepare_messages([user("not <image>", None, "</s>")], [2])
    assert (~prompt.is_text).sum() == 2
    assert mine.tokenizer.token_to_id("</s>") not in prompt.input_ids
    decoded = mine.tokenizer.decode(prompt.input_ids.tolist(), skip_special_tokens=False)
    assert decoded == "<s>USER: not <image><image><image>\n</s> ASSISTANT:"
    assert mine.prepare_messages([user(None)], [1]).text == "<s>USER: <image>\n ASSISTANT:"


@pytest.mark.parametrize(
    ("messages", "images", "message"),
    [
        ([], 0, "messages: the last one must be the user's, but there are none"),
        (
            [user("a"), Message(role="assistant", content="b")],
            0,
            "the last one must be the user's, not the assistant's",
        ),
        ([Message(role="system", content="b")], 0, "must be the user's, not the system's"),
        ([user()], 0, "the prompt is empty"),
        ([user("a"), Message(role="user", content=" \n")], 0, "the prompt is empty"),
        ([user("<image>")], 1, "the messages have 0 image parts but 1 image was given; put one image part where"),
        ([user(None, "a", None)], 1, "the messages have 2 image parts but 1 image was given; "),
        ([user(None), user("a")], 0, "the messages have 1 image part but 0 images were given; "),
    ],
)
def test_refuses_conversations(mine: PromptProcessor, messages: list[Message], images: int, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        mine.prepare_messages(messages, [4] * images)
    assert "\n" not in str(caught.value)


def test_refuses_a_template_that_loses_images(tmp_path: Path, saved: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[-1].content[-1].text }}")
    with pytest.raises(InputError, match=r"the chat template writes 0 image tokens \('<image>'\) for 1 image part"):
        PromptProcessor(tmp_path).prepare_messages([user(None, "a")], [4])


def test_refuses_half_a_character(mine: PromptProcessor) -> None:
    """JSON can spell it."""
    messages = parse_messages('[{"role": "system", "content": ""}, {"role": "user", "content": "a \\ud83d"}]')
    with pytest.raises(InputError, match=r"messages\[1\] is not valid Unicode: '\\ud83d'"):
        mine.prepare_messages(messages, [])


def test_threads_may_share_a_processor(mine: PromptProcessor) -> None:
    conversations = [[user(None, f"{i} </s> <image> {'word ' * (i % 7)}")] for i in range(64)]
    expected = [mine.prepare_messages(messages, [4]).input_ids.tolist() for messages in conversations]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda messages: mine.prepare_messages(messages, [4]).input_ids.tolist(), conversations))
    assert found == expected
