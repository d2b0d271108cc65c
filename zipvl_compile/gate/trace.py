"""A seeded trace of requests through the real scheduler and engine: steps, tokens and pages, nothing of time."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from zipvl_compile.bench.inputs import make_prompt
from zipvl_serving.errors import ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.runner import Runner
from zipvl_serving.scheduler import Scheduler
from zipvl_serving.sequence import Request, Sequence
from zipvl_serving.wire import Chunk

FORCED_RATIO = 0.37
_REQUESTS = 16
_TOKENS = (24, 480)
_NEW_TOKENS = (4, 9, 17, 32)
_ARRIVALS_PER_STEP = 0.4
MAX_BATCH = 4
_MAX_PREFILL_TOKENS = 512


@dataclass(frozen=True)
class TraceCounts:
    """What a trace came to."""

    steps: int
    tokens: int
    """Emitted, over all requests."""
    page_high_water: int
    pages_left: int
    largest_batch: int
    steps_to_first_token: int
    """Summed over all requests, from their arrival."""


@dataclass(frozen=True)
class _Arrival:
    step: int
    request: Request
    new_tokens: int


def methods(generator: Generator) -> dict[str, MethodParams]:
    """The method's settings by name whose counts of kept tokens follow from the prompt's length."""
    defaults = MethodParams.defaults(generator.bundle.manifest.method)
    return {
        "dense": defaults.override(dense=True),
        "forced": defaults.override(ratio_min=FORCED_RATIO, ratio_max=FORCED_RATIO),
    }


def run_trace(generator: Generator) -> TraceCounts:
    """Let requests of 24 to 479 tokens arrive at seeded steps, dense or at a forced ratio, and run them to their ends.

    Answers go on past the end token, so no count depends on which tokens come. The pool holds half of what a full batch
    of average requests may claim, so admission by pages takes part, and by prefill tokens.
    Raises ZipvlError where a request fails, or where steps go by without a token.
    """
    runner = Runner(generator.session, generator.bundle.manifest)
    arrivals = _arrivals(generator)
    pool = KVPool(generator.session.page_storage(_pages(runner, arrivals)))
    first: dict[int, int] = {}
    emitted: Counter[int] = Counter()

    def take(sequence: Sequence, event: Chunk | Exception) -> None:
        if isinstance(event, Exception):
            raise ZipvlError(f"{generator.bundle.path}: request {sequence.request.number} of the trace failed: {event}")
        first.setdefault(sequence.request.number, step)
        emitted[sequence.request.number] = len(sequence.answer.token_ids)

    scheduler = Scheduler(
        runner,
        pool,
        generator.processor,
        take,
        max_batch=MAX_BATCH,
        max_prefill_tokens=_MAX_PREFILL_TOKENS,
        clock=lambda: 0.0,
    )
    largest, to_come = 0, list(arrivals)
    # A step without a token has nothing to do, which ends with the last arrival.
    enough = arrivals[-1].step + sum(arrival.new_tokens for arrival in arrivals) + 1
    for step in itertools.count():
        if step > enough:
            raise ZipvlError(f"{generator.bundle.path}: the trace goes on after {enough} steps, without tokens")
        while to_come and to_come[0].step <= step:
            scheduler.add(to_come.pop(0).request)
        if not (to_come or scheduler.busy):
            break
        scheduler.step()
        largest = max(largest, scheduler.running)
    return TraceCounts(
        steps=scheduler.steps,
        tokens=emitted.total(),
        page_high_water=pool.high_water,
        pages_left=pool.pages_used,
        largest_batch=largest,
        steps_to_first_token=sum(first[arrival.request.number] - arrival.step for arrival in arrivals),
    )


def _arrivals(generator: Generator) -> list[_Arrival]:
    limits = generator.bundle.manifest.limits
    rng = np.random.default_rng(0)
    steps = np.floor(np.cumsum(rng.exponential(1 / _ARRIVALS_PER_STEP, _REQUESTS))).astype(int)
    settings = list(methods(generator).values())
    arrivals = []
    for number, step in enumerate(steps.tolist()):
        tokens = min(int(rng.integers(*_TOKENS)), limits.max_input_tokens)
        new = min(int(rng.choice(_NEW_TOKENS)), limits.max_new_tokens)
        method = settings[int(rng.integers(len(settings)))]
        prompt = make_prompt(generator, "random", tokens, seed=number)
        sampling = SamplingParams(max_new_tokens=new, ignore_eos=True)
        arrivals.append(_Arrival(step, Request(number, prompt, None, sampling, method, arrived=0.0), new))
    return arrivals


def _pages(runner: Runner, arrivals: list[_Arrival]) -> int:
    size = runner.manifest.limits.page_size
    claims = []
    for arrival in arrivals:
        most_rows = runner.most_rows(arrival.request.prompt, arrival.request.method)
        claims.append(sum(-(-(rows + arrival.new_tokens) // size) for rows in most_rows))
    return max(*claims, sum(claims) * MAX_BATCH // (2 * len(claims)))
