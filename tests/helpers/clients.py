"""A client of the engine for tests: collects what its sink gets and waits for the end."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from typing import Any

from PIL import Image

from zipvl_serving.engine import Engine, Ticket
from zipvl_serving.errors import ZipvlError
from zipvl_serving.wire import Chunk, Message, Parameters, WireRequest

PATIENCE_S = 60.0


def png(image: Image.Image) -> bytes:
    """An encoded image file."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def wire(
    text: str | None = "which digit is red ?",
    images: Iterable[Image.Image] = (),
    messages: tuple[Message, ...] | None = None,
    **parameters: Any,
) -> WireRequest:
    """A request as a client sends it."""
    return WireRequest(text, messages, tuple(png(image) for image in images), Parameters.parse(parameters))


class Client:
    """One request and everything that came of it."""

    def __init__(self, engine: Engine, request: WireRequest) -> None:
        self.events: list[Chunk | ZipvlError] = []
        self.changed = threading.Condition()
        self.ticket: Ticket = engine.submit(request, self._take)

    def _take(self, event: Chunk | ZipvlError) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def wait(self, pieces: int) -> None:
        """Until so many events came."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.events) >= pieces or self.ended, PATIENCE_S)

    @property
    def ended(self) -> bool:
        return bool(self.events) and (isinstance(self.events[-1], ZipvlError) or bool(self.events[-1].finish_reason))

    def end(self) -> Chunk | ZipvlError:
        """The last event."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.ended, PATIENCE_S), "the stream did not end"
            return self.events[-1]

    def answer(self) -> Chunk:
        """The last chunk of an answer that ended well."""
        last = self.end()
        if isinstance(last, ZipvlError):
            raise last
        return last

    def error(self) -> ZipvlError:
        last = self.end()
        assert isinstance(last, ZipvlError), last
        return last

    @property
    def chunks(self) -> list[Chunk]:
        return [event for event in self.events if isinstance(event, Chunk)]

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]
