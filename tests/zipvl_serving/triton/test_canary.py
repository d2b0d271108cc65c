"""The canary: what a server that misreads tensors would answer is noticed."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest
from helpers.bundles import refusal

from zipvl_serving.errors import InputError, OverloadedError, UnavailableError, ZipvlError
from zipvl_serving.triton import canary
from zipvl_serving.triton.canary import check_model
from zipvl_serving.wire import Chunk, Statistics

REFUSED = InputError("tau: 1.625 is out of range; must be > 0 and <= 1")
STATISTICS = Statistics(4, 1, 0, False, [1.0], [4], 64, 0.1, 0.2, 0.3)
ANSWER = Chunk("a", [7], None, "length", STATISTICS)


def answering(monkeypatch: pytest.MonkeyPatch, *script: Chunk | Exception) -> list[Mapping[str, Any]]:
    """A model that answers so; returns what it is asked."""
    asked: list[Mapping[str, Any]] = []

    def ask(address: str, model: str, values: Mapping[str, Any], timeout_s: float) -> Chunk:
        asked.append(values)
        answer = script[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(canary, "_ask", ask)
    return asked


@pytest.mark.parametrize("second", [ANSWER, OverloadedError("256 are waiting")])
def test_a_model_that_reads_and_answers_passes(monkeypatch: pytest.MonkeyPatch, second: Chunk | Exception) -> None:
    asked = answering(monkeypatch, REFUSED, second)
    check_model("host:1", "tiny", 5)
    assert [values["text_input"] for values in asked] == ["canary", "canary"]


@pytest.mark.parametrize(
    "script",
    [
        (InputError("tau: 0.0 is out of range; must be > 0 and <= 1"),),  # as with numpy 2
        (InputError("one of text_input and messages is required; neither was given"),),
        (ANSWER,),
        (REFUSED, Chunk("", [], None, "length", STATISTICS)),
        (REFUSED, Chunk("a", [7])),
    ],
)
def test_misread_tensors_are_noticed(monkeypatch: pytest.MonkeyPatch, script: tuple[Chunk | Exception, ...]) -> None:
    answering(monkeypatch, *script)
    with refusal(ZipvlError, "model tiny: ", "misreads tensors", "install numpy below 2"):
        check_model("host:1", "tiny", 5)


def test_other_errors_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, UnavailableError("stopping"))
    with refusal(UnavailableError, "stopping"):
        check_model("host:1", "tiny", 5)


def test_no_server_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    with refusal(ZipvlError, "model tiny: ", f"127.0.0.1:{port}"):
        check_model(f"127.0.0.1:{port}", "tiny", 30)


def test_silence_has_an_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, refusal(ZipvlError, "model tiny: did not answer within 0 s"):
        check_model(f"127.0.0.1:{deaf.getsockname()[1]}", "tiny", 0.1)
