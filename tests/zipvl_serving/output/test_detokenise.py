"""Tokens to text as they come: whole characters, joined the text of all tokens at once, at a constant cost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from zipvl_compile.demo.model import build_processor
from zipvl_serving.output.detokenise import StreamDecoder

FFFD = "\ufffd"
UNKNOWN = 100_000  # an id outside every vocabulary
SPECIAL = ["<pad>", "<s>", "</s>"]
# The first bytes of characters of every length, bytes in them, ends of the valid ranges, bytes that fit nowhere, and
# those of U+FFFD itself.
BYTES = [0x0A, 0x20, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC3, 0xA9, 0xE0, 0xE8, 0x87, 0xAA, 0xED]
BYTES += [0xEF, 0xBF, 0xBD, 0xF0, 0x9F, 0x9A, 0xB2, 0xF4, 0xF5, 0xFF]


def byte_level_tokenizer() -> Tokenizer:
    """With tokens of several characters, and tokens of parts of two: a space and the first bytes of an emoji."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the red 🚲 and 🚦, 自転車 é"] * 2, trainer)
    tokenizer.add_tokens([AddedToken("a\ufffd"), AddedToken("<0xFF>")])
    return tokenizer


WORDS = ["▁", "a", "b", "▁a", "自", FFFD]
FIRST_WORD = len(SPECIAL) + 256


def byte_fallback_tokenizer() -> Tokenizer:
    """Llama's kind: '▁' for spaces, bytes for what the vocabulary lacks, the very first space dropped."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    vocabulary = {piece: at for at, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in SPECIAL])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTE_LEVEL, BYTE_FALLBACK = byte_level_tokenizer(), byte_fallback_tokenizer()


def byte_level_id(byte: int) -> int:
    """The token of one byte: bytes that print stand for themselves, the others follow from U+0100."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [other for other in range(256) if other not in printing]
    return int(BYTE_LEVEL.token_to_id(chr(byte if byte in printing else 0x100 + others.index(byte))))


def byte_fallback_id(byte: int) -> int:
    return len(SPECIAL) + byte


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


# --- byte-level tokenizers ---


@given(st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=30))  # "<": no special tokens
@settings(max_examples=60, deadline=None)
def test_streamed_text_is_whole_and_never_splits_a_character(text: str) -> None:
    pieces = stream(BYTE_LEVEL, BYTE_LEVEL.encode(text, add_special_tokens=False).ids)
    assert "".join(pieces) == text
    assert FFFD in text or not any(FFFD in piece for piece in pieces)


@given(
    st.lists(st.sampled_from(BYTES).map(byte_level_id), max_size=40)
    | st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size()) | st.just(UNKNOWN), max_size=40)
)
@settings(deadline=None, max_examples=300)
def test_any_byte_level_tokens_stream_as_they_decode(ids: list[int]) -> None:
    decoder, out = StreamDecoder(BYTE_LEVEL), ""
    for end, token in enumerate(ids, start=1):
        out += decoder.push(token)
        so_far = BYTE_LEVEL.decode(ids[:end])
        assert so_far in (out, out + FFFD)
    assert out + decoder.flush() == BYTE_LEVEL.decode(ids)


def test_characters_of_several_tokens_come_out_in_one_piece() -> None:
    ids = BYTE_LEVEL.encode("漢🎈", add_special_tokens=False).ids
    assert len(ids) > 2
    assert [piece for piece in stream(BYTE_LEVEL, ids) if piece] == ["漢", "🎈"]


def test_what_a_token_completes_does_not_wait_for_what_it_begins() -> None:
    ids = [BYTE_LEVEL.token_to_id(token) for token in ("èĩ", "ªè»", "¢")]  # the bytes of 自 and 転
    assert stream(BYTE_LEVEL, ids) == ["", "自", "転", ""]


def test_a_character_is_whole_after_any_number_of_stray_bytes() -> None:
    for number in range(20):
        ids = [byte_level_id(byte) for byte in b"\x80" * number + "🚲".encode()]
        assert "".join(stream(BYTE_LEVEL, ids)) == FFFD * number + "🚲"


def test_a_token_that_only_looks_unfinished_is_whole() -> None:
    literal = BYTE_LEVEL.token_to_id("a" + FFFD)
    assert stream(BYTE_LEVEL, [literal, literal]) == ["a" + FFFD, "a" + FFFD, ""]
    assert stream(BYTE_LEVEL, [BYTE_LEVEL.token_to_id("<0xFF>")]) == ["<0xFF>", ""]
    assert stream(BYTE_FALLBACK, [FIRST_WORD + WORDS.index(FFFD)]) == [FFFD, ""]


# --- byte fallback ---


@given(st.text(st.sampled_from("ab xyé自🚲 "), max_size=20))
@settings(max_examples=60, deadline=None)
def test_streams_sentencepiece_text(text: str) -> None:
    ids = BYTE_FALLBACK.encode("▁" + text.replace(" ", "▁")).ids
    ids = [token for pair in zip(ids, [2] * len(ids), strict=True) for token in pair]  # a special token after each
    assert "".join(stream(BYTE_FALLBACK, ids)) == BYTE_FALLBACK.decode(ids) == text


