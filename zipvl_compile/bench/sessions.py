"""Sessions around a session: what a benchmark must see or save without changing what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zipvl_serving.arrays import Array
from zipvl_serving.page_storage import PageStorage
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session


class Around(Session):
    """Hands every call on."""

    def __init__(self, session: Session) -> None:
        super().__init__(session.bundle)
        self._session = session
        self.invariant_rows = session.invariant_rows

    def vision(self, pixel_values: Array) -> Array:
        return self._session.vision(pixel_values)

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        return self._session.prefill(inputs, image_features)

    def decode(self, inputs: DecodeInputs) -> tuple[Array, Any, Any]:
        return self._session.decode(inputs)

    def page_storage(self, pages: int) -> PageStorage:
        return self._session.page_storage(pages)


class Watched(Around):
    """Remembers the last prefill: what went in, and the seconds it took by `clock`."""

    def __init__(self, session: Session, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(session)
        self._clock = clock
        self.prefill_s = 0.0
        self.inputs: PrefillInputs
        self.features: Array | None = None

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        self.inputs, self.features = inputs, image_features
        begun = self._clock()
        outputs = super().prefill(inputs, image_features)
        self.prefill_s = self._clock() - begun
        return outputs


class PrefillOnce(Around):
    """Computes the first prompt and answers every further prefill with the same outputs.

    For a batch of identical requests: each still stores its own copy in pages of its own.
    """

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self._outputs: PrefillOutputs | None = None

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        if self._outputs is None:
            self._outputs = super().prefill(inputs, image_features)
        return self._outputs

    def forget(self) -> None:
        """Free the outputs."""
        self._outputs = None
