"""Text to token ids; what a user typed never becomes one of the tokens that steer the model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models

from zipvl_serving.errors import InputError
from zipvl_serving.prompts.special_tokens import LiteralTokenizer, Mark, SpecialTokenFinder

Render = Callable[[Callable[[str], str]], str]
"""Renders a conversation with a function applied to every text of its messages."""

_MASK = 0xF0000  # for private use: it is in no token
_NO_SPACE = 0x3001  # nor is any character after it
_IS_SPACE = np.array([chr(code).isspace() for code in range(_NO_SPACE + 1)])


class TextEncoder:
    """A tokenizer for prompts whose special tokens are meant, and for conversations in which only the template's are.

    Special are all tokens that could steer the model: those that the tokenizer calls so, and of its other added tokens
    those that the chat template writes; not those of nothing but whitespace. transformers' `sanitize_control_tokens`
    counts them so too.
    """

    def __init__(self, tokenizer: Tokenizer, written: str, bos: str | None) -> None:
        """written: the pieces of text that the chat template may write, NUL between them.
        bos: the token that a prompt begins with; where its text does already, the tokenizer adds no tokens to it.
        """
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer = tokenizer
        self._bos = bos
        self._special = {
            id: token.content
            for id, token in added.items()
            if (token.special or token.content in written) and not token.content.isspace()
        }
        self._finder = SpecialTokenFinder(tokenizer, self._special)
        self._literal = LiteralTokenizer(tokenizer, self._special)
        # The unknown token stands for odd text as well, so it tells nothing.
        self._telling = self._special.keys() - {_unknown_id(tokenizer)}
        self._before, self._after = _frame(tokenizer)

        # The less is masked, the more a template may look into texts and change them. What special tokens begin with is
        # enough where none can begin in the template and end in a text, nor come of a text that is normalised first.
        starts = {ord(content[0]): _MASK for content in self._special.values()}
        self._masks: list[Callable[[str], str]] = [_mask]
        normalized = any(added[id].normalized for id in self._special)
        if not normalized and not _ends_within_token(written, self._special.values()):
            self._masks.append(lambda text: text.translate(starts))

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt; special tokens in it are meant."""
        return self._framed(self._encode(text), text)

    def encode_chat(self, render: Render) -> tuple[str, list[int]]:
        """A conversation's prompt and its ids, in which only the template's own special tokens are special.

        Where no text holds a special token the ids are those of `encode`. What is the template's own shows in a second
        rendering, whose texts are masked. Raises InputError where a text holds a special token and the two renderings
        cannot be laid over one another, because the template decides by the text, or where the tokenizer has no other
        way to write it.
        """
        text = render(str)
        ids = self._encode(text)
        masked = next((masked for masked in map(render, self._masks) if _agree(text, masked)), None)
        if masked is None:
            masked = render(_mask)
            own = self._finder.find(masked)
        else:
            own = self._finder.find(masked)
            if self._finder.find(text) != own or not self._are_own(ids, own):
                ids = self._literal.encode(text, own)
        if not self._are_own(ids, own):
            raise self._refusal(ids, own)
        return text, self._framed(ids, masked)

    def _encode(self, text: str) -> list[int]:
        # For one text too: unlike `encode` it keeps no offsets, and other threads run meanwhile.
        return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def _framed(self, ids: list[int], text: str) -> list[int]:
        if self._bos is not None and text.startswith(self._bos):
            return ids
        return [*self._before, *ids, *self._after]

    def _are_own(self, ids: Iterable[int], own: Sequence[Mark]) -> bool:
        return [id for id in ids if id in self._telling] == [mark.id for mark in own if mark.id in self._telling]

    def _refusal(self, ids: Iterable[int], own: Iterable[Mark]) -> InputError:
        more = Counter(id for id in ids if id in self._telling) - Counter(mark.id for mark in own)
        what = f"the special token {self._special[next(iter(more))]!r}" if more else "a special token"
        return InputError(
            f"the messages hold what this model would read as {what}, and with this chat template it cannot be given "
            "as plain text; leave it out"
        )


def _mask(text: str) -> str:
    """`text` with one character, which is in no token, in place of every one but whitespace."""
    codes = _codes(text)
    masked = np.where(_IS_SPACE[np.minimum(codes, _NO_SPACE)], codes, np.uint32(_MASK))
    return masked.astype("<u4").tobytes().decode("utf-32-le")


def _agree(text: str, masked: str) -> bool:
    """Whether `masked` is `text` but for its masks, so that a place in one is the same place in the other."""
    if len(text) != len(masked):
        return False
    codes, masked_codes = _codes(text), _codes(masked)
    return bool(np.all((codes == masked_codes) | (masked_codes == _MASK)))


def _codes(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _ends_within_token(written: str, tokens: Iterable[str]) -> bool:
    """Whether one of the pieces in `written` ends with the beginning of a token, which a text could complete."""
    beginnings = {token[:length] for token in tokens for length in range(1, len(token))}
    longest = max(map(len, beginnings), default=0)
    return any(piece[-length:] in beginnings for piece in written.split("\0") for length in range(1, longest + 1))


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before a text and after it."""
    encoding = tokenizer.encode("a")
    text = [at for at, added in enumerate(encoding.special_tokens_mask) if not added]
    first, last = (text[0], text[-1]) if text else (len(encoding.ids), len(encoding.ids))
    return encoding.ids[:first], encoding.ids[last + 1 :]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = tokenizer.model
    if isinstance(model, models.Unigram):
        return json.loads(model.__getstate__())["unk_id"]
    return tokenizer.token_to_id(model.unk_token) if model.unk_token else None
