"""Everything that leaves the model: responses, cancellations seen at the other end, metrics. One thread does it all."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from zipvl_serving.errors import ZipvlError
from zipvl_serving.triton.tensors import chunk_to_tensors, error_code, error_text
from zipvl_serving.wire import Chunk, merge

TICK_S = 0.1
"""Between two looks at what was cancelled, and two flushes of the metrics: these calls are dear in Triton."""

_log = logging.getLogger(__name__)


class Cancellable(Protocol):
    """A ticket of the engine."""

    def cancel(self) -> None: ...


class Reply:
    """The way back to one request: its response sender, and what has not been sent yet."""

    def __init__(self, response_sender: Any) -> None:
        self.response_sender = response_sender
        self.stream = True
        """A response per chunk; otherwise one with the whole answer."""
        self.ticket: Cancellable | None = None
        self.unsent: list[Chunk] = []
        self.cancelled = False


class Sender:
    """Sends what `put` hands over, from any thread; never blocks who calls.

    The sender thread alone touches Triton's response senders. That is more than order: to ask one whether it is
    cancelled after its final response takes the whole server down (a segmentation fault in its
    TRITONBACKEND_ResponseFactoryIsCancelled).
    """

    def __init__(self, pb_utils: Any, flush_metrics: Callable[[], None], *, tick_s: float = TICK_S) -> None:
        self._pb = pb_utils
        self._flush_metrics = flush_metrics
        self._tick_s = tick_s
        self._events: queue.SimpleQueue[tuple[Reply, Chunk | ZipvlError | None] | None] = queue.SimpleQueue()
        self._live: dict[Reply, None] = {}
        """Requests that have had no final response."""
        self._thread = threading.Thread(target=self._run, name="zipvl-sender", daemon=True)
        self._thread.start()

    def open(self, reply: Reply) -> None:
        """From now on the request may be cancelled by its client."""
        self._events.put((reply, None))

    def put(self, reply: Reply, event: Chunk | ZipvlError) -> None:
        """Send a chunk, or the error that ends the request."""
        self._events.put((reply, event))

    def close(self) -> None:
        """Send what is left, flush the metrics, stop."""
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        closing = False
        next_tick = time.monotonic() + self._tick_s
        while not closing:
            batch, closing = self._collect(next_tick)
            for reply, events in batch.items():
                self._send(reply, events)
            if closing or time.monotonic() >= next_tick:
                self._tick()
                next_tick = time.monotonic() + self._tick_s

    def _collect(self, until: float) -> tuple[dict[Reply, list[Chunk | ZipvlError]], bool]:
        """All that waits, by request, as soon as there is something or it is `until`; and whether to stop after it."""
        batch: dict[Reply, list[Chunk | ZipvlError]] = {}
        try:
            item = self._events.get(timeout=max(0.0, until - time.monotonic()))
            while item is not None:
                reply, event = item
                if event is None:
                    self._live[reply] = None
                else:
                    batch.setdefault(reply, []).append(event)
                item = self._events.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _send(self, reply: Reply, events: list[Chunk | ZipvlError]) -> None:
        """Send the events of one request as one response, as far as it may be sent already."""
        if reply not in self._live:
            return
        error = events[-1] if isinstance(events[-1], ZipvlError) else None
        reply.unsent += [event for event in events if isinstance(event, Chunk)]
        final = error is not None or reply.unsent[-1].finish_reason is not None
        if not final and not reply.stream:
            return
        if final:
            del self._live[reply]
        try:
            if error is not None:
                if reply.stream and reply.unsent:
                    self._respond(reply, self._chunk(merge(reply.unsent)), final=False)
                self._respond(reply, self._error(error), final=True)
            else:
                self._respond(reply, self._chunk(merge(reply.unsent)), final=final)
        except Exception:
            _log.exception("a response could not be sent; its request is ended")
            self._live.pop(reply, None)
            _cancel(reply)
        reply.unsent = []

    def _respond(self, reply: Reply, response: Any, *, final: bool) -> None:
        flags = self._pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        reply.response_sender.send(response, flags=flags)

    def _chunk(self, chunk: Chunk) -> Any:
        return self._pb.InferenceResponse(
            [self._pb.Tensor(name, array) for name, array in chunk_to_tensors(chunk).items()]
        )

    def _error(self, error: ZipvlError) -> Any:
        code = getattr(self._pb.TritonError, error_code(error))
        return self._pb.InferenceResponse(error=self._pb.TritonError(error_text(error), code))

    def _tick(self) -> None:
        try:
            for reply in self._live:
                if reply.ticket and not reply.cancelled and reply.response_sender.is_cancelled():
                    reply.cancelled = True
                    _cancel(reply)
            self._flush_metrics()
        except Exception:
            _log.exception("cancellations or metrics were left out once")


def _cancel(reply: Reply) -> None:
    if reply.ticket:
        reply.ticket.cancel()
