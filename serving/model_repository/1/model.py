"""Triton's entry point to a zipvl-compile bundle; everything is in zipvl_serving.triton.model."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from zipvl_serving.triton.model import ServedModel


class TritonPythonModel:
    """Triton calls these three."""

    def initialize(self, args: dict[str, str]) -> None:
        self._model = ServedModel(pb_utils, args)

    def execute(self, requests: list[Any]) -> None:
        self._model.execute(requests)

    def finalize(self) -> None:
        self._model.finalize()
