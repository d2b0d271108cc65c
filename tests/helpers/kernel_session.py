"""A torch session whose ops are their GPU kernels, in Triton's interpreter: what a GPU would run, but for the GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zipvl_plugins import ops
from zipvl_serving.bundle import Bundle
from zipvl_serving.kv_pool import KVPool, block_tables
from zipvl_serving.sessions.base import DecodeInputs, PrefillInputs, PrefillOutputs
from zipvl_serving.sessions.torch import TorchSession


def prefill_then_decode(
    bundle: Path, inputs: PrefillInputs, *, kernels: bool
) -> tuple[dict[str, Any], tuple[np.ndarray, ...]]:
    """Prefill a prompt and decode a token after it: the outputs of both in numpy arrays."""
    session = TorchSession(Bundle.open(bundle))
    if kernels:
        bodies = {op: _by_kernels(op) for op in ops.OPS}
        session._prefill, session._decode = (
            program.with_bodies(bodies) for program in (session._prefill, session._decode)
        )
    outputs = session.prefill(inputs, None)
    pool = KVPool(session.page_storage(200))
    tables, context = block_tables([pool.store(outputs.cache)])
    place = np.array([len(inputs.input_ids)])
    step = DecodeInputs(np.array([9]), place, pool.keys, pool.values, tables, context)
    return _in_numpy(outputs), tuple(np.asarray(output) for output in session.decode(step))


def _by_kernels(op: str) -> Callable[..., Any]:
    @functools.wraps(ops.reference(op)._init_fn)
    def body(*arguments: Any) -> Any:
        return ops.run_kernels(op, *arguments)

    return body


def _in_numpy(outputs: PrefillOutputs) -> dict[str, Any]:
    return {
        "logits": outputs.logits,
        "counts": outputs.counts,
        "index": list(outputs.index),
        "cache": [np.asarray(rows) for layer in outputs.cache for rows in layer],
    }
