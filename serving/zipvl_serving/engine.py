"""The embedded engine: requests in from any thread, chunks out, one thread that steps them all."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable

from zipvl_serving.bundle import Bundle
from zipvl_serving.config import ServingConfig
from zipvl_serving.errors import DeadlineError, InputError, OverloadedError, UnavailableError, ZipvlError, internal
from zipvl_serving.intake import Intake
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.metrics import Metrics
from zipvl_serving.prompts.prompt import PromptProcessor
from zipvl_serving.runner import Runner
from zipvl_serving.scheduler import Scheduler
from zipvl_serving.sequence import Request, Sequence
from zipvl_serving.sessions.base import Session, open_as_served
from zipvl_serving.vision.features import Vision
from zipvl_serving.wire import Chunk, WireRequest

Sink = Callable[[Chunk | ZipvlError], None]
"""Takes a request's chunks in order; the last has a finish_reason, or is the error that ended it. Called on the
engine's threads, or on the one that cancels a request nobody has read yet; never twice at once for one request. It must
be quick and must not raise."""

_READER_END_S = 0.5
_log = logging.getLogger(__name__)


class Ticket:
    """A request that the engine has taken."""

    def __init__(
        self, engine: Engine, number: int, wire: WireRequest, sink: Sink, arrived: float, deadline: float | None
    ) -> None:
        self.number = number
        self.wire: WireRequest | None = wire
        """None from when it has been read: image files are large."""
        self.sink = sink
        self.arrived = arrived
        self.deadline = deadline
        self.begun = False
        """Whether a reader has taken it up."""
        self.cancelled = False
        self._engine = engine

    def cancel(self) -> None:
        """End it: its pages go back before the next step, and its sink gets a last chunk (`cancelled`); at once where
        it has not been read yet, and after that where it is being read. From any thread, any number of times."""
        self.cancelled = True
        self._engine._cancel(self)


class Engine:
    """Serves one bundle.

    Threads: `preprocess_threads` of intake read, tokenise and embed; one thread owns scheduler and pool and makes all
    steps. Whoever submits is on neither.
    """

    def __init__(
        self,
        bundle: Bundle,
        config: ServingConfig | None = None,
        *,
        session: Session | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Load the bundle and start; `config` defaults to the manifest's."""
        self.bundle = bundle
        self.config = config or bundle.manifest.serving
        self.metrics = metrics or Metrics()
        session = session or open_as_served(bundle, self.config)
        processor = PromptProcessor(bundle.processor_folder)
        vision = Vision(
            session,
            processor.image_processor,
            cache_bytes=self.config.image_cache_bytes,
            max_pixels=self.config.max_image_pixels,
            metrics=self.metrics,
        )
        self._intake = Intake(bundle, self.config, processor, vision)
        self.scheduler = Scheduler(
            Runner(session, bundle.manifest, batch_invariant=self.config.batch_invariant),
            KVPool.of(bundle.manifest, session),
            processor,
            self._emit,
            max_batch=bundle.manifest.limits.max_batch,
            max_prefill_tokens=self.config.max_prefill_tokens,
            metrics=self.metrics,
        )
        self._numbers = itertools.count()
        self._lock = threading.Condition()
        """Guards the fields below; notified when there is work, and when a request ends."""
        self._tickets: dict[int, Ticket] = {}
        self._timed: dict[int, Ticket] = {}
        """Those not read yet that have a deadline."""
        self._ready: list[Request] = []
        self._cancelled: list[int] = []
        self._closing: str | None = None
        """Why no request is taken any more."""
        self._stop = False
        self._unread: queue.PriorityQueue[tuple[int, int, Ticket | None]] = queue.PriorityQueue()
        self._readers = [
            threading.Thread(target=self._read, name=f"zipvl-intake-{number}", daemon=True)
            for number in range(self.config.preprocess_threads)
        ]
        self._stepper = threading.Thread(target=self._run, name="zipvl-scheduler", daemon=True)
        self._show()
        for thread in (*self._readers, self._stepper):
            thread.start()

    def submit(self, request: WireRequest, sink: Sink) -> Ticket:
        """Take a request and return at once.

        Raises OverloadedError, UnavailableError, and InputError for what can be seen without work; everything else
        that goes wrong reaches the sink.
        """
        try:
            self._intake.check(request)
            with self._lock:
                if self._closing:
                    raise UnavailableError(self._closing)
                waiting = len(self._tickets) - self.scheduler.running
                if waiting >= self.config.max_waiting:
                    raise OverloadedError(
                        f"{waiting} requests are waiting, as many as may (serving.max_waiting); try again later"
                    )
                number = next(self._numbers)
                arrived = time.perf_counter()
                deadline = self._intake.deadline(request, arrived)
                ticket = Ticket(self, number, request, sink, arrived, deadline)
                self._tickets[number] = ticket
                if deadline is not None:
                    self._timed[number] = ticket
                    self._lock.notify_all()
                self.metrics.gauge("requests_waiting", waiting + 1)
        except ZipvlError:
            self.metrics.count("requests_total", label="refused")
            raise
        self._unread.put((-request.parameters.priority, number, ticket))
        return ticket

    @property
    def alive(self) -> bool:
        """Whether the stepping thread runs."""
        return self._stepper.is_alive()

    @property
    def waiting(self) -> int:
        """Requests taken in that are not in the batch."""
        with self._lock:
            return max(0, len(self._tickets) - self.scheduler.running)

    def drain(self, seconds: float) -> bool:
        """Take no more requests and let those taken end; True where all did in time."""
        with self._lock:
            self._closing = self._closing or "the server is stopping: it takes no more requests"
            return self._lock.wait_for(lambda: not self._tickets, seconds)

    def close(self) -> None:
        """End what is left (its sinks get UnavailableError) and stop all threads."""
        with self._lock:
            self._closing = self._closing or "the server has stopped"
            self._stop = True
            self._lock.notify_all()
        for _ in self._readers:
            self._unread.put((0, -1, None))
        self._stepper.join()
        for reader in self._readers:  # one that is deep in an image or a text is left behind: nobody waits for it
            reader.join(_READER_END_S)
        for ticket in list(self._tickets.values()):
            self._finish(ticket, UnavailableError("the server stopped before the answer was complete"))

    # --- intake threads ---

    def _read(self) -> None:
        while True:
            _, _, ticket = self._unread.get()
            if ticket is None or self._stop:
                return
            with self._lock:
                self._timed.pop(ticket.number, None)
                if ticket.number not in self._tickets or ticket.wire is None:
                    continue
                ticket.begun, wire = True, ticket.wire
            ticket.wire = None
            try:
                request = self._intake.prepare(ticket.number, wire, ticket.arrived, ticket.deadline)
            except Exception as error:
                self._finish(ticket, error, "refused" if isinstance(error, InputError) else "failed")
                continue
            finally:
                del wire
            with self._lock:
                if ticket.number in self._tickets:
                    self._ready.append(request)
                    self._lock.notify_all()

    # --- the stepping thread ---

    def _run(self) -> None:
        try:
            while self._take_in():
                self.scheduler.step()
                self._show()
        except BaseException:
            _log.exception("the scheduler has stopped")
            raise
        finally:
            with self._lock:
                self._closing = self._closing or "the engine has stopped; it must be started again"
            self.scheduler.fail_all(UnavailableError("the server stopped before the answer was complete"))
            self._show()
            for ticket in list(self._tickets.values()):
                self._finish(ticket, UnavailableError("the server stopped before the request was read"), "failed")

    def _take_in(self) -> bool:
        """Wait for work and hand it to the scheduler; False when it is time to stop."""
        with self._lock:
            while not (self._stop or self._ready or self._cancelled or self.scheduler.busy or self._late()):
                self._lock.wait(self._patience())
            if self._stop:
                return False
            ready, self._ready = self._ready, []
            cancelled, self._cancelled = self._cancelled, []
            late = self._late()
        for unread in late:
            self._finish(unread, DeadlineError("the request's time was up before it could be read"), "deadline")
        for request in ready:
            ticket = self._tickets.get(request.number)
            if ticket is None:
                continue
            if ticket.cancelled:  # while it was read: the scheduler does not know it
                self._finish(ticket, Chunk("", [], finish_reason="cancelled"), "cancelled")
                continue
            try:
                self.scheduler.add(request)
            except ZipvlError as error:
                self._finish(ticket, error, "refused")
        for number in cancelled:
            self.scheduler.cancel(number)
        return True

    def _late(self) -> list[Ticket]:
        """Those not read yet whose time is up."""
        now = time.perf_counter()
        return [t for t in self._timed.values() if t.deadline is not None and now >= t.deadline]

    def _patience(self) -> float | None:
        """Seconds until the next of those is late."""
        first = min((t.deadline for t in self._timed.values() if t.deadline is not None), default=None)
        return None if first is None else max(0.0, first - time.perf_counter())

    def _cancel(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.number not in self._tickets:
                return
            begun = ticket.begun
            if begun:
                self._cancelled.append(ticket.number)
                self._lock.notify_all()
        if not begun:
            self._finish(ticket, Chunk("", [], finish_reason="cancelled"), "cancelled")

    def _emit(self, sequence: Sequence, event: Chunk | Exception) -> None:
        ticket = self._tickets.get(sequence.request.number)
        if ticket is None:
            return
        if isinstance(event, Exception) or event.finish_reason:
            self._finish(ticket, event)
        else:
            self._deliver(ticket, event)

    def _show(self) -> None:
        pool, scheduler = self.scheduler.pool, self.scheduler
        with self._lock:  # or another thread's newer figure could be overwritten
            self.metrics.gauge("requests_waiting", self.waiting)
        for name, value in (
            ("requests_running", scheduler.running),
            ("kv_pages_capacity", pool.pages),
            ("kv_pages_used", pool.pages_used),
            ("kv_pages_reserved", scheduler.pages_reserved),
        ):
            self.metrics.gauge(name, value)

    # --- both ---

    def _finish(self, ticket: Ticket, event: Chunk | Exception, outcome: str | None = None) -> None:
        """Deliver a request's last event, once; `outcome` counts one that the scheduler never had."""
        with self._lock:
            if self._tickets.pop(ticket.number, None) is None:
                return
            self._timed.pop(ticket.number, None)
            self.metrics.gauge("requests_waiting", self.waiting)
            self._lock.notify_all()
        if outcome:
            self.metrics.count("requests_total", label=outcome)
        self._deliver(ticket, event)

    def _deliver(self, ticket: Ticket, event: Chunk | Exception) -> None:
        if isinstance(event, Exception) and not isinstance(event, ZipvlError):
            _log.error("a request failed", exc_info=event)
            event = internal(event)
        try:
            ticket.sink(event)
        except Exception:
            _log.exception("a sink raised; its request is ended")
            ticket.cancel()
