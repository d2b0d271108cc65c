"""Tokens to text, one token at a time."""

from __future__ import annotations

import codecs
import re

from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How a vocabulary with byte fallback spells a byte."""

_MOST_PENDING = 8

_LONGEST_CHARACTER = 4
"""Bytes of UTF-8, hence tokens: what follows so many is read alike whatever came before them."""


class StreamDecoder:
    """Turns token ids into text as they come, never splitting a character whose bytes span several tokens.

    The pieces of `push` and `flush` joined are the text that decoding all tokens at once gives. There is one exception:
    a tokenizer with byte fallback (SentencePiece, Llama) reads consecutive byte tokens as one string, and a byte that
    does not fit makes U+FFFD of every byte in it, those of complete characters too. Here such characters have gone out
    already, as nobody can tell how many byte tokens will follow; only the other bytes become U+FFFD.

    Special tokens and ids outside the vocabulary yield nothing. A token costs the decoding of a few tokens, however
    long the text and whatever came before it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        # The tokens of the last piece that went out, as context (a decoder strips the space before the very first
        # token), and those since then, which end in an unfinished character.
        self._context: list[int] = []
        self._pending: list[int] = []
        # Characters of the text of both that went out.
        self._sent = 0
        self._run: _ByteRun | None = None

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return ""
        byte = BYTE_TOKEN.fullmatch(token)
        if byte and self._tokenizer.decode([token_id]) != token:  # the decoder falls back to bytes
            return self._push_byte(token_id, int(byte[1], 16))
        lost = self._end_run()
        self._pending.append(token_id)
        return lost + self._emit(may_go_on=not token.endswith(_INCOMPLETE))

    def flush(self) -> str:
        """What is still held back, an unfinished character as U+FFFD; call it once, after the last token."""
        return self._end_run() + self._emit(may_go_on=False)

    def _push_byte(self, token_id: int, byte: int) -> str:
        self._run = self._run or _ByteRun()
        self._pending.append(token_id)
        if self._run.completes(byte):
            return self._emit(may_go_on=False)
        return self._lose_bytes() if self._run.broken else ""

    def _end_run(self) -> str:
        """No byte token follows: those of an unfinished character are lost."""
        lost = self._lose_bytes() if self._run else ""
        self._run = None
        return lost

    def _lose_bytes(self) -> str:
        lost = _INCOMPLETE * len(self._pending)
        if self._pending:
            self._remember(self._pending[-1:])
        return lost

    def _emit(self, may_go_on: bool) -> str:
        """The text that is complete; of a text that may go on the last character is not where it is U+FFFD."""
        text = self._tokenizer.decode(self._context + self._pending)
        unfinished = may_go_on and text.endswith(_INCOMPLETE)
        piece = text[self._sent : len(text) - unfinished]
        if not unfinished:
            self._remember(self._pending if piece else (self._context + self._pending)[-_MOST_PENDING:])
        elif len(self._pending) < _MOST_PENDING:
            self._sent += len(piece)
        else:
            self._remember(self._pending[-_LONGEST_CHARACTER:])
            self._sent -= 1
        return piece

    def _remember(self, context: list[int]) -> None:
        """All of these tokens' text went out."""
        self._context, self._pending = context, []
        self._sent = len(self._tokenizer.decode(context))


class _ByteRun:
    """Consecutive byte tokens, read as UTF-8.

    broken: a byte did not fit; the decoder makes U+FFFD of every byte until another token comes.
    """

    def __init__(self) -> None:
        self.broken = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def completes(self, byte: int) -> bool:
        """Take the next byte; whether it is the last of a character."""
        if not self.broken:
            try:
                return self._utf8.decode(bytes([byte])) != ""
            except UnicodeDecodeError:
                self.broken = True
        return False
