"""From work to seconds: an op takes as long as its operations or its bytes, whichever is more (the roofline)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zipvl_compile.cost.hardware import FLOOR, Device, Utilisation
from zipvl_compile.cost.work import ITEM, Mode, Work, prefill
from zipvl_compile.models.spec import DecoderSpec


@dataclass(frozen=True)
class Prediction:
    """Seconds of a prefill, op by op, of equal names together."""

    ops: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.ops.values())

    def share(self, *ops: str) -> float:
        return sum(self.ops[op] for op in ops) / self.total


def seconds(work: Work, device: Device, utilisation: Utilisation | None = None) -> float:
    """One op on a device, at the device's own utilisation unless another is given; FLOOR is the least time possible."""
    used = utilisation or device.utilisation
    moved = work.bytes * (used.elementwise if work.kind == "elementwise" else 1)
    reading = moved / (device.bandwidth * used.memory)
    peak = device.scalar_rate if work.kind == "search" else device.flops
    computing = work.flops / (peak * getattr(used, work.kind)) if work.flops else 0.0
    return max(computing, reading) + work.kernels * used.kernel_s + work.rounds * used.round_s


def predict(works: Iterable[Work], device: Device, utilisation: Utilisation | None = None) -> Prediction:
    """The ops one after another, as one CUDA stream runs them."""
    ops: dict[str, float] = {}
    for work in works:
        ops[work.op] = ops.get(work.op, 0.0) + seconds(work, device, utilisation)
    return Prediction(ops)


def ttft(
    spec: DecoderSpec,
    device: Device,
    n: int,
    mode: Mode,
    *,
    ratio: float = 1.0,
    probes: int = 128,
    item: int = ITEM,
    score_products: int = 2,
    floor: bool = False,
) -> Prediction:
    """Time to the first token of a prompt that is already embedded: no vision tower, no tokenising, no queue."""
    works = prefill(spec, n, mode, ratio=ratio, probes=probes, item=item, score_products=score_products)
    return predict(works, device, FLOOR if floor else None)
