"""ONNX Runtime on CPU: the graphs as exported; one mapping of the weights for all, and a packed copy for decode."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

# Read when the library is loaded; without it a database of events appears in the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GraphName, GraphSpec, graph_spec
from zipvl_serving.errors import ZipvlError
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs, Session

_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "bool": "tensor(bool)",
}


PROVIDERS = ["CPUExecutionProvider"]


def session_options(threads: int | None, *, spinning: bool, prepack: bool) -> ort.SessionOptions:
    """How a graph is opened."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    # Prepacking copies every weight per session; without it sessions read one mapped file.
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    return options


def _open_graph(file: Path, threads: int | None, *, spinning: bool, prepack: bool) -> ort.InferenceSession:
    """Open one graph on CPU with its weights mapped; ZipvlError, one line, where ONNX Runtime refuses it."""
    options = session_options(threads, spinning=spinning, prepack=prepack)
    try:
        return ort.InferenceSession(str(file), options, providers=PROVIDERS)
    except Exception as error:  # ONNX Runtime raises its own bare types
        raise ZipvlError(f"{file}: ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from None


def prefill_feed(bundle: Bundle, graph: GraphName, inputs: PrefillInputs, features: Array | None) -> dict[str, Array]:
    """A prompt as the inputs of `prefill` or `dense_prefill`, by name; features [visual, hidden] or None."""
    model = bundle.manifest.model
    image = np.zeros((1, model.shape.hidden), dtype=model.dtype) if features is None else features
    given = vars(inputs) | {"image_features": image}
    return {
        tensor.name: np.atleast_1d(np.asarray(given[tensor.name], dtype=tensor.dtype))
        for tensor in _spec(bundle, graph).inputs
    }


def _spec(bundle: Bundle, graph: GraphName) -> GraphSpec:
    manifest = bundle.manifest
    return graph_spec(graph, manifest.model.shape, manifest.limits.page_size, manifest.model.dtype)


class OnnxRuntimeSession(Session):
    """The inference sessions of one bundle."""

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, spinning: bool = True, prepack: bool = True
    ) -> None:
        """prepack is for decode: its few rows are multiplied twice as fast by packed weights, and one row in the same
        order of additions as many. Prompts have rows enough to pack weights as they go."""
        super().__init__(bundle)
        self.invariant_rows = 1 if prepack else 2
        self._graphs = {
            graph: self._load(graph, threads, spinning=spinning, prepack=prepack and graph == "decode")
            for graph in bundle.manifest.engine.graphs
        }

    def _load(self, graph: GraphName, threads: int | None, *, spinning: bool, prepack: bool) -> ort.InferenceSession:
        session = _open_graph(self.bundle.graph_path(graph), threads, spinning=spinning, prepack=prepack)
        self._check(graph, session)
        return session

    def _check(self, graph: GraphName, session: ort.InferenceSession) -> None:
        spec = _spec(self.bundle, graph)
        wanted = [(t.name, _TYPES[t.dtype], list(t.shape)) for t in (*spec.inputs, *spec.outputs)]
        found = [(t.name, t.type, list(t.shape)) for t in (*session.get_inputs(), *session.get_outputs())]
        for want, have in zip(wanted, found, strict=False):
            if want != have:
                raise ZipvlError(f"{self.bundle.graph_path(graph)}: breaks the contract: has {have}, expected {want}")
        if len(wanted) != len(found):
            raise ZipvlError(f"{self.bundle.graph_path(graph)}: breaks the contract: {len(found)} tensors")

    def vision(self, pixel_values: Array) -> Array:
        (features,) = self._graphs["vision"].run(None, {"pixel_values": pixel_values})
        flat: Array = features.reshape(-1, features.shape[-1])
        return flat

    def prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        if inputs.ratio_min >= 1 and "dense_prefill" in self._graphs:
            return self._dense_prefill(inputs, image_features)
        logits, counts, *kept = self._graphs["prefill"].run(
            None, prefill_feed(self.bundle, "prefill", inputs, image_features)
        )
        index = [tokens[:count] for tokens, count in zip(kept[0::3], counts, strict=True)]
        return PrefillOutputs(logits, counts, index, list(zip(kept[1::3], kept[2::3], strict=True)))

    def _dense_prefill(self, inputs: PrefillInputs, image_features: Array | None) -> PrefillOutputs:
        feed = prefill_feed(self.bundle, "dense_prefill", inputs, image_features)
        logits, *kept = self._graphs["dense_prefill"].run(None, feed)
        cache = list(zip(kept[0::2], kept[1::2], strict=True))
        tokens = len(inputs.input_ids)
        everything = np.arange(tokens, dtype=np.int32)
        return PrefillOutputs(logits, np.full(len(cache), tokens, np.int32), [everything] * len(cache), cache)

    def decode(self, inputs: DecodeInputs) -> tuple[Array, Array, Array]:
        logits, new_keys, new_values = self._graphs["decode"].run(None, vars(inputs))
        return logits, new_keys, new_values