def test_an_unfinished_character_comes_with_the_flush() -> None:
    half = BYTE_FALLBACK.encode("▁a🚲").ids[:-1]
    assert stream(BYTE_FALLBACK, half) == ["a", "", "", "", FFFD * 3]


def fallback_text(ids: list[int]) -> tuple[str, bool]:
    """What the stream should say; and whether a byte spoils a run of byte tokens that began with whole characters."""
    runs: list[bytes | str] = []
    for token in ids:
        if token >= FIRST_WORD:
            runs += [WORDS[token - FIRST_WORD].replace("▁", " ")] if token != UNKNOWN else []
        elif token >= len(SPECIAL):
            before = runs.pop() if runs and isinstance(runs[-1], bytes) else b""
            runs.append(before + bytes([token - len(SPECIAL)]))
    text, spoilt = "", False
    for run in runs:
        if isinstance(run, str):
            text += run
            continue
        try:
            text += run.decode()
        except UnicodeDecodeError as error:
            text += run[: error.start].decode() + FFFD * (len(run) - error.start)
            spoilt = spoilt or error.start > 0
    return text.removeprefix(" "), spoilt


@given(
    st.lists(
        st.sampled_from(BYTES).map(byte_fallback_id)
        | st.integers(FIRST_WORD, FIRST_WORD + len(WORDS) - 1)
        | st.sampled_from([1, 2, UNKNOWN]),
        max_size=30,
    )
)
@example([byte_fallback_id(byte) for byte in FFFD.encode() * 9 + b"a"])
@settings(deadline=None, max_examples=300)
def test_any_byte_fallback_tokens_stream_as_they_decode(ids: list[int]) -> None:
    decoder, out = StreamDecoder(BYTE_FALLBACK), ""
    for end, token in enumerate(ids, start=1):
        out += decoder.push(token)
        so_far, _ = fallback_text(ids[:end])
        assert out + FFFD * (len(so_far) - len(out)) == so_far and len(so_far) - len(out) <= 3
    expected, spoilt = fallback_text(ids)
    assert out + decoder.flush() == expected
    assert BYTE_FALLBACK.decode(ids) == expected or spoilt


def test_a_spoilt_run_keeps_the_characters_that_went_out() -> None:
    ids = [byte_fallback_id(byte) for byte in "自".encode() + b"\xff" + "é".encode()] + [FIRST_WORD + 3]
    assert stream(BYTE_FALLBACK, ids) == ["", "", "自", FFFD, FFFD, FFFD, " a", ""]
    assert BYTE_FALLBACK.decode(ids) == FFFD * 6 + " a"


# --- other decoders ---


def test_words_without_a_decoder_are_joined_by_spaces() -> None:
    tokenizer = build_processor().tokenizer.backend_tokenizer
    assert stream(tokenizer, tokenizer.encode("red green blue").ids) == ["red", " green", " blue", ""]


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (None, ["red", "green", FFFD]),
        (decoders.WordPiece(), ["red", "##green", ".", "##"]),
        (decoders.Metaspace(), ["▁red", "green", "▁"]),
        (decoders.BPEDecoder(), ["red</w>", "green", "</w>"]),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)]), ["red", "", " green"]),
    ],
)
def test_other_decoders_stream_as_they_decode(decoder: Any, words: list[str]) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, words[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    for number in range(len(words) ** 5):
        ids = [number // len(words) ** place % len(words) for place in range(5)]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


# --- the cost ---


class Watched:
    """A tokenizer that notes how many tokens it decodes at a time."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.most = 0

    def decode(self, ids: list[int]) -> str:
        self.most = max(self.most, len(ids))
        return self.tokenizer.decode(ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


ENDLESS = {
    "incomplete": b"\xf0",
    "never complete": b"\xf0\x9f",
    "continuations": b"\x80",
    "invalid": b"\xff",
    "newlines": b"\n",
    "emoji": "🚲".encode(),
    "replacement characters": FFFD.encode(),
    "one bad byte among good ones": b"\xff" + b"good",
}


@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("fallback", [False, True])
def test_endless_bytes_flow_at_a_constant_cost(kind: str, fallback: bool) -> None:
    tokenizer = Watched(BYTE_FALLBACK if fallback else BYTE_LEVEL)
    ids = [(byte_fallback_id if fallback else byte_level_id)(byte) for byte in ENDLESS[kind] * 300]
    pieces = stream(tokenizer, ids)  # type: ignore[arg-type]
    assert "".join(pieces) == (fallback_text(ids)[0] if fallback else BYTE_LEVEL.decode(ids))
    assert all(any(pieces[at : at + 4]) for at in range(len(pieces) - 4))
    assert tokenizer.most <= 16


@pytest.mark.parametrize("ids", [[2], [UNKNOWN], [FIRST_WORD, 2], [FIRST_WORD + 1, FIRST_WORD + 5]])
def test_other_endless_tokens_cost_no_more(ids: list[int]) -> None:
    tokenizer = Watched(BYTE_FALLBACK)
    assert "".join(stream(tokenizer, ids * 300)) == BYTE_FALLBACK.decode(ids * 300)  # type: ignore[arg-type]
    assert tokenizer.most <= 16
