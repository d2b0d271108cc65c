"""Sessions whose tensors are torch's on one device: what they share, whatever runs their graphs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session
from zipvl_serving.sessions.device_index import DeviceIndex
from zipvl_serving.sessions.device_pages import DevicePages, put

Outputs = tuple[torch.Tensor, ...]
"""A graph's outputs in the contract's order."""


class DeviceSession(Session):
    """Pages lie on the device, and a prompt waits for it once, at its end. A subclass runs the graphs."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        super().__init__(bundle)
        self.device = device
        self.dtype: torch.dtype = getattr(torch, bundle.manifest.model.dtype)
        self._no_image = torch.zeros((1, bundle.manifest.model.shape.hidden), dtype=self.dtype, device=device)

    @abstractmethod
    def run_vision(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The vision graph."""

    @abstractmethod
    def run_prefill(self, inputs: Outputs, *, dense: bool) -> Outputs:
        """The prefill graph; `dense` says that ratio_min is 1."""

    @abstractmethod
    def run_decode(self, inputs: DecodeInputs) -> Outputs:
        """The decode graph; outputs may have rows past the batch, and hold until the next step."""

    @torch.inference_mode()
    def vision(self, pixel_values: Array) -> Array:
        """As in the contract, but for bfloat16, which numpy lacks: its features come as float32."""
        with self.room(f"{len(pixel_values)} images"):
            features = self.run_vision(put(pixel_values, self.device))
        rows = features.flatten(0, 1)
        found: Array = (rows.float() if rows.dtype == torch.bfloat16 else rows).cpu().numpy()
        return found

    @torch.inference_mode()
    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        features = self._no_image
        if image_features is not None:
            features = put(image_features, self.device).to(self.dtype)
        settings = [
            torch.tensor([value], dtype=torch.float32).to(self.device, non_blocking=True)
            for value in (inputs.tau, inputs.ratio_min, inputs.ratio_max)
        ]
        arrays = (inputs.input_ids, inputs.position_ids, inputs.probe_positions, inputs.forced)
        ids, *others = (put(array, self.device) for array in arrays)
        with self.room(f"a prompt of {len(inputs.input_ids)} tokens"):
            outputs = self.run_prefill((ids, features, *others, *settings), dense=inputs.ratio_min >= 1)
            logits, counts, *kept = outputs
            on_host: Array = counts.cpu().numpy()  # the one wait: every layer has run
        rows = on_host.tolist()
        index = DeviceIndex(kept[0::3], rows)
        if self.bundle.manifest.method.cache == "full":
            rows = [len(keys) for keys in kept[1::3]]
        # A layer's tensors may have room for every token; what it kept comes first.
        cache = [(keys[:n], values[:n]) for keys, values, n in zip(kept[1::3], kept[2::3], rows, strict=True)]
        return PrefillOutputs(logits.cpu().numpy(), on_host, index, cache)

    @torch.inference_mode()
    def decode(self, inputs: DecodeInputs) -> tuple[Array, torch.Tensor, torch.Tensor]:
        """As the contract says; the new rows hold until the next step, rows past the batch may follow them."""
        batch = len(inputs.input_ids)
        with self.room(f"a batch of {batch}"):
            logits, keys, values = self.run_decode(inputs)
        return logits[:batch].cpu().numpy(), keys, values

    def page_storage(self, pages: int) -> DevicePages:
        limits, shape = self.bundle.manifest.limits, self.bundle.manifest.model.shape
        return DevicePages((pages, limits.page_size, shape.kv_heads, shape.head_dim), self.dtype, self.device)

    @contextmanager
    def room(self, what: str) -> Iterator[None]:
        """ZipvlError, one line, where the device has no memory for what is done inside."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise ZipvlError(
                f"{self.bundle.path}: the GPU has no room for {what} beside weights and KV cache; lower "
                "target.limits.kv_bytes or target.limits.max_input_tokens"
            ) from None
