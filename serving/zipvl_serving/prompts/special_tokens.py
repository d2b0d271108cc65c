"""A tokenizer's special tokens: where they are in a text, and how to encode a text in which they are only text."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, models


class Mark(NamedTuple):
    """A special token in a text: from character `start` up to `end`, with the spaces that the token swallows."""

    start: int
    end: int
    id: int


class SpecialTokenFinder:
    """Finds special tokens in a text as the tokenizer does."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[int, str]) -> None:
        """special: the contents of the special tokens by their ids."""
        # It knows the same added tokens and no words: what is between them is one unknown word.
        self._tokenizer = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        self._tokenizer.normalizer = tokenizer.normalizer
        added = tokenizer.get_added_tokens_decoder()
        self._tokenizer.add_tokens([_renamed(token, token.content, token.single_word) for token in added.values()])
        self._originals = {self._tokenizer.token_to_id(content): id for id, content in special.items()}

    def find(self, text: str) -> list[Mark]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, strict=True)
        return [Mark(*span, self._originals[id]) for id, span in places if id in self._originals]


class LiteralTokenizer:
    """The tokenizer, but for its special tokens: in a text they are text, save where they are marked."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[int, str]) -> None:
        """special: the contents of the special tokens by their ids. Vocabulary and merges are shared where possible."""
        self._special = special
        # Here special tokens have names that nobody can type; all else about them is as it was.
        key = secrets.token_hex(16)
        self._names = {id: f"\ue000{key}{id}\ue000" for id in special}
        added = tokenizer.get_added_tokens_decoder()
        names = {id: self._names.get(id, token.content) for id, token in added.items()}
        self._tokenizer = Tokenizer(_without(tokenizer.model, special.values()))
        self._tokenizer.normalizer = tokenizer.normalizer
        self._tokenizer.pre_tokenizer = tokenizer.pre_tokenizer
        self._tokenizer.add_tokens(
            # A marked token is one, whatever is beside it.
            [_renamed(token, names[id], token.single_word and id not in special) for id, token in added.items()]
        )
        self._originals = {self._tokenizer.token_to_id(name): id for id, name in names.items()}

    def encode(self, text: str, marks: Sequence[Mark]) -> list[int]:
        """The ids of `text`, without what the tokenizer adds at its ends."""
        pieces, end = [], 0
        for mark in marks:
            content, name, found = self._special[mark.id], self._names[mark.id], text[mark.start : mark.end]
            pieces += [text[end : mark.start], found.replace(content, name) if content in found else name]
            end = mark.end
        encoding = self._tokenizer.encode("".join([*pieces, text[end:]]), add_special_tokens=False)
        return [self._originals.get(id, id) for id in encoding.ids]


def _renamed(token: AddedToken, name: str, single_word: bool) -> AddedToken:
    return AddedToken(
        name, single_word=single_word, lstrip=token.lstrip, rstrip=token.rstrip, normalized=token.normalized
    )


def _without(model: Any, tokens: Iterable[str]) -> Any:
    """The model with `tokens` out of any text's reach, their ids kept; the model itself where they are so already.

    A BPE writes what its merges build, and they build no special token; but with `ignore_merges` it looks up words.
    """
    names = {token: f"\0{secrets.token_hex(16)}" for token in tokens if model.token_to_id(token) is not None}
    if not names or (isinstance(model, models.BPE) and not model.ignore_merges):
        return model
    state = json.loads(model.__getstate__())
    if isinstance(state["vocab"], dict):
        state["vocab"] = {names.get(piece, piece): id for piece, id in state["vocab"].items()}
        state["unk_token"] = names.get(state["unk_token"], state["unk_token"])
    else:
        state["vocab"] = [[names.get(piece, piece), score] for piece, score in state["vocab"]]
    changed = type(model)()
    changed.__setstate__(json.dumps(state).encode())
    return changed
