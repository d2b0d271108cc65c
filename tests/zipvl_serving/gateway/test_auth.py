"""API keys."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from helpers.bundles import refusal
from helpers.gateway import CHAT, COMPLETIONS, FakeBackend, call, refused

from zipvl_serving.errors import InputError
from zipvl_serving.gateway import auth

KEYS = ("alpha", "beta")


def test_a_file_has_a_key_per_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n\nalpha\r\n  beta  \n")
    assert auth.read_keys(file) == KEYS


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no API key in it"),
        (b"# only this\n\n", "no API key in it"),
        (b"alpha\ntwo words\n", "keys:2: an API key must be visible ASCII"),
        ("schlüssel\n".encode(), "keys:1: an API key must be visible ASCII"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with refusal(InputError, file, part):
        auth.read_keys(file)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refusal(InputError, tmp_path / "keys", "No such file"):
        auth.read_keys(tmp_path / "keys")


def test_files_that_others_can_read(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("alpha")
    file.chmod(0o644)
    assert auth.is_world_readable(file)
    file.chmod(0o640)
    assert not auth.is_world_readable(file)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_each_key_opens(key: str, scheme: str) -> None:
    response = call(FakeBackend(), "GET", "/v1/models", headers={"authorization": f"{scheme} {key}"}, api_keys=KEYS)
    assert response.status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic alpha", "alpha"])
def test_without_a_key_there_is_nothing(header: str) -> None:
    headers = {"authorization": header} if header else {}
    response = call(FakeBackend(), "GET", "/v1/models", headers=headers, api_keys=KEYS)
    assert "You didn't provide an API key" in refused(response, 401)["message"]
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["gamma", "alph", "alphaa", "alpha,beta", "ÿ"])
def test_a_wrong_key_is_refused(key: str) -> None:
    backend = FakeBackend()
    headers = {"authorization": f"Bearer {key}".encode("latin-1")}
    response = call(backend, "POST", COMPLETIONS, json=CHAT, headers=headers, api_keys=KEYS)
    error = refused(response, 401)
    assert error["code"] == "invalid_api_key" and key not in error["message"]
    assert not backend.requests


@pytest.mark.parametrize("path", ["/metrics", "/version", "/v1/models", "/nowhere", "/healthy"])
def test_all_but_health_is_closed(path: str) -> None:
    refused(call(FakeBackend(), "GET", path, api_keys=KEYS), 401)


@pytest.mark.parametrize("path", ["/health", "/health/live", "/health/ready"])
def test_health_is_open(path: str) -> None:
    assert call(FakeBackend(), "GET", path, api_keys=KEYS).status_code == 200


def test_every_key_is_compared_whatever_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    original = hmac.compare_digest

    def record(given: bytes, known: bytes) -> bool:
        compared.append(len(known))
        return original(given, known)

    monkeypatch.setattr("zipvl_serving.gateway.auth.hmac.compare_digest", record)
    call(FakeBackend(), "GET", "/v1/models", headers={"authorization": "Bearer alpha"}, api_keys=("alpha", "a", "b"))
    assert compared == [32, 32, 32]
