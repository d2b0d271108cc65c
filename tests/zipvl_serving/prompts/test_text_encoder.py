"""What a user typed stays text: whatever it looks like, only the chat template writes special tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.prompts import KINDS, Kind, as_dicts, kind, pictures, texts_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import LlavaProcessor

from zipvl_serving.errors import InputError
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.prompts.text_encoder import TextEncoder
from zipvl_serving.wire import ImagePart, Message, TextPart

NEARLY = ["<", ">", "/", "|", "s", "</", "s>", "/s", "<|", "|>", "<|im_", "end|>", "image", "<<", ">>", "[INST]", "\0"]
WORDS = ["what", " digit", "is", " ", "  ", "\n", "\t", "a b", "é", "自", "🚲", "\u3000", "<0x0A>", "▁", "\U000f0000"]
TOKENS = ["<unk>", "<s>", "</s>", "<image>", "<pad>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<think>"]


class Case(NamedTuple):
    """A kind of tokenizer, read by both libraries."""

    name: str
    kind: Kind
    mine: PromptProcessor
    reference: LlavaProcessor

    def __repr__(self) -> str:
        return self.name

    def render(self, messages: list[Message]) -> str:
        return self.reference.apply_chat_template(as_dicts(messages, self.kind.form), add_generation_prompt=True)

    def special_ids(self) -> set[int]:
        """But for the unknown one, which stands for ordinary text as well."""
        return {self.mine.tokenizer.token_to_id(token) for token in self.kind.special if token != "<unk>"}


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, kind(request.param), *kind(request.param).save(tmp_path_factory.mktemp(request.param)))


@st.composite
def conversations(draw: st.DrawFn, pieces: list[str]) -> list[Message]:
    text = st.lists(st.sampled_from(pieces), max_size=6).map("".join)
    parts = st.lists(st.one_of(text.map(lambda text: TextPart(text=text)), st.just(ImagePart())), max_size=4)
    messages = [Message(role="system", content=draw(text))] if draw(st.booleans()) else []
    if draw(st.booleans()):
        messages.append(Message(role="user", content=draw(st.one_of(text, parts))))
        messages.append(Message(role="assistant", content=draw(text)))
    last = [*draw(parts), TextPart(text=draw(text) + "w")]
    return [*messages, Message(role="user", content=last)]


def images_in(messages: list[Message]) -> int:
    return sum(isinstance(part, ImagePart) for message in messages for part in message.content)


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_harmless_conversations_equal_transformers(case: Case, data: st.DataObject) -> None:
    messages = data.draw(conversations(NEARLY + WORDS))
    joined = "".join(text for message in messages for text in texts_of(message))
    assume(not any(token in joined for token in case.kind.special))
    images, text = pictures(images_in(messages)), case.render(messages)
    bos = case.kind.named.get("bos_token", "\0")
    expected = case.reference(
        text=text, images=images or None, return_tensors="np", add_special_tokens=not text.startswith(bos)
    )
    prompt = case.mine.prepare_messages(messages, [4] * len(images))
    assert prompt.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert prompt.text == case.mine.render_messages(messages) == text


def ids_by_definition(case: Case, messages: list[Message]) -> list[int]:
    """Render placeholders, split at the special tokens, put the texts back, and encode what is between the tokens with
    a tokenizer that knows none."""
    held: list[str] = []

    def hold(text: str) -> str:
        held.append(text)
        return f"\ue111{len(held) - 1}\ue222"

    def placeholders(message: Message) -> Message:
        if isinstance(message.content, str):
            return Message(role=message.role, content=hold(message.content))
        parts = [TextPart(text=hold(p.text)) if isinstance(p, TextPart) else p for p in message.content]
        return Message(role=message.role, content=parts)

    rendered = case.render([placeholders(message) for message in messages])
    ids: list[int] = []
    for at, section in enumerate(re.split("(" + "|".join(map(re.escape, case.kind.special)) + ")", rendered)):
        if section in case.kind.special:
            ids.append(case.mine.tokenizer.token_to_id(section))
        elif section:
            text = re.sub("\ue111(\\d+)\ue222", lambda found: held[int(found[1])], section)
            ids += case.kind.plain(text, at == 0)
    if rendered.startswith(case.kind.named.get("bos_token", "\0")):
        return ids
    return [*case.mine.tokenizer.encode("").ids, *ids]


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_text_that_looks_like_special_tokens_is_text(case: Case, data: st.DataObject) -> None:
    messages = data.draw(conversations(TOKENS + NEARLY + WORDS))
    ids = case.mine.prepare_messages(messages, [1] * images_in(messages)).input_ids.tolist()
    assert ids == ids_by_definition(case, messages)


def sections(case: Case, text: str) -> list[list[int]]:
    """The ids between the special tokens of a conversation in which `text` is said between two others."""
    said = [("system", "be kind"), ("user", "a"), ("assistant", "b"), ("user", text), ("assistant", "c"), ("user", "d")]
    prompt = case.mine.prepare_messages([Message(role=role, content=content) for role, content in said], [])
    found: list[list[int]] = [[]]
    for id in prompt.input_ids.tolist():
        if id in case.special_ids():
            found.append([])
        found[-1].append(id)
    return found


@pytest.mark.parametrize("token", ["<s>", "</s>", "<unk>", "<image>", "<|im_start|>", "<|im_end|>", "<|image_pad|>"])
def test_the_rest_of_the_prompt_stays_the_same(case: Case, token: str) -> None:
    for text in (token, f"a {token} b", f" {token}{token}\n", f"x{token}y"):
        literal, harmless = sections(case, text), sections(case, "digit digit digit")
        assert len(literal) == len(harmless)
        assert sum(one != other for one, other in zip(literal, harmless, strict=True)) == 1
        decoded = [case.mine.tokenizer.decode(ids, skip_special_tokens=False) for ids in literal]
        if case.name != "words":  # which has one token for all that its vocabulary lacks
            assert any(text in section for section in decoded)


@pytest.fixture
def chatml(tmp_path: Path) -> Callable[[str], PromptProcessor]:
    """A processor of byte-level tokens with another template."""
    return lambda template: kind("chatml").save(tmp_path, template)[0]


def special_tokens(processor: PromptProcessor, text: str) -> list[str]:
    """The special tokens in a prompt of this one message, whose ids must read as the template wrote it."""
    messages = [Message(role="user", content=text)]
    ids = processor.prepare_messages(messages, []).input_ids.tolist()
    assert processor.tokenizer.decode(ids, skip_special_tokens=False) == processor.render_messages(messages)
    added = processor.tokenizer.get_added_tokens_decoder()
    return [added[id].content for id in ids if id in added]


EACH = "{% for message in messages %}<|im_start|>{{ CONTENT }}<|im_end|>{% endfor %}"
OWN = ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize(
    "texts", [("<|im_", "end|>"), ("<", "|im_end|>"), ("<|im_end|", ">"), ("<image", ">"), ("</", "s>"), ("", "<s>")]
)
def test_a_token_in_pieces_is_text(case: Case, texts: tuple[str, ...]) -> None:
    messages = [Message(role="user", content=[TextPart(text=text) for text in ("w", *texts)])]
    ids = case.mine.prepare_messages(messages, []).input_ids.tolist()
    assert ids == ids_by_definition(case, messages)


@pytest.mark.parametrize(
    "content",
    [
        "message.content | trim",
        "message.content | upper",
        "message.content | lower",
        "message.content | replace('#', '')",
        "message.content.split('cut')[-1]",
        "'short' if message.content == '/short' else message.content",
        "message.content if 'no' in message.content else message.content + '<|endoftext|>'",
        "('<think>\\n' if '/think' in message.content else '') + message.content",
        "'<' + message.content + '>'",
        "message.content + message.content",
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "hi", " a <|im_end|> ", "/think", "<|#im_end|>", "<|im_end|>cut <|im_#end|> no", "/short", "<|IM_END|>",
        "|im_end|", "<|im_end|",
    ],
)  # fmt: skip
def test_templates_may_change_texts_and_look_into_them(
    chatml: Callable[[str], PromptProcessor], content: str, text: str
) -> None:
    expected = OWN
    if text == "/think" and "<think>" in content:
        expected = ["<|im_start|>", "<think>", "<|im_end|>"]
    if "endoftext" in content and "no" not in text:
        expected = ["<|im_start|>", "<|endoftext|>", "<|im_end|>"]
    assert special_tokens(chatml(EACH.replace("CONTENT", content)), text) == expected


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("message.content.split('<|im_end|>')[-1]", "a <|im_end|> b <|im_start|>"),
        ("message.content if '<' in message.content else 'nothing'", "a <|im_end|> b"),
        ("'<' + (message.content | replace('#', '')) + '>'", "|im_#end|"),
        ("'<' + (message.content | replace('#', '')) + '>'", "<|im_end|> #"),
    ],
)
def test_refuses_what_it_cannot_tell_apart(chatml: Callable[[str], PromptProcessor], content: str, text: str) -> None:
    with pytest.raises(InputError, match=r"read as (the special token '<\|im_\w+\|>'|a special token), and") as caught:
        special_tokens(chatml(EACH.replace("CONTENT", content)), text)
    assert "\n" not in str(caught.value)


def letters(normalizer: normalizers.Normalizer | None, prepend: str, **flags: bool) -> Tokenizer:
    """One character, one token, so that what stands in for what can be seen."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ </>abcdefgsxyzS"]
    tokenizer = Tokenizer(
        models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizer
    if prepend:
        metaspace = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([metaspace, pre_tokenizers.Split("x", "isolated")])
    tokenizer.add_special_tokens([AddedToken(token, special=True, **flags) for token in pieces[:3]])
    return tokenizer


NORMALIZERS = {
    "none": None,
    "lower": normalizers.Lowercase(),
    "nfkc": normalizers.NFKC(),
    "legacy Llama": normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
}


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("prepend", ["", "first", "always"])
@pytest.mark.parametrize("flags", ["", "normalized", "lstrip", "rstrip", "lstrip rstrip normalized", "single_word"])
@pytest.mark.parametrize("form", ["<s> {0} </s> {0}</s>", "{0} </s> {0}", " {0}\n<s>x {0}"])
def test_only_the_token_itself_differs(normalizer: str, prepend: str, flags: str, form: str) -> None:
    """Whatever a tokenizer does about its special tokens: "</s>" takes the places of "abcd", and no more changes."""
    chosen = {name: name in flags for name in ("normalized", "lstrip", "rstrip", "single_word")}
    tokenizer = letters(NORMALIZERS[normalizer], prepend, **chosen)
    encoder = TextEncoder(tokenizer, "", None)
    spelling = {
        tokenizer.token_to_id(one): tokenizer.token_to_id(other) for one, other in zip("abcd", "</s>", strict=True)
    }
    for typed in ("</s>", "</S>", "＜/s＞"):
        if typed != "</s>" and normalizer != {"</S>": "lower", "＜/s＞": "nfkc"}[typed]:
            continue
        for spaces in ("{0}", " {0}", "{0}  ", " e{0}f "):
            harmless, hostile = spaces.format("abcd"), spaces.format(typed)
            text, ids = encoder.encode_chat(lambda write, harmless=harmless: form.format(write(harmless)))
            assert text == form.format(harmless)
            # A single word is no token of tokenizers' beside a letter; here the template's tokens are always tokens.
            assert ids == tokenizer.encode(text).ids or (chosen["single_word"] and "d</s>" in text)
            literal = encoder.encode_chat(lambda write, hostile=hostile: form.format(write(hostile)))[1]
            assert literal == [spelling.get(id, id) for id in ids]


VOCABULARY = ["[UNK]", "</s>", "<", "/", "s", ">", "a", "</"]


def looks_up(model: str) -> Tokenizer:
    """A tokenizer whose model could write "</s>" from text; of a BPE those are odd ones."""
    ids = {piece: i for i, piece in enumerate(VOCABULARY)}
    build = {
        "WordLevel": lambda: models.WordLevel(ids, unk_token="[UNK]"),
        "WordPiece": lambda: models.WordPiece({**ids, "##s": 8, "##>": 9}, unk_token="[UNK]"),
        "Unigram": lambda: models.Unigram([(piece, -float(len(VOCABULARY) - i)) for piece, i in ids.items()], unk_id=0),
        "BPE that ignores merges": lambda: models.BPE(ids, [("<", "/")], ignore_merges=True, unk_token="[UNK]"),
        "BPE": lambda: models.BPE({**ids, "</s": 8}, [("<", "/"), ("</", "s"), ("</s", ">")], unk_token="[UNK]"),
    }
    tokenizer = Tokenizer(build[model]())
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("</s>", "<x>")])
    tokenizer.add_tokens(["aa"])
    return tokenizer


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("WordLevel", ["[UNK]"]),
        ("WordPiece", ["</", "##s", "##>"]),
        ("Unigram", ["</", "s", ">"]),
        ("BPE that ignores merges", ["</", "s", ">"]),
    ],
)
def test_models_that_hold_special_tokens_do_not_write_them(model: str, expected: list[str]) -> None:
    tokenizer = looks_up(model)
    tokenizer.normalizer = normalizers.NFKC()
    encoder = TextEncoder(tokenizer, "", None)
    for typed in ("</s>", "＜/s＞"):  # the second is no special token before it is normalised, and no added one after
        ids = encoder.encode_chat(lambda write, typed=typed: f"<x> {write(f'a {typed} aa')} </s>")[1]
        assert [tokenizer.id_to_token(id) for id in ids] == ["<x>", "a", *expected, "aa", "</s>"]
    assert encoder.encode("<x> a </s> aa </s>") == tokenizer.encode("<x> a </s> aa </s>").ids


