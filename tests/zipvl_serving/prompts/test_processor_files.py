"""Processor files: found wherever checkpoints of all ages keep them, and the broken one is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.prompts import LLAVA_TEMPLATE, byte_level, llava, pictures

from zipvl_serving.errors import ZipvlError
from zipvl_serving.prompts.prompt import PromptProcessor


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("processor")
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "image_token": "<image>"}
    tokenizer = byte_level(["<pad>", "<s>", "</s>", "<image>"], bos="<s>")
    llava(tokenizer, LLAVA_TEMPLATE, **named).save_pretrained(directory)
    return directory


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A directory of processor files to break."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    value = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
    path.write_text(json.dumps({key: entry for key, entry in value.items() if entry is not None}))


@pytest.mark.parametrize("place", ["chat_template.json", "processor_config.json", "tokenizer_config.json", "list"])
def test_finds_the_chat_template_wherever_it_is(copy: Path, place: str) -> None:
    (copy / "chat_template.jinja").unlink()
    if place == "list":
        named = [{"name": "tools", "template": "wrong"}, {"name": "default", "template": "found"}]
        edit(copy / "tokenizer_config.json", chat_template=named)
    else:
        edit(copy / place, chat_template="found")
    assert PromptProcessor(copy).render_chat("Why?", 0) == "found"


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


def test_without_chat_template_the_form_is_llavas(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()
    mine = PromptProcessor(copy)
    assert mine.render_chat("Why?", 1) == "USER: <image>\nWhy? ASSISTANT:"
    assert mine.render_chat("Why?", 0) == "USER: Why? ASSISTANT:"
    prompt = mine.prepare("Why?", pictures(1))
    assert prompt.input_ids[0] == mine.tokenizer.token_to_id("<s>")
