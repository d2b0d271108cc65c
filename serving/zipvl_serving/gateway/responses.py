"""From an answer's chunks to OpenAI's objects."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from zipvl_serving.gateway.backends.base import ModelInfo
from zipvl_serving.gateway.tokens import TokenTexts
from zipvl_serving.output.sampling import TokenLogprob
from zipvl_serving.wire import Chunk, FinishReason, Statistics

_REASONS: dict[FinishReason, str] = {"stop": "stop", "length": "length", "deadline": "length"}
"""OpenAI knows no deadline; `zipvl.finish_reason` says which it was."""
_UNLIKELY = -9999.0
"""OpenAI's number for a token that the model rules out."""


def describe_model(model: ModelInfo) -> dict[str, Any]:
    """An entry of /v1/models; `max_model_len` is vLLM's name for prompt and answer together."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "zipvl",
        "max_model_len": model.max_input_tokens + model.max_new_tokens,
    }


class Completion:
    """One request's answer: whole, or as the pieces of a stream in order: `opening`, then `pieces` of each chunk."""

    def __init__(self, model: str, texts: TokenTexts, *, include_usage: bool = False) -> None:
        self._base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._texts = texts
        self._include_usage = include_usage
        self._at_start = True

    def whole(self, chunk: Chunk) -> dict[str, Any]:
        """A chat.completion from all chunks merged into one."""
        assert chunk.finish_reason and chunk.statistics
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": chunk.text, "refusal": None},
            "logprobs": self._logprobs(chunk),
            "finish_reason": _REASONS[chunk.finish_reason],
        }
        usage, ours = _usage(chunk.statistics), _extension(chunk.statistics, chunk.finish_reason)
        return {**self._base, "object": "chat.completion", "choices": [choice], "usage": usage, "zipvl": ours}

    def opening(self) -> dict[str, Any]:
        """The stream's first chat.completion.chunk: who speaks."""
        return self._piece({"role": "assistant", "content": "", "refusal": None})

    def pieces(self, chunk: Chunk) -> Iterator[dict[str, Any]]:
        """What a chunk adds to a stream: nothing for half a character, several objects for the last chunk."""
        logprobs = self._logprobs(chunk)
        if chunk.text or logprobs:
            yield self._piece({"content": chunk.text}, logprobs=logprobs)
        if chunk.finish_reason:
            assert chunk.statistics
            piece = self._piece({}, finish_reason=_REASONS[chunk.finish_reason])
            yield piece | {"zipvl": _extension(chunk.statistics, chunk.finish_reason)}
            if self._include_usage:
                yield self._piece(None) | {"usage": _usage(chunk.statistics)}

    def _piece(self, delta: dict[str, Any] | None, **choice: Any) -> dict[str, Any]:
        """A chat.completion.chunk; without a delta it has no choice, which is how OpenAI sends the usage."""
        filled = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **choice}
        piece = {**self._base, "object": "chat.completion.chunk", "choices": [] if delta is None else [filled]}
        return {**piece, "usage": None} if self._include_usage else piece

    def _logprobs(self, chunk: Chunk) -> dict[str, Any] | None:
        if not chunk.logprobs:
            return None
        return {"content": [self._logprob(entry) for entry in chunk.logprobs], "refusal": None}

    def _logprob(self, entry: TokenLogprob) -> dict[str, Any]:
        first, self._at_start = self._at_start, False
        return {
            **self._likelihood(entry.token_id, entry.logprob, first),
            "top_logprobs": [self._likelihood(token, logprob, first) for token, logprob in entry.top],
        }

    def _likelihood(self, token_id: int, logprob: float, first: bool) -> dict[str, Any]:
        text, raw = self._texts.look_up(token_id, first)
        return {"token": text, "bytes": raw, "logprob": max(logprob, _UNLIKELY)}


def _usage(statistics: Statistics) -> dict[str, int]:
    prompt, completion = statistics.prompt_tokens, statistics.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _extension(statistics: Statistics, reason: FinishReason) -> dict[str, Any]:
    """What the method and the scheduler did, beside OpenAI's fields."""
    ours = {name: value for name, value in asdict(statistics).items() if not name.endswith("_tokens")}
    return {**ours, "finish_reason": reason}
