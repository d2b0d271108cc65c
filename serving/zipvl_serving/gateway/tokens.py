"""The text and the bytes of single tokens, as OpenAI's logprobs want them."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from zipvl_serving.output.detokenise import BYTE_TOKEN


class TokenTexts:
    """Looks tokens up; the bytes of an answer's tokens, joined, are the bytes of its text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {
            id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._bytes_of = _byte_alphabet() if "ByteLevel" in _decoders(tokenizer) else None
        self.look_up = lru_cache(maxsize=65536)(self._look_up)

    def _look_up(self, token_id: int, first: bool) -> tuple[str, list[int] | None]:
        """A token's text and bytes; `first` where it begins an answer, which has no space before its first word.

        Special tokens have a name but no bytes. An unfinished character reads U+FFFD.
        """
        if token_id in self._special:
            return self._special[token_id], None
        raw = self._raw_bytes(self._tokenizer.id_to_token(token_id) or "")
        if raw is None:
            text = self._tokenizer.decode([token_id])
            if not first:
                # A decoder treats the first token apart: what the second of two adds is the token's own text.
                text = self._tokenizer.decode([token_id, token_id])[len(text) :]
            raw = text.encode()
        return raw.decode(errors="replace"), list(raw)

    def _raw_bytes(self, token: str) -> bytes | None:
        """The bytes that a token is by its name, where its vocabulary is one of bytes."""
        if match := BYTE_TOKEN.fullmatch(token):
            return bytes([int(match[1], 16)])
        if self._bytes_of is not None and all(character in self._bytes_of for character in token):
            return bytes(self._bytes_of[character] for character in token)
        return None


def _decoders(tokenizer: Tokenizer) -> set[str]:
    """Types of the tokenizer's decoder and of those inside it."""
    if tokenizer.decoder is None:
        return set()
    found: dict[str, Any] = json.loads(tokenizer.decoder.__getstate__())
    return {found["type"], *(inner["type"] for inner in found.get("decoders", []))}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's: the character that stands for each byte; printable ones for themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
