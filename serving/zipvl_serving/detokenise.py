"""Tokens to text, one token at a time."""

from __future__ import annotations

from tokenizers import Tokenizer

_INCOMPLETE = "\ufffd"


class StreamDecoder:
    """Turns token ids into text as they come, never splitting a character whose bytes span several tokens.

    The pieces of `push` and `flush` joined are the text that decoding all tokens at once gives. Special tokens and
    ids outside the vocabulary yield nothing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The tokens of the last piece that went out, as context (a decoder strips the space before the very first
        # token), and those since then, which have no text of their own yet.
        self._context: list[int] = []
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that this token completes; empty while a character is unfinished."""
        self._pending.append(token_id)
        return self._emit(final=False)

    def flush(self) -> str:
        """What is still held back, an unfinished character as U+FFFD; call it once, after the last token."""
        return self._emit(final=True)

    def _emit(self, final: bool) -> str:
        before = self._tokenizer.decode(self._context)
        after = self._tokenizer.decode(self._context + self._pending)
        if len(after) <= len(before) or (after.endswith(_INCOMPLETE) and not final):
            return ""
        self._context, self._pending = self._pending, []
        return after[len(before) :]
