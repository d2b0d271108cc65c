"""What kind of machine this is, as far as times depend on it: a pinned baseline is of one kind."""

from __future__ import annotations

import re
from typing import Self

from pydantic import BaseModel, ConfigDict

from zipvl_compile.bundling.cache import processor_name
from zipvl_compile.gate.errors import GateError
from zipvl_serving.machine import usable_cores


class MachineClass(BaseModel):
    """Processor, cores, and who executes the engines.

    Versions are not in it: a class that a new engine runtime renames would have no baseline, and clear its regression.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    cores: int
    """That a process may use."""
    backend: str

    @classmethod
    def here(cls, backend: str) -> Self:
        """The class of this machine, running a backend's engines; GateError where the processor has no name."""
        return cls(processor=processor_model(processor_name()), cores=usable_cores(), backend=backend)

    @property
    def key(self) -> str:
        """A file's name: `amd-epyc-7b13-2-cores-onnxruntime`."""
        said = f"{self.processor} {self.cores} cores {self.backend}"
        return re.sub(r"[^a-z0-9.]+", "-", said.lower()).strip("-")


def processor_model(named: str) -> str:
    """`NAME` of `NAME x CORES`, or of what has no count; GateError where it is empty."""
    name, times, rest = f" {named}".rpartition(" x ")
    model = (name if times else rest).strip()
    if not model:
        raise GateError(
            "this system does not name its processor (Linux on ARM does not): there is no class of machines to keep a "
            "baseline of; gate paired needs none"
        )
    return model
