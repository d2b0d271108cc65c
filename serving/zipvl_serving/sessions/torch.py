"""torch: a bundle's programs in this process, on CUDA where there is one, else on the CPU.

On CUDA ops are their Triton kernels, and decode replays CUDA graphs. Matrix libraries choose a routine by the size of a
batch, so the last bits of a sequence's logits depend on its neighbours, whatever serving.batch_invariant says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from zipvl_plugins import dense as dense_ops
from zipvl_plugins import flash_attention, ops
from zipvl_plugins.trim import TRIM_FROM
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GraphName, graph_spec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import DecodeInputs
from zipvl_serving.sessions.decode_graphs import Bucket, DecodeGraphs, cuda_capture
from zipvl_serving.sessions.device_pages import put
from zipvl_serving.sessions.device_session import DeviceSession, Outputs
from zipvl_serving.sessions.exported_program import Program, load_program
from zipvl_serving.sessions.mapped_weights import load_weights


class TorchSession(DeviceSession):
    """Three exported programs over one copy of the weights, and prefill once more for prompts that run dense."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, spinning: bool = True, prepack: bool = True
    ) -> None:
        """threads bounds torch's on a CPU, in all of this process; spinning is its OpenMP library's affair; nothing is
        packed."""
        super().__init__(bundle, _find_device(bundle))
        if threads is not None:
            torch.set_num_threads(threads)
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            _use_kernels(bundle)
        with self.room("the weights"):
            weights = load_weights(bundle.path / str(bundle.manifest.engine.weights), self.device)
        self._vision = self._load("vision", weights)
        self._prefill = self._load("prefill", weights)
        self._dense_prefill = self._prefill.with_bodies(dense_ops.BODIES)
        evicts = bundle.manifest.method.cache == "evict"
        self._long_prefill = self._prefill.trimming() if evicts else self._prefill
        self._decode = self._load("decode", weights)
        self._steps: Callable[[DecodeInputs], Outputs] = self._captured_steps() if on_cuda else self._step_as_it_is

    def run_vision(self, pixel_values: torch.Tensor) -> torch.Tensor:
        (features,) = self._vision(pixel_values)
        return features

    def run_prefill(self, inputs: Outputs, *, dense: bool) -> Outputs:
        if dense:
            return self._dense_prefill(*inputs)
        long = len(inputs[0]) >= TRIM_FROM
        return (self._long_prefill if long else self._prefill)(*inputs)

    def run_decode(self, inputs: DecodeInputs) -> Outputs:
        return self._steps(inputs)

    def _load(self, graph: GraphName, weights: dict[str, torch.Tensor]) -> Program:
        manifest = self.bundle.manifest
        spec = graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)
        return load_program(self.bundle.graph_path(graph), spec, weights, self.device)

    def _captured_steps(self) -> DecodeGraphs:
        limits = self.bundle.manifest.limits
        step = self._decode
        if flash_attention.reads_pages(limits.page_size, self.dtype):
            step = step.with_bodies({"paged_attention": flash_attention.paged})
        blocks = -(-(limits.max_input_tokens + limits.max_new_tokens) // limits.page_size)
        return DecodeGraphs(step, cuda_capture(), Bucket(limits.max_batch, blocks))

    def _step_as_it_is(self, inputs: DecodeInputs) -> Outputs:
        ids, positions, tables, context = (
            put(array, self.device)
            for array in (inputs.input_ids, inputs.position_ids, inputs.block_tables, inputs.context)
        )
        return self._decode(ids, positions, inputs.key_pages, inputs.value_pages, tables, context)


def _find_device(bundle: Bundle) -> torch.device:
    """CUDA where there is one; ZipvlError where the recipe insists on it and there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)  # which that is, CUDA_VISIBLE_DEVICES says
    if bundle.manifest.recipe.get("target", {}).get("gpu") == "cuda":
        raise ZipvlError(
            f"{bundle.path}: was built with target.gpu cuda, and torch finds no CUDA device here; a bundle built with "
            "target.gpu null runs on a CPU too"
        )
    return torch.device("cpu")


def _use_kernels(bundle: Bundle) -> None:
    if importlib.util.find_spec("triton") is None:
        raise ZipvlError(f"{bundle.path}: needs triton on a GPU; install it: pip install triton")
    from zipvl_plugins.pages.kernel import use_kernels as use_page_kernels

    ops.use_kernels()
    use_page_kernels()
