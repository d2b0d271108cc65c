"""Prompts: the same ids and pixels as Hugging Face's LlavaProcessor, and text that streams back whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from zipvl_compile.demo.model import build_config, build_processor
from zipvl_serving.detokenise import StreamDecoder
from zipvl_serving.errors import InputError, ZipvlError
from zipvl_serving.prompt import PromptProcessor

SENTENCES = [
    "What is in this picture? A red bicycle leans against a wall.",
    "Read the sign: 自転車は左側を走ります 🚲🚦",
    "USER: how many digits are there? ASSISTANT: 42",
]
TEMPLATE = """{%- for message in messages %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
{{ bos_token if loop.first }}{{ message['role'] | upper }}: {% for part in message['content'] %}
    {%- if part['type'] == 'image' %}{{ image_token }}
{% else %}{% generation %}{{ part['text'] }}{% endgeneration %}{% endif %}
    {%- endfor %}
{% endfor %}
{% if add_generation_prompt %} ASSISTANT:{% endif %}"""
FFFD = "\ufffd"


def byte_level_tokenizer() -> Tokenizer:
    """Too small to hold an emoji or a Chinese character in one token; adds a bos token, as Llama's does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def sentencepiece_like_tokenizer() -> Tokenizer:
    """Llama's kind: '▁' for spaces, bytes for what the vocabulary lacks, the very first space dropped."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcxyz", "▁a", "ab"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [("▁", "a"), ("a", "b")], byte_fallback=True)
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[:3]])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTE_LEVEL = byte_level_tokenizer()
SENTENCEPIECE = sentencepiece_like_tokenizer()


def llava(template: str | None) -> LlavaProcessor:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=BYTE_LEVEL,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


@pytest.fixture(scope="module")
def reference() -> LlavaProcessor:
    return llava(TEMPLATE)


@pytest.fixture(scope="module")
def saved(reference: LlavaProcessor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processor")
    reference.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def mine(saved: Path) -> PromptProcessor:
    return PromptProcessor(saved)


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A directory of processor files to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))


def pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(count)
    sizes = [(31, 50), (90, 28), (28, 28)]
    return [Image.fromarray(random.integers(0, 256, (*sizes[i], 3), np.uint8)) for i in range(count)]


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


def test_without_chat_template_the_form_is_llavas(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    mine = PromptProcessor(copy)
    assert mine.render_chat("Why?", 1) == "USER: <image>\nWhy? ASSISTANT:"
    assert mine.render_chat("Why?", 0) == "USER: Why? ASSISTANT:"
    prompt = mine.prepare("Why?", pictures(1))
    assert prompt.input_ids[0] == mine.tokenizer.token_to_id("<s>")


@pytest.mark.parametrize("place", ["chat_template.json", "processor_config.json", "tokenizer_config.json", "list"])
def test_finds_the_chat_template_wherever_it_is(copy: Path, place: str) -> None:
    (copy / "chat_template.jinja").unlink()
    if place == "list":
        named = [{"name": "tools", "template": "wrong"}, {"name": "default", "template": "found"}]
        edit(copy / "tokenizer_config.json", chat_template=named)
    else:
        edit(copy / place, chat_template="found")
    assert PromptProcessor(copy).render_chat("Why?", 0) == "found"


def test_templates_get_helpers_and_a_sandbox(copy: Path) -> None:
    def render(template: str) -> str:
        (copy / "chat_template.jinja").write_text(template)
        return PromptProcessor(copy).render_chat("<é>", 0)

    assert render("{{ messages[0].content[0] | tojson }}") == '{"type": "text", "text": "<é>"}'
    assert render("{{ strftime_now('%Y') }}").isdigit()
    with pytest.raises(InputError, match=r"cannot render this prompt: no\s+images$"):
        render("{{ raise_exception('no\n images') }}")
    with pytest.raises(InputError, match="cannot render this prompt: can only concatenate"):
        render("{{ [] + messages[0]['role'] }}")
    with pytest.raises(InputError, match="unsafe"):
        render("{{ messages.__class__.__base__.__subclasses__() }}")
    with pytest.raises(ZipvlError, match="the chat template is broken: line 1"):
        render("{% if %}")


def test_reads_settings_of_older_checkpoints(copy: Path) -> None:
    """preprocessor_config.json beside processor_config.json, AddedToken objects, image_token_index."""
    processor = json.loads((copy / "processor_config.json").read_text())
    edit(copy / "preprocessor_config.json", **processor["image_processor"])
    edit(copy / "processor_config.json", image_processor=None)
    bos = {"__type": "AddedToken", "content": "<s>", "special": True}
    edit(copy / "tokenizer_config.json", bos_token=bos, image_token=None, extra_special_tokens=[])
    edit(copy / "config.json", image_token_index=3)
    mine = PromptProcessor(copy)
    assert (mine.image_token, mine.image_token_id) == ("<image>", 3)
    assert mine.prepare("<image>?", pictures(1)).input_ids.tolist().count(mine.tokenizer.token_to_id("<s>")) == 1


def test_eos_tokens_come_from_the_first_file_that_names_them(copy: Path) -> None:
    assert PromptProcessor(copy).eos_token_ids == {2}
    edit(copy / "config.json", text_config={"eos_token_id": 5})
    assert PromptProcessor(copy).eos_token_ids == {5}
    edit(copy / "config.json", eos_token_id=6)
    assert PromptProcessor(copy).eos_token_ids == {6}
    edit(copy / "generation_config.json", eos_token_id=[7, 8])
    assert PromptProcessor(copy).eos_token_ids == {7, 8}


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("processor_config.json", {"patch_size": None}, "patch_size is None; valid: an integer"),
        ("processor_config.json", {"vision_feature_select_strategy": "some"}, "valid: default, full"),
        ("processor_config.json", {"num_additional_image_tokens": -1}, "valid: an integer >= 0"),
        ("processor_config.json", {"processor_class": "Qwen2VLProcessor"}, "valid: LlavaProcessor"),
        ("processor_config.json", {"image_processor": None}, "preprocessor_config.json is missing"),
        ("tokenizer_config.json", {"image_token": "<picture>"}, "no image token '<picture>'"),
        ("tokenizer_config.json", {"chat_template": 3}, "the chat template must be text, not int"),
        ("config.json", {"image_token_index": 9}, "the model's image token is 9 but the tokenizer's <image> is 3"),
    ],
)
def test_names_the_broken_setting(copy: Path, file: str, changes: dict[str, Any], message: str) -> None:
    if "chat_template" in changes:
        (copy / "chat_template.jinja").unlink()
    edit(copy / file, **changes)
    with pytest.raises(ZipvlError, match=message):
        PromptProcessor(copy)


@pytest.mark.parametrize("file", ["tokenizer.json", "processor_config.json"])
def test_names_missing_and_broken_files(copy: Path, file: str) -> None:
    for content, message in (("{", "cannot be read"), ("[]", "cannot be read|an object was expected")):
        (copy / file).write_text(content)
        with pytest.raises(ZipvlError, match=f"{file}.* ({message})"):
            PromptProcessor(copy)
    (copy / file).unlink()
    with pytest.raises(ZipvlError, match=f"{file} is missing"):
        PromptProcessor(copy)


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30))  # "<": no special tokens
@settings(max_examples=60, deadline=None)
def test_streamed_text_is_whole_and_never_splits_a_character(text: str) -> None:
    pieces = stream(BYTE_LEVEL, BYTE_LEVEL.encode(text, add_special_tokens=False).ids)
    assert "".join(pieces) == text
    assert FFFD in text or not any(FFFD in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 340), max_size=20))
@settings(max_examples=60, deadline=None)
def test_streaming_any_tokens_equals_decoding_them_at_once(ids: list[int]) -> None:
    assert "".join(stream(BYTE_LEVEL, ids)) == BYTE_LEVEL.decode(ids)


@given(text=st.text(st.sampled_from("ab xyé自🚲 "), max_size=20))
@settings(max_examples=60, deadline=None)
def test_streams_sentencepiece_text(text: str) -> None:
    tokenizer = SENTENCEPIECE
    ids = tokenizer.encode("▁" + text.replace(" ", "▁")).ids
    ids = [token for pair in zip(ids, [2] * len(ids), strict=True) for token in pair]  # a special token after each
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids) == text


def test_characters_of_several_tokens_come_out_in_one_piece() -> None:
    ids = BYTE_LEVEL.encode("漢🎈", add_special_tokens=False).ids
    assert len(ids) > 2
    assert [piece for piece in stream(BYTE_LEVEL, ids) if piece] == ["漢", "🎈"]


def test_an_unfinished_character_comes_with_the_flush() -> None:
    half = SENTENCEPIECE.encode("▁a🚲").ids[:-1]
    pieces = stream(SENTENCEPIECE, half)
    assert pieces[:-1] == ["a", "", "", ""]
    assert set(pieces[-1]) == {FFFD}


def test_words_without_a_decoder_are_joined_by_spaces() -> None:
    tokenizer = build_processor().tokenizer.backend_tokenizer
    assert stream(tokenizer, tokenizer.encode("red green blue").ids) == ["red", " green", " blue", ""]
