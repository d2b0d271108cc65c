"""Signals while a library runs: told to it, and delivered when it is done."""

from __future__ import annotations

import signal
import threading

import pytest

from zipvl_compile.engines.held_signals import held_signals
from zipvl_serving.errors import ZipvlError


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_comes_when_the_block_ends_whatever_ends_it(number: int) -> None:
    delivered: list[int] = []

    def deliver(sent: int, _: object) -> None:
        delivered.append(sent)
        raise KeyboardInterrupt

    before = signal.signal(number, deliver)
    try:
        with pytest.raises(KeyboardInterrupt), held_signals() as interrupted:
            assert not interrupted()
            signal.raise_signal(number)
            assert interrupted() and delivered == []
            raise ZipvlError("cancelled, says the library")
        assert delivered == [number]
        assert signal.getsignal(number) is deliver
    finally:
        signal.signal(number, before)


def test_without_a_signal_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGINT)
    with held_signals() as interrupted:
        assert not interrupted()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_get_no_signals() -> None:
    found: list[bool] = []

    def build() -> None:
        with held_signals() as interrupted:
            found.append(interrupted())

    thread = threading.Thread(target=build)
    thread.start()
    thread.join()
    assert found == [False]
