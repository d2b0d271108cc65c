"""OpenAI's own client against the gateway on a real port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from helpers.gateway import FakeBackend, answer, serving

from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError
from zipvl_serving.output.sampling import TokenLogprob

USER: Any = [{"role": "user", "content": "hello"}]
LOGPROBS = [TokenLogprob(token, -0.5, [(token, -0.5), (5, -2.0)]) for token in (2, 3, 4)]


@contextmanager
def client(*script: Any, **options: Any) -> Iterator[openai.OpenAI]:
    keys = options.get("api_keys", ("none",))
    # The server's readiness takes a token as well, before any request of the test.
    backend = FakeBackend()
    with serving(lambda: backend, **options) as running:
        backend.script = script or backend.script
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=keys[0], max_retries=0) as made:
            yield made


def test_a_whole_answer() -> None:
    with client(*answer("red", "is", "4", logprobs=LOGPROBS)) as api:
        completion = api.chat.completions.create(model="fake", messages=USER, logprobs=True, top_logprobs=2)
        choice = completion.choices[0]
        assert (choice.message.content, choice.finish_reason) == ("red is 4", "stop")
        assert completion.usage and completion.usage.total_tokens == 10
        assert choice.logprobs and choice.logprobs.content
        assert [entry.token for entry in choice.logprobs.content] == ["red", " is", " 4"]
        assert completion.model_extra and completion.model_extra["zipvl"]["kept_tokens_per_layer"] == [4, 2]


def test_a_stream() -> None:
    with client() as api:
        stream = api.chat.completions.create(
            model="fake", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "red is 4"
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 3
    assert chunks[-2].choices[0].finish_reason == "stop" and chunks[-2].model_extra
    assert chunks[-2].model_extra["zipvl"]["kv_bytes"] == 4096


def test_the_streaming_helper() -> None:
    with client() as api, api.chat.completions.stream(model="fake", messages=USER) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == "red is 4"


def test_models() -> None:
    with client() as api:
        assert [model.id for model in api.models.list()] == ["fake"]
        assert api.models.retrieve("fake").owned_by == "zipvl"
        with pytest.raises(openai.NotFoundError):
            api.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (InputError("too long"), openai.BadRequestError),
        (OverloadedError("too many"), openai.RateLimitError),
        (DeadlineError("too late"), openai.InternalServerError),
        (UnavailableError("stopping"), openai.InternalServerError),
    ],
)
def test_failures(failure: Exception, kind: type[openai.APIStatusError]) -> None:
    with client(failure) as api, pytest.raises(kind) as caught:
        api.chat.completions.create(model="fake", messages=USER)
    assert str(failure) in caught.value.message


def test_a_wrong_field() -> None:
    with client() as api, pytest.raises(openai.BadRequestError) as caught:
        api.chat.completions.create(model="fake", messages=USER, n=2)
    assert (caught.value.param, caught.value.code) == ("n", "unsupported_value")


def test_keys() -> None:
    with client(api_keys=("alpha",)) as api:
        assert api.models.retrieve("fake").id == "fake"
        with pytest.raises(openai.AuthenticationError):
            api.with_options(api_key="beta").models.list()


def test_a_failure_within_a_stream_raises() -> None:
    with client(answer("red", "is")[0], UnavailableError("the engine is gone")) as api:
        stream = api.chat.completions.create(model="fake", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="the engine is gone"):
            list(stream)


def test_a_deadline_is_not_asked_for_again() -> None:
    """The client repeats what answers 5xx; with the same limit that would only lengthen the queue."""
    backend = FakeBackend()
    with serving(lambda: backend) as running:
        backend.script = (DeadlineError("too late"),)
        backend.requests.clear()
        api = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=2)
        with api, pytest.raises(openai.InternalServerError):
            api.chat.completions.create(model="fake", messages=USER)
    assert len(backend.requests) == 1


def test_tokens_come_as_they_are_made() -> None:
    go = threading.Event()
    red, is_, four = answer("red", "is", "4")
    with client(red, go, is_, four) as api:
        stream = api.chat.completions.create(model="fake", messages=USER, stream=True)
        texts = (chunk.choices[0].delta.content for chunk in stream)
        assert [next(texts), next(texts)] == ["", "red"]
        go.set()
        assert "".join(text or "" for text in texts) == " is 4"
