"""Where a prefill's time goes, in the form of the paper's Table C, from ONNX Runtime's own profile.

The functions of a graph are written out in place, as ONNX Runtime itself would do it, and every node's name begins with
the part that it belongs to: the profile then says for which part a kernel ran.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zipvl_serving.arrays import Array
from zipvl_serving.bundle import Bundle
from zipvl_serving.contract import GraphName
from zipvl_serving.sessions.base import PrefillInputs

if TYPE_CHECKING:
    import onnx_ir as ir

PARTS = ("projections", "probe_scores", "select_tokens", "sparse_attention", "mlp", "rest", "between kernels")
"""projections: Q, K, V and output, with the gathers of T and the scatter. probe_scores: with the probes' own Q. rest:
embedding, norms, RoPE, residuals, the output head. between kernels: the runtime's own time."""
SELECTION = ("probe_scores", "select_tokens")
"""What finds T."""

_OF_OP = {
    "gather_rows": "projections",
    "gather_projection": "projections",
    "projection_scatter": "projections",
    "probe_scores": "probe_scores",
    "select_tokens": "select_tokens",
    "sparse_attention": "sparse_attention",
}
_INNER = "inner"
"""Begins the names of nodes in the body of an If or a Loop, whose own time counts them."""
_RUN = "model_run"
_KERNEL = "_kernel_time"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class Profiled:
    """One prompt's prefill on ONNX Runtime, every run profiled."""

    def __init__(
        self, bundle: Bundle, inputs: PrefillInputs, features: Array | None, *, threads: int | None, spinning: bool
    ) -> None:
        """features float32 [visual, hidden], or None for a prompt without images."""
        import onnxruntime as ort

        from zipvl_serving.sessions.onnxruntime import PROVIDERS, prefill_feed, session_options

        dense = inputs.ratio_min >= 1 and "dense_prefill" in bundle.manifest.engine.graphs
        graph: GraphName = "dense_prefill" if dense else "prefill"
        options = session_options(threads, spinning=spinning, prepack=False)
        options.add_session_config_entry(_WEIGHTS_FOLDER, str(bundle.path))
        options.enable_profiling = True
        self._folder = tempfile.TemporaryDirectory()
        options.profile_file_prefix = str(Path(self._folder.name) / "prefill")
        self._session = ort.InferenceSession(_named_by_part(bundle.graph_path(graph)), options, providers=PROVIDERS)
        self._feed = prefill_feed(bundle, graph, inputs, features)

    def run(self) -> dict[str, float]:
        """Run it once; nothing is known of it before `end`."""
        self._session.run(None, self._feed)
        return {}

    def end(self) -> list[dict[str, float]]:
        """Seconds by part of every run, sums over all layers; it cannot run any more."""
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        del self._session, self._feed
        return _seconds(events)


def _seconds(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Of every run in a profile, in order."""
    runs = sorted((event for event in events if event["name"] == _RUN), key=_begin)
    kernels = [event for event in events if event["cat"] == "Node" and event["name"].endswith(_KERNEL)]
    found = []
    for run in runs:
        seconds = dict.fromkeys(PARTS, 0.0)
        for event in kernels:
            part = event["name"].split("/")[0]
            if part != _INNER and _begin(run) <= _begin(event) < _begin(run) + run["dur"]:
                seconds[part if part in seconds else "rest"] += event["dur"] / 1e6
        seconds["between kernels"] = max(0.0, run["dur"] / 1e6 - sum(seconds.values()))
        found.append(seconds)
    return found


def _begin(event: dict[str, Any]) -> int:
    began: int = event["ts"]
    return began


def _named_by_part(file: Path) -> bytes:
    """The graph in `file`, its nodes renamed; weights stay where they are."""
    import onnx_ir as ir

    from zipvl_compile.graphs.inline import inline_functions

    model = ir.load(file)
    for number, (node, part) in enumerate(list(_parts(model.graph))):
        node.name = f"{part}/{number}"
    for function in model.functions.values():
        for number, node in enumerate(function):
            node.name = f"{_OF_OP[function.name]}/{number}"
    inline_functions(model)
    top = set(model.graph)
    for number, node in enumerate(ir.traversal.RecursiveGraphIterator(model.graph)):
        part = _INNER if node not in top else str(node.name).split("/")[0]
        node.name = f"{part}/{number}"
    return ir.to_proto(model).SerializeToString()


def _parts(graph: ir.Graph) -> Iterator[tuple[ir.Node, str]]:
    """Every node of a prefill graph and its part: by the weight that it reads, or by what it comes from."""
    of: dict[ir.Node, str] = {}
    of_kept_tokens = {
        value.name for node in graph if node.op_type == "gather_projection" for value in node.inputs if value
    }
    for node in graph:
        weight = next((str(value.name) for value in node.inputs if value is not None and value.is_initializer()), "")
        if ".mlp." in weight and node.op_type == "Gemm":
            part = "mlp"
        elif ".self_attn.q_proj" in weight and weight in of_kept_tokens and node.op_type == "Gemm":
            part = "probe_scores"  # of the probes: the Q of T's tokens is an op of its own
        elif ".self_attn." in weight and node.op_type == "Gemm":
            part = "projections"
        else:
            sources = {of.get(made) for value in node.inputs if value is not None and (made := value.producer())}
            part = "mlp" if "mlp, inside" in sources else "rest"
        inside = part == "mlp" and ".down_proj" not in weight
        of[node] = "mlp, inside" if inside else part
        yield node, part
