"""The watchdog over a server that does what a test says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from zipvl_serving.errors import ZipvlError
from zipvl_serving.triton.watchdog import PROBES, Watchdog

PATIENCE_S = 30.0


class Server:
    """A run of the server."""

    def __init__(self) -> None:
        self.ended = False
        self.alive = {11: "tiny", 12: "other"}

    def reason(self) -> str:
        return "it was killed"

    def stubs(self) -> dict[int, str]:
        return dict(self.alive)


class World:
    """Servers one after the other, and what a probe finds."""

    def __init__(self) -> None:
        self.servers = [Server()]
        self.failures: list[Exception] = []
        """What the next recoveries raise."""
        self.problems: dict[str, str] = {}
        self.probes: list[str] = []
        self.faults: list[str | None] = []
        self.recovered = threading.Event()
        self.dog: Watchdog | None = None
        self.on_probe: Callable[[], object] = lambda: None

    def probe(self, model: str, timeout_s: float) -> str | None:
        assert timeout_s > 0
        self.probes.append(model)
        self.on_probe()
        return self.problems.get(model)

    def recover(self) -> Server:
        assert self.dog
        self.faults.append(self.dog.fault)
        if self.failures:
            raise self.failures.pop(0)
        self.problems.clear()
        self.servers.append(Server())
        self.recovered.set()
        return self.servers[-1]


@contextmanager
def watched(world: World, probe_every_s: float = 1000.0, retry_s: tuple[float, ...] = (0.001,)) -> Iterator[Watchdog]:
    world.dog = Watchdog(
        world.servers[0], ["tiny", "other"], world.probe, world.recover,
        look_s=0.002, probe_every_s=probe_every_s, retry_s=retry_s,
    )  # fmt: skip
    try:
        yield world.dog
    finally:
        world.dog.stop()


def wait_until_well(dog: Watchdog) -> None:
    """The recovery is over when the next look has been had."""
    well = threading.Event()
    look = dog._look

    def observed() -> str | None:
        well.set()
        return look()

    dog._look = observed  # type: ignore[method-assign]
    assert well.wait(PATIENCE_S)


def test_a_dead_stub_is_noticed_and_the_server_started_again() -> None:
    world = World()
    with watched(world) as dog:
        assert dog.fault is None
        del world.servers[0].alive[12]
        assert world.recovered.wait(PATIENCE_S)
        wait_until_well(dog)
        assert world.faults == ["the Python process of model other (pid 12) died"]
        assert dog.fault is None
        world.recovered.clear()
        del world.servers[1].alive[11]  # the new run is watched as well
        assert world.recovered.wait(PATIENCE_S)
    assert len(world.servers) == 3


def test_a_dead_server_is_noticed() -> None:
    world = World()
    with watched(world):
        world.servers[0].ended = True
        assert world.recovered.wait(PATIENCE_S)
    assert world.faults == ["the Triton server ended: it was killed"]


def test_a_deaf_model_is_noticed_after_some_probes() -> None:
    world = World()
    world.problems["other"] = "model other does not answer: timed out"
    with watched(world, probe_every_s=0.0):
        assert world.recovered.wait(PATIENCE_S)
    assert world.faults == ["model other does not answer: timed out"]
    assert world.probes[: 2 * PROBES] == ["tiny", "other"] * PROBES


def test_a_few_slow_answers_are_forgiven() -> None:
    world = World()
    enough = threading.Event()

    def once_in_a_while() -> None:
        rounds = (len(world.probes) - 1) // 2
        world.problems = {"tiny": "slow"} if rounds % PROBES else {}
        if len(world.probes) > 10 * PROBES:
            enough.set()

    world.on_probe = once_in_a_while
    with watched(world, probe_every_s=0.0):
        assert enough.wait(PATIENCE_S)
    assert not world.faults


@pytest.mark.parametrize("failure", [ZipvlError("port 8000 is taken"), RuntimeError("a bug")])
def test_a_recovery_that_fails_is_tried_again(failure: Exception) -> None:
    world = World()
    world.failures = [failure, failure]
    with watched(world):
        world.servers[0].ended = True
        assert world.recovered.wait(PATIENCE_S)
    fault = "the Triton server ended: it was killed"
    assert world.faults == [fault, *[f"{fault}; it could not be started again: {failure}"] * 2]


def test_it_stops_between_two_tries() -> None:
    world = World()
    tried = threading.Event()
    recover = world.recover
    world.failures = [ZipvlError("no")] * 100

    def observed() -> Server:
        tried.set()
        return recover()

    world.recover = observed  # type: ignore[method-assign]
    with watched(world, retry_s=(1000.0,)) as dog:
        world.servers[0].ended = True
        assert tried.wait(PATIENCE_S)
    assert dog.fault
    assert len(world.servers) == 1
