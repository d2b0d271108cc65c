"""One request at a time, in the caller's own thread: the scheduler with a batch of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from PIL import Image

from zipvl_serving.bundle import Bundle
from zipvl_serving.kv_pool import KVPool
from zipvl_serving.method import MethodParams
from zipvl_serving.output.sampling import SamplingParams
from zipvl_serving.prompts.prompt import EncodedPrompt, PromptProcessor
from zipvl_serving.runner import PromptResult, Runner
from zipvl_serving.scheduler import Scheduler
from zipvl_serving.sequence import Generation, Request, check_prompt
from zipvl_serving.sequence import Sequence as Running
from zipvl_serving.sessions.base import PrefillOutputs, Session, open_session
from zipvl_serving.vision.features import embed_images
from zipvl_serving.wire import Chunk


class Generator:
    """Answers one prompt at a time from a bundle."""

    def __init__(self, bundle: Bundle, session: Session | None = None) -> None:
        self.bundle = bundle
        self.session = session or open_session(bundle)
        self.processor = PromptProcessor(bundle.processor_folder)
        self._runner = Runner(self.session, bundle.manifest, batch_invariant=bundle.manifest.serving.batch_invariant)
        self._pool = KVPool.of(bundle.manifest, self.session)

    def prepare(self, text: str, images: Sequence[Image.Image], *, raw: bool = False) -> EncodedPrompt:
        """Encode a prompt; InputError where it is too long for the bundle."""
        prompt = self.processor.prepare(text, images, raw)
        check_prompt(prompt, self.bundle.manifest.limits)
        return prompt

    def prefill(self, prompt: EncodedPrompt, params: MethodParams | None = None) -> tuple[PromptResult, PrefillOutputs]:
        """Run vision and prefill."""
        return self._runner.prefill(prompt, embed_images(self.session, prompt.pixel_values), self._params(params))

    def stream(
        self, prompt: EncodedPrompt, sampling: SamplingParams, params: MethodParams | None = None
    ) -> Iterator[tuple[str, Generation]]:
        """Generate; yields (text delta, the answer so far) for every token, the last with a finish_reason.

        The prompt's pages go back to the pool however the iteration ends.
        """
        arrived = time.perf_counter()
        events: list[tuple[Running, Chunk | Exception]] = []
        scheduler = Scheduler(
            self._runner, self._pool, self.processor, lambda *event: events.append(event), max_batch=1
        )
        features = embed_images(self.session, prompt.pixel_values)
        scheduler.add(Request(0, prompt, features, sampling, self._params(params), arrived))
        try:
            while scheduler.busy:
                scheduler.step()
                for sequence, event in events:
                    if isinstance(event, Exception):
                        raise event
                    yield event.text, sequence.answer
                events.clear()
        finally:
            scheduler.cancel(0)

    def answer(self, prompt: EncodedPrompt, sampling: SamplingParams, params: MethodParams | None = None) -> Generation:
        """Generate to the end."""
        *_, (_, last) = self.stream(prompt, sampling, params)
        return last

    def _params(self, params: MethodParams | None) -> MethodParams:
        return params or MethodParams.defaults(self.bundle.manifest.method)
