"""What kind of machine this is, as far as times depend on it: a pinned baseline is of one kind."""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, ConfigDict

from zipvl_compile.bundling.cache import processor_name
from zipvl_serving.machine import usable_cores
from zipvl_serving.manifest import Manifest


class MachineClass(BaseModel):
    """Processor, cores, and who executes the engines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    cores: int
    """That a process may use."""
    backend: str
    backend_version: str
    """Of the engine runtime that built, and runs, the bundle."""

    @classmethod
    def here(cls, manifest: Manifest) -> Self:
        """The class of this machine, running this bundle."""
        engine = manifest.engine
        return cls(
            processor=_processor_model(),
            cores=usable_cores(),
            backend=engine.backend,
            backend_version=engine.backend_version,
        )

    @property
    def key(self) -> str:
        """A file's name: `amd-epyc-7b13-2-cores-onnxruntime-1.31.1`."""
        said = f"{self.processor} {self.cores} cores {self.backend} {self.backend_version}"
        return re.sub(r"[^a-z0-9.]+", "-", said.lower()).strip("-")


def _processor_model() -> str:
    """The processor's name without a count of cores."""
    return processor_name().rpartition(" x ")[0] or "unknown processor"
