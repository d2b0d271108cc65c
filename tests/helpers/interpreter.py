"""Kernels in Triton's interpreter, on CPU tensors, in one worker process per test process.

Triton decides when it is imported whether it interprets or compiles, so the ahead-of-time compiler has this process and
the interpreter has its own. There torch.empty gives NaN (integers: the largest), so that what a kernel leaves unwritten
shows in its results, and in those of a later kernel that reads it. A kernel that touches memory outside the tensors of
its launch ends in InterpreterError.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import Any

from zipvl_plugins import ops
from zipvl_plugins.gpu.launch import Stage, Tuning


def interpret(op: str, *arguments: Any, tuning: int = 0, **named: Any) -> Any:
    """The op by its kernels: arguments and results as the reference's.

    `tuning` counts the tunings of each stage, best first; a stage that has fewer starts over.
    """
    return interpret_call(_run_kernels, op, arguments, named, tuning)


def interpret_every_tuning(op: str, *arguments: Any, **named: Any) -> list[Any]:
    """The op's results with the stages' first tunings, their second, and so on until every tuning has run."""
    return interpret_call(_run_every_tuning, op, arguments, named)


def interpret_call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """function(*arguments, **named) in the worker; a function of a module, so that pickle finds it there."""
    # Plain pickle copies tensors; the executor's own would share their memory between the processes.
    call = pickle.dumps((function, arguments, named))
    try:
        return pickle.loads(_worker().submit(_call, call).result())
    except BrokenExecutor:  # the worker died: the next call has a new one
        _worker.cache_clear()
        raise


@functools.cache
def _worker() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), initializer=_start)


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True

    from helpers.bounds import check_every_access

    check_every_access()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(call: bytes) -> bytes:
    function, arguments, named = pickle.loads(call)
    return pickle.dumps(function(*arguments, **named))


class Nth:
    """Choose every stage's nth tuning, and see how many there are."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.most = 0

    def __call__(self, stage: Stage, tunings: Sequence[Tuning]) -> Tuning:
        self.most = max(self.most, len(tunings))
        return tunings[self.n % len(tunings)]


def _run_kernels(op: str, arguments: tuple[Any, ...], named: dict[str, Any], tuning: int) -> Any:
    return ops.run_kernels(op, *arguments, choose=Nth(tuning), **named)


def _run_every_tuning(op: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
    results: list[Any] = []
    most = 1
    while len(results) < most:
        choose = Nth(len(results))
        results.append(ops.run_kernels(op, *arguments, choose=choose, **named))
        most = choose.most
    return results