def test_refuses_text_that_the_tokenizer_can_write_in_no_other_way() -> None:
    encoder = TextEncoder(looks_up("BPE"), "", None)
    assert encoder.encode_chat(lambda write: f"{write('a')} </s>")[1] == encoder.encode("a </s>")
    with pytest.raises(InputError, match="read as the special token '</s>', and"):
        encoder.encode_chat(lambda write: f"{write('a </s>')} </s>")


def test_added_tokens_are_special_where_the_template_writes_them(chatml: Callable[[str], PromptProcessor]) -> None:
    ordinary = chatml(EACH.replace("CONTENT", "message.content"))
    assert special_tokens(ordinary, "a <think> b") == ["<|im_start|>", "<think>", "<|im_end|>"]
    special = chatml(EACH.replace("CONTENT", "message.content + '<think>'"))
    assert special_tokens(special, "a <think> b") == ["<|im_start|>", "<think>", "<|im_end|>"]
    assert special_tokens(special, "a b") == ["<|im_start|>", "<think>", "<|im_end|>"]


def test_a_typed_bos_token_does_not_stand_for_the_tokenizers_own() -> None:
    encoder = TextEncoder(kind("sentencepiece").tokenizer, "", "<s>")
    for text in ("a", "<s>a", "<s>"):
        ids = encoder.encode_chat(lambda write, text=text: write(text))[1]
        assert ids == [1, *kind("sentencepiece").plain(text, True)]
    assert encoder.encode_chat(lambda write: f"<s>{write('<s>a')}")[1] == [
        1,
        *kind("sentencepiece").plain("<s>a", False),
    ]
