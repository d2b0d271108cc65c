"""The scheduler on a session that computes nothing: who enters when, what it costs, how every request ends."""

from __future__ import annotations

import random
from collections.abc import Sequence as Ordered
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers.bundles import LAYERS, PAGE_SIZE, refusal
from helpers.fake_session import FakeSession, text_prompt
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import DeadlineError, InputError, ZipvlError
from zipvl_serving.kv_pool import KVPool, page_bytes
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.runner import Runner
from zipvl_serving.scheduler import Scheduler
from zipvl_serving.sequence import Request, Sequence
from zipvl_serving.wire import Chunk

END = frozenset({10_000})
"""An end token that the fake model never says."""


@dataclass
class Server:
    """A scheduler over a fake session, with what it emitted and a clock that the test moves."""

    bundle: Bundle
    pages: int = 200
    max_batch: int = 4
    max_prefill_tokens: int = 64
    now: float = 0.0
    texts: dict[int, list[int]] = field(default_factory=dict)
    ends: dict[int, Any] = field(default_factory=dict)
    """How each request ended: a finish_reason or an exception."""
    steps_of: dict[int, list[int]] = field(default_factory=dict)
    """The step of every token."""
    running: dict[int, Sequence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.session = FakeSession(self.bundle, limits={"max_new_tokens": 64})
        shape = self.session.shape
        self.processor = PromptProcessor(self.bundle.processor_folder)
        self.processor.eos_token_ids = END
        budget = self.pages * page_bytes(PAGE_SIZE, shape.kv_heads, shape.head_dim)
        self.pool = KVPool.create(budget, PAGE_SIZE, shape.kv_heads, shape.head_dim)
        self.scheduler = Scheduler(
            Runner(self.session, self.session.bundle.manifest), self.pool, self.processor, self.take,
            max_batch=self.max_batch, max_prefill_tokens=self.max_prefill_tokens, clock=lambda: self.now,
        )  # fmt: skip

    def take(self, sequence: Sequence, event: Chunk | Exception) -> None:
        number = sequence.request.number
        assert number not in self.ends, "nothing comes after the end"
        if isinstance(event, Exception):
            self.ends[number] = event
            self.running.pop(number, None)
            return
        self.running[number] = sequence
        self.texts.setdefault(number, []).extend(event.token_ids)
        self.steps_of.setdefault(number, []).extend([self.scheduler.steps] * len(event.token_ids))
        if event.finish_reason:
            self.ends[number] = event.finish_reason
            self.running.pop(number)

    def request(self, number: int, tokens: int = 8, new: int = 4, **changes: Any) -> Request:
        """A prompt of `tokens` tokens that depends on the number."""
        sampling = SamplingParams(max_new_tokens=new, **changes.pop("sampling", {}))
        method = MethodParams.defaults(self.bundle.manifest.method).override(**changes.pop("method", {}))
        ids = [(number * 31 + at * 7) % 40 + 8 for at in range(tokens)]
        fields: dict[str, Any] = {"features": None, "arrived": self.now} | changes
        return Request(number, text_prompt(ids), sampling=sampling, method=method, **fields)

    def add(self, number: int, tokens: int = 8, new: int = 4, **changes: Any) -> Request:
        request = self.request(number, tokens, new, **changes)
        self.scheduler.add(request)
        return request

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if not self.scheduler.busy:
                return
            self.scheduler.step()

    def pages_needed(self, tokens: int, new: int) -> int:
        """The claim of a request that has been prefilled."""
        kept = (self.session.kept(tokens, layer) for layer in range(LAYERS))
        return sum(-(-(count + new - 1) // PAGE_SIZE) for count in kept)

    def worst_case(self, tokens: int, new: int) -> int:
        return LAYERS * -(-(tokens + new - 1) // PAGE_SIZE)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


# --- answers ---


def test_every_stream_gets_the_answer_it_gets_alone(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=5)
    requests = [server.add(number, tokens=3 + number % 11, new=1 + number % 9) for number in range(23)]
    server.run()
    for number, request in enumerate(requests):
        assert server.texts[number] == server.session.answer(request.prompt, 1 + number % 9)
        assert server.ends[number] == "length"
    assert server.pool.pages_used == server.scheduler.pages_reserved == 0
    assert max(server.session.batches) == 5 and min(server.session.batches) == 2, "a lone stream decodes as two rows"


def test_an_end_token_ends_and_can_be_ignored(bundle: Bundle) -> None:
    server = Server(bundle)
    answer = server.session.answer(server.request(0, new=8).prompt, 8)
    server.processor.eos_token_ids = frozenset({answer[2]})
    first = answer.index(answer[2])
    for number, ignore in ((0, False), (31 * 40, True)):  # the same prompt, another number
        server.add(number, new=8, sampling={"ignore_eos": ignore}, stream_interval=3)
    server.run()
    assert server.texts[0] == answer[: first + 1] and server.ends[0] == "stop"
    assert server.texts[31 * 40] == answer and server.ends[31 * 40] == "length"


def test_a_stop_string_ends_a_stream_before_it(bundle: Bundle) -> None:
    server = Server(bundle)
    whole = Server(bundle)
    pieces: list[str] = []
    server.scheduler._emit = lambda sequence, event: pieces.append(event.text)  # type: ignore[union-attr]
    request = whole.add(0, new=12)
    whole.run()
    text = whole.processor.tokenizer.decode(whole.texts[0])
    stop = text.split()[4]
    server.scheduler.add(server.request(0, new=12, sampling={"stop": (stop,)}))
    server.run()
    assert "".join(pieces) == text[: text.index(stop)]
    assert len(request.prompt.input_ids) == 8 and server.pool.pages_used == 0


@pytest.mark.parametrize("interval", [1, 3, 100])
def test_tokens_are_sent_in_intervals_the_first_at_once(bundle: Bundle, interval: int) -> None:
    server, sizes = Server(bundle), []
    server.scheduler._emit = lambda sequence, event: sizes.append(len(event.token_ids))  # type: ignore[union-attr]
    server.add(0, new=11, stream_interval=interval)
    server.run()
    wanted = [1, *[interval] * (10 // interval)]
    assert sizes == (wanted if sum(wanted) == 11 else [*wanted, 11 - sum(wanted)])


# --- the batch ---


def test_running_streams_get_a_token_in_every_step(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=8, max_prefill_tokens=20)
    server.add(0, tokens=10, new=20)
    server.run(3)
    for number in range(1, 6):
        server.add(number, tokens=15, new=3)
    server.run()
    assert server.steps_of[0] == list(range(1, 21))


@pytest.mark.parametrize("budget", [1, 30, 45, 1000])
def test_prefill_between_two_steps_is_bounded(bundle: Bundle, budget: int) -> None:
    server = Server(bundle, max_batch=20, pages=2000, max_prefill_tokens=budget)
    server.add(0, tokens=4, new=30)
    server.run(1)
    rng = random.Random(budget)
    lengths = [rng.choice([3, 10, 15, 30, 44, 60]) for _ in range(12)]
    for number, tokens in enumerate(lengths, start=1):
        server.add(number, tokens=tokens, new=2)
    while server.scheduler.busy:
        before = len(server.session.prefilled)
        server.scheduler.step()
        together = server.session.prefilled[before:]
        assert sum(together) <= budget or len(together) == 1, "a prompt above the budget goes alone"
    assert server.session.prefilled[1:] == lengths, "first come, first served"


def test_the_batch_has_its_limit(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=3, max_prefill_tokens=1000)
    for number in range(10):
        server.add(number, tokens=5, new=6)
    most = 0
    while server.scheduler.busy:
        server.scheduler.step()
        most = max(most, server.scheduler.running)
    assert most == 3 == max(server.session.batches)


def test_priorities_go_first_and_equals_in_order(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=1)
    for number, priority in ((0, 0), (1, 0), (2, 5), (3, -1), (4, 5)):
        server.add(number, priority=priority, tokens=5 + number, new=2)
    server.run()
    assert server.session.prefilled == [7, 9, 5, 6, 8]


# --- admission by pages ---


def test_a_request_waits_until_its_worst_case_fits(bundle: Bundle) -> None:
    tokens, new = 20, 5
    server = Server(bundle, max_prefill_tokens=1000)
    worst, claim = server.worst_case(tokens, new), server.pages_needed(tokens, new)
    server = Server(bundle, pages=claim + worst - 1, max_prefill_tokens=1000)
    server.add(0, tokens, new)
    server.add(1, tokens, new)
    server.run(1)
    assert server.scheduler.running == server.scheduler.waiting == 1
    assert server.scheduler.pages_reserved == claim
    server.run()
    assert server.ends == {0: "length", 1: "length"}
    assert server.steps_of[1][0] == server.steps_of[0][-1], "it enters in the step in which the pages come back"
    roomy = Server(bundle, pages=claim + worst, max_prefill_tokens=1000)
    roomy.add(0, tokens, new)
    roomy.add(1, tokens, new)
    roomy.run(1)
    assert roomy.scheduler.running == 2


def test_nobody_overtakes_one_that_waits_for_pages(bundle: Bundle) -> None:
    server = Server(bundle, pages=60, max_prefill_tokens=1000)
    server.add(0, tokens=60, new=20)
    server.add(1, tokens=90, new=4)  # needs nearly all pages
    server.add(2, tokens=3, new=2)  # would fit at once
    server.run()
    assert server.session.prefilled == [60, 90, 3]


def test_a_request_that_never_fits_is_refused_with_the_numbers(bundle: Bundle) -> None:
    server = Server(bundle, pages=20)
    fits = 20 // LAYERS * PAGE_SIZE  # rows in every layer
    with refusal(InputError, "may need 22 pages of 4 tokens", f"up to {fits} rows", "the KV cache has 20", "ratio_max"):
        server.add(0, tokens=fits, new=2)
    server.add(1, tokens=fits - 1, new=2)
    server.add(2, tokens=fits, new=2, method={"ratio_max": 0.5})
    server.run()
    assert server.ends == {1: "length", 2: "length"}


def test_dense_requests_are_counted_dense(bundle: Bundle) -> None:
    server = Server(bundle)
    server.add(0, tokens=30, new=4, method={"dense": True})
    server.run(1)
    assert server.pool.pages_used == LAYERS * -(-30 // PAGE_SIZE)
    assert server.scheduler.pages_reserved == server.worst_case(30, 4)


@pytest.mark.parametrize(
    ("tokens", "new", "message"), [(513, 1, "the prompt has 513 tokens"), (5, 65, "max_new_tokens: 65 is out of range")]
)
def test_limits_of_the_bundle_are_kept(bundle: Bundle, tokens: int, new: int, message: str) -> None:
    server = Server(bundle, pages=10_000)
    with refusal(InputError, message):
        server.add(0, tokens=tokens, new=new)
    assert not server.scheduler.busy


# --- how requests end ---


def test_time_runs_out_for_those_that_wait_and_those_that_run(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=1)
    server.add(0, new=50, deadline=10.0)
    server.add(1, new=2, deadline=5.0)
    server.add(2, new=2)
    server.run(3)
    server.now = 5.0
    server.run(1)
    assert isinstance(server.ends[1], DeadlineError) and "5.0 s" in str(server.ends[1])
    server.now = 10.5
    server.run()
    assert server.ends[0] == "deadline" and server.texts[0] == server.session.answer(server.request(0).prompt, 4)
    assert server.ends[2] == "length" and server.pool.pages_used == 0


def test_cancelled_requests_leave_at_once(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=1)
    for number in range(3):
        server.add(number, new=20)
    server.run(4)
    assert server.scheduler.cancel(0) and server.scheduler.cancel(2)
    assert server.pool.pages_used == server.scheduler.pages_reserved == 0
    assert server.ends == {0: "cancelled", 2: "cancelled"} and len(server.texts[0]) == 4
    assert not server.scheduler.cancel(0) and not server.scheduler.cancel(7)
    server.run()
    assert server.ends[1] == "length"


def test_a_prefill_that_breaks_ends_only_its_request(bundle: Bundle) -> None:
    server = Server(bundle)
    server.session.fail_prefill_at = 9
    for number, tokens in enumerate((8, 9, 10)):
        server.add(number, tokens=tokens)
    server.run()
    assert server.ends[0] == server.ends[2] == "length"
    assert isinstance(server.ends[1], RuntimeError)
    assert server.pool.pages_used == server.scheduler.pages_reserved == 0


def test_logits_that_are_no_numbers_end_only_their_stream(bundle: Bundle) -> None:
    server = Server(bundle)
    requests = [server.add(number, new=10) for number in range(3)]
    answers = [server.session.answer(request.prompt, 10) for request in requests]
    server.session.poisoned = next(token for token in answers[1] if token not in {*answers[0], *answers[2]})
    server.run()
    assert server.texts[0] == answers[0] and server.texts[2] == answers[2]
    assert isinstance(server.ends[1], ZipvlError) and "unusable logits" in str(server.ends[1])
    assert server.pool.pages_used == 0


def test_a_decode_that_breaks_ends_the_batch_and_not_the_service(bundle: Bundle) -> None:
    server = Server(bundle, max_batch=2)
    for number in range(3):
        server.add(number)
    server.run(1)
    server.session.fail_decode = True
    server.run(1)
    server.session.fail_decode = False
    server.run()
    assert [type(server.ends[number]) for number in (0, 1)] == [RuntimeError, RuntimeError]
    assert server.ends[2] == "length" and server.pool.pages_used == 0


# --- the same trace, the same everything ---


def replay(bundle: Bundle, seed: int, shuffle: random.Random | None) -> dict[str, Any]:
    """A seeded trace of arrivals; `shuffle` reorders those that arrive between the same two steps."""
    rng = random.Random(seed)
    server = Server(bundle, pages=90, max_batch=3, max_prefill_tokens=30)
    arrivals: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for number in range(30):
        asked = {"tokens": rng.randint(1, 40), "new": rng.randint(1, 12), "priority": rng.choice([0, 0, 1])}
        sampling = {"temperature": rng.choice([0.0, 3.0]), "seed": number, "top_p": 0.9}
        arrivals.setdefault(rng.randint(0, 25), []).append((number, asked | {"sampling": sampling}))
    for step in range(26):
        batch = arrivals.get(step, [])
        if shuffle:
            shuffle.shuffle(batch)
        for number, asked in batch:
            server.add(number, **asked)
        server.scheduler.step()
    server.run()
    return {
        "texts": server.texts, "steps": server.scheduler.steps, "high water": server.pool.high_water,
        "order": server.session.prefilled, "token steps": server.steps_of,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_a_trace_replays_whatever_the_order_of_a_batch_of_arrivals(bundle: Bundle, seed: int) -> None:
    first = replay(bundle, seed, None)
    assert len(first["texts"]) == 30
    for other in range(4):
        assert replay(bundle, seed, random.Random(other)) == first


# --- anything in any order ---


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are cancelled, run out of time, and steps are made; the books always balance."""

    bundle: Bundle

    @initialize(pages=st.integers(30, 80), max_batch=st.integers(1, 4), budget=st.integers(1, 60))
    def start(self, pages: int, max_batch: int, budget: int) -> None:
        self.server = Server(self.bundle, pages=pages, max_batch=max_batch, max_prefill_tokens=budget)
        self.added: list[int] = []

    @rule(
        tokens=st.integers(1, 50), new=st.integers(1, 8), priority=st.integers(0, 1),
        time=st.none() | st.integers(1, 5), dense=st.booleans(),
    )  # fmt: skip
    def add(self, tokens: int, new: int, priority: int, time: int | None, dense: bool) -> None:
        number, server = len(self.added), self.server
        deadline = None if time is None else server.now + time
        never = server.worst_case(tokens, new) > server.pages
        try:
            server.add(number, tokens, new, priority=priority, deadline=deadline, method={"dense": dense})
        except InputError:
            assert never
        else:
            assert not never
            self.added.append(number)

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.added))
        ended = number in self.server.ends
        assert self.server.scheduler.cancel(number) is not ended

    @rule(seconds=st.integers(0, 2))
    def step(self, seconds: int) -> None:
        self.server.now += seconds
        self.server.scheduler.step()

    @rule()
    def finish(self) -> None:
        self.server.run()
        assert set(self.server.ends) == set(self.added)
        assert self.server.pool.pages_used == self.server.scheduler.pages_reserved == 0

    @invariant()
    def the_books_balance(self) -> None:
        if not hasattr(self, "server"):
            return
        scheduler, pool = self.server.scheduler, self.server.pool
        running = list(self.server.running.values())
        assert scheduler.running == len(running) <= self.server.max_batch
        assert scheduler.waiting + scheduler.running + len(self.server.ends) == len(self.added)
        needed = sum(-(-int(rows) // PAGE_SIZE) for sequence in running for rows in sequence.cached.rows)
        assert pool.pages_used == needed <= scheduler.pages_reserved <= pool.pages
        owned = [page for sequence in running for blocks in sequence.cached.blocks for page in blocks]
        assert sorted(owned + pool.free) == list(range(pool.pages))
        for sequence in running:
            assert rows_of(sequence) == [
                count + len(sequence.answer.token_ids) - 1 for count in sequence.answer.prompt.counts
            ]


def rows_of(sequence: Sequence) -> Ordered[int]:
    rows: list[int] = sequence.cached.rows.tolist()
    return rows


@pytest.fixture(autouse=True, scope="module")
def machine_bundle(bundle: Bundle) -> None:
    SchedulerMachine.bundle = bundle


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
