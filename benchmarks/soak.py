"""Many streams of mixed lengths for a while: every one ends, answers equal the offline ones, nothing leaks.

    python benchmarks/soak.py BUNDLE [--streams 64] [--seconds 60] [--out FILE]

Each of the streams asks one question after another about 1 to 32 frames (short and long prompts), at tau .975 or .9,
dense, or with a ratio ceiling of .37. Greedy answers are compared with those of the offline Generator, token for token.
After every step the pages in use are compared with the sum over streams and layers of ceil(rows / page), where the rows
of a layer are its own count and the tokens generated since.
"""

from __future__ import annotations

import argparse
import io
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from output import hand_over
from PIL import Image

from zipvl_serving.bundle import Bundle
from zipvl_serving.engine import Engine
from zipvl_serving.errors import ZipvlError
from zipvl_serving.generator import Generator
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.sessions.base import open_session
from zipvl_serving.vision.images import load_image
from zipvl_serving.wire import Chunk, Parameters, WireRequest

METHODS: dict[str, dict[str, Any]] = {
    "tau .975": {"tau": 0.975},
    "tau .9": {"tau": 0.9},
    "ceiling .37": {"ratio_max": 0.37},
    "full": {"dense": True},
}
QUESTIONS = ("which digit is red ?", "how many blue digits ?", "which digit is at row 2 column 3 ?")


@dataclass
class Case:
    """One request, and what the offline Generator answers."""

    method: str
    request: WireRequest
    expected: list[int]


@dataclass
class Answer:
    """What one request's sink got."""

    tokens: list[int] = field(default_factory=list)
    error: ZipvlError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def take(self, event: Chunk | ZipvlError) -> None:
        if isinstance(event, ZipvlError):
            self.error = event
            self.ended.set()
            return
        self.tokens += event.token_ids
        if event.finish_reason:
            self.ended.set()


@dataclass
class Books:
    """Compares the pool with the rule after every step, from inside the stepping thread."""

    engine: Engine
    checks: int = 0
    wrong: int = 0
    peak: Counter[str] = field(default_factory=Counter)

    def install(self) -> None:
        scheduler, step = self.engine.scheduler, self.engine.scheduler.step

        def checked() -> None:
            step()
            pool = scheduler.pool
            needed = sum(
                -(-(count + len(s.answer.token_ids) - 1) // pool.page_size)
                for s in scheduler._running
                for count in s.answer.prompt.counts
            )
            self.checks += 1
            self.wrong += pool.pages_used != needed
            self.peak["pages"] = max(self.peak["pages"], pool.pages_used)
            self.peak["running"] = max(self.peak["running"], scheduler.running)

        scheduler.step = checked  # type: ignore[method-assign]


def frames(count: int, rng: np.random.Generator) -> tuple[bytes, ...]:
    """Image files of the demo's size."""
    files = []
    for _ in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(stream, "PNG")
        files.append(stream.getvalue())
    return tuple(files)


def make_cases(generator: Generator, count: int) -> list[Case]:
    rng, pick = np.random.default_rng(0), random.Random(0)
    defaults = MethodParams.defaults(generator.bundle.manifest.method)
    cases = []
    limits, per_image = generator.bundle.manifest.limits, generator.bundle.manifest.model.shape.tokens_per_image
    lengths = [count for count in (1, 1, 2, 4, 8, 16, 32) if (count + 1) * per_image <= limits.max_input_tokens]
    for number in range(count):
        name = list(METHODS)[number % len(METHODS)]
        images = frames(pick.choice(lengths), rng)
        new = min(pick.choice([4, 16, 48, 96]), limits.max_new_tokens)
        text = pick.choice(QUESTIONS)
        parameters = Parameters(max_tokens=new, ignore_eos=True, **METHODS[name])
        prompt = generator.prepare(text, [load_image(image) for image in images])
        sampling = SamplingParams(max_new_tokens=new, ignore_eos=True)
        answer = generator.answer(prompt, sampling, defaults.override(**METHODS[name]))
        cases.append(Case(name, WireRequest(text, None, images, parameters), answer.token_ids))
    return cases


def pages_by_method(generator: Generator) -> dict[str, dict[str, Any]]:
    """The longest prompt's pages after prefill under each method, beside what its counts ask for."""
    limits, shape = generator.bundle.manifest.limits, generator.bundle.manifest.model.shape
    count = min(32, limits.max_input_tokens // shape.tokens_per_image - 1)
    prompt = generator.prepare(QUESTIONS[0], [load_image(image) for image in frames(count, np.random.default_rng(1))])
    page = 2 * 4 * limits.page_size * shape.kv_heads * shape.head_dim
    table = {}
    for name, settings in METHODS.items():
        params = MethodParams.defaults(generator.bundle.manifest.method).override(**settings)
        answer = generator.answer(prompt, SamplingParams(max_new_tokens=1), params)
        table[name] = {
            "prompt_tokens": answer.prompt.tokens,
            "kept_per_layer": answer.prompt.counts,
            "pages": answer.kv_bytes // page,
            "sum_of_ceil": sum(-(-kept // limits.page_size) for kept in answer.prompt.counts),
        }
    return table


def soak(engine: Engine, cases: list[Case], streams: int, seconds: float) -> dict[str, Any]:
    """Keep `streams` requests in flight until time is up, then let them end."""
    tally: Counter[str] = Counter()
    lock, until = threading.Lock(), time.perf_counter() + seconds
    process, memory = psutil.Process(), []

    def client(number: int) -> None:
        pick = random.Random(number)
        while time.perf_counter() < until:
            case, answer = pick.choice(cases), Answer()
            try:
                engine.submit(case.request, answer.take)
            except ZipvlError as error:
                answer.take(error)
            finished = answer.ended.wait(120)
            with lock:
                tally["hung" if not finished else "failed" if answer.error else "ended"] += 1
                tally["tokens"] += len(answer.tokens)
                if finished and not answer.error:
                    tally["equal" if answer.tokens == case.expected else "different"] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(streams)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        memory.append(process.memory_info().rss)
        time.sleep(0.5)
    for thread in threads:
        thread.join()
    third = len(memory) // 3
    return {
        **tally,
        "seconds": round(time.perf_counter() - begun, 1),
        "tokens_per_s": round(tally["tokens"] / (time.perf_counter() - begun), 1),
        "rss_mib_first_third": round(max(memory[:third]) / 2**20, 1),
        "rss_mib_last_third": round(max(memory[-third:]) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    session = open_session(bundle)
    offline = Generator(bundle, session)
    cases = make_cases(offline, options.cases)
    engine = Engine(bundle, session=session)
    books = Books(engine)
    books.install()
    result = soak(engine, cases, options.streams, options.seconds)
    engine.drain(60)
    result |= {
        "streams": options.streams,
        "steps": engine.scheduler.steps,
        "steps_where_pages_were_exact": books.checks - books.wrong,
        "steps_where_pages_were_wrong": books.wrong,
        "peak_pages": books.peak["pages"],
        "peak_running": books.peak["running"],
        "pages_left": engine.scheduler.pool.pages_used,
        "pages_of_one_long_prompt": pages_by_method(offline),
    }
    engine.close()
    hand_over(result, options.out)


if __name__ == "__main__":
    main()
