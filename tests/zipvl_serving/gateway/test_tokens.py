"""Texts and bytes of single tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models

from zipvl_serving.gateway.tokens import TokenTexts

Looked = tuple[str, list[int] | None]


def spell(texts: TokenTexts, *tokens: int) -> bytes:
    """The bytes of an answer's tokens, joined."""
    looked = [texts.look_up(token, at == 0) for at, token in enumerate(tokens)]
    return b"".join(bytes(raw or []) for _, raw in looked)


def sentencepiece() -> Tokenizer:
    """As Llama's: pieces with a mark for the space, single bytes for the rest."""
    vocabulary = ["<unk>", "</s>", "▁He", "llo", "▁", "<0xE2>", "<0x82>", "<0xAC>", "<"]
    tokenizer = Tokenizer(
        models.BPE({word: at for at, word in enumerate(vocabulary)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


def test_pieces_and_bytes_of_a_sentencepiece_vocabulary() -> None:
    tokenizer = sentencepiece()
    texts = TokenTexts(tokenizer)
    assert texts.look_up(2, True) == ("He", [72, 101])
    assert texts.look_up(2, False) == (" He", [32, 72, 101])
    assert texts.look_up(5, False) == ("\ufffd", [0xE2])
    answer = [2, 3, 2, 4, 5, 6, 7, 3]
    assert spell(texts, *answer).decode() == tokenizer.decode(answer) == "Hello He €llo"


def test_pieces_of_a_byte_level_vocabulary() -> None:
    vocabulary = ["Ġhi", "â", "Ĥ", "¬", "!"]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(vocabulary)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    texts = TokenTexts(tokenizer)
    assert texts.look_up(0, False) == (" hi", [32, 104, 105])
    assert texts.look_up(1, False) == ("\ufffd", [0xE2])
    assert spell(texts, 0, 1, 2, 3, 4).decode() == tokenizer.decode([0, 1, 2, 3, 4]) == " hi€!"


def test_words_are_joined_by_spaces_where_there_is_no_decoder() -> None:
    tokenizer = Tokenizer(models.WordLevel({"red": 0, "is": 1}, unk_token="red"))
    texts = TokenTexts(tokenizer)
    assert spell(texts, 0, 1, 1).decode() == tokenizer.decode([0, 1, 1]) == "red is is"


def test_special_tokens_have_a_name_and_no_bytes() -> None:
    assert TokenTexts(sentencepiece()).look_up(1, False) == ("</s>", None)


def test_ids_outside_the_vocabulary_are_nothing() -> None:
    assert TokenTexts(sentencepiece()).look_up(10_000, False) == ("", [])
