"""What a benchmark leaves: one JSON document of a versioned schema, raw samples included."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zipvl_compile.bench.statistics import Estimate, estimate, paired_ratio
from zipvl_compile.bench.workload import Workload, dump
from zipvl_serving.errors import InputError

SCHEMA_VERSION: Final = 1
RESULTS_FILE = "results.json"

Kind = Literal["ttft", "throughput", "serving"]


@dataclass(frozen=True)
class Quantity:
    """A figure's unit and which way it is better."""

    label: str
    unit: str
    better: Literal["lower", "higher"]


QUANTITIES = {
    "ttft_s": Quantity("TTFT", "s", "lower"),
    "itl_s": Quantity("ITL", "s", "lower"),
    "e2e_s": Quantity("end to end", "s", "lower"),
    "prefill_s": Quantity("prefill", "s", "lower"),
    "decode_step_s": Quantity("decode step", "s", "lower"),
    "decode_tokens_per_s": Quantity("decode", "tokens/s", "higher"),
    "tokens_per_s": Quantity("throughput", "tokens/s", "higher"),
    "requests_per_s": Quantity("requests", "1/s", "higher"),
    "goodput_per_s": Quantity("goodput", "requests/s", "higher"),
    "max_batch": Quantity("maximum batch", "sequences", "higher"),
}
"""Every figure that a result may hold, by the name it has there."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(_Part):
    """One mode at one point of the workload."""

    mode: str
    at: dict[str, float | int | str]
    """The point: {"tokens": 4096}, {"concurrency": 4}, ..."""
    samples: dict[str, list[float]]
    """Raw samples by figure, one per round; i-th samples of two modes were taken in the same round and form a pair."""
    figures: dict[str, Estimate] = Field(default_factory=dict)
    """Of each of `samples`."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What is not timed: ratio_per_layer, kv_bytes, accuracy, breakdown, percentiles, ..."""

    @classmethod
    def of(cls, mode: str, at: dict[str, Any], samples: dict[str, list[float]], **facts: Any) -> Cell:
        figures = {name: estimate(values) for name, values in samples.items() if values}
        return cls(mode=mode, at=at, samples=samples, figures=figures, facts=facts)


class Ratio(_Part):
    """One figure of a mode over that of the baseline, pair by pair; above 1 the mode is better."""

    figure: str
    mode: str
    over: str
    at: dict[str, float | int | str]
    gain: Estimate


def gains(cells: Sequence[Cell], baseline: str) -> list[Ratio]:
    """Every figure of every other mode over the baseline's at the same point, pair by pair."""
    found = []
    at_baseline = {_point(cell): cell for cell in cells if cell.mode == baseline}
    for cell in cells:
        base = at_baseline.get(_point(cell))
        if base is None or cell.mode == baseline:
            continue
        for figure, samples in cell.samples.items():
            over = base.samples.get(figure, [])
            if not samples or len(samples) != len(over) or figure not in QUANTITIES:
                continue
            better, worse = (samples, over) if QUANTITIES[figure].better == "higher" else (over, samples)
            if not all(worse):
                continue  # nothing is so many times better than nothing
            gain = paired_ratio(better, worse)
            found.append(Ratio(figure=figure, mode=cell.mode, over=baseline, at=cell.at, gain=gain))
    return found


def _point(cell: Cell) -> tuple[tuple[str, float | int | str], ...]:
    return tuple(sorted(cell.at.items()))


class Target(_Part):
    """What was measured."""

    name: str
    source: str
    """Path of the bundle, or URL of the server."""
    digest: str | None
    """Of the bundle's manifest; None for a server that does not tell."""
    weights: Literal["checkpoint", "random", "unknown"]
    """Figures of random weights are of cost alone: no ratio and no accuracy means anything."""
    description: dict[str, Any]
    """Backend, dtype, shape of the decoder, page size."""


class Results(_Part):
    """The whole of results.json."""

    schema_version: Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    kind: Kind
    name: str
    """The workload's."""
    created: str
    """ISO 8601, UTC."""
    environment: dict[str, Any]
    """The fingerprint: processor, cores, memory, operating system, versions, thread settings, git revision."""
    target: Target
    workload: dict[str, Any]
    """As it was read, every default filled in."""
    baseline: str | None
    """The mode that the others are compared with."""
    cells: list[Cell]
    ratios: list[Ratio]
    notes: list[str] = Field(default_factory=list)
    """What a reader must know to read the figures right."""

    @classmethod
    def of(
        cls,
        workload: Workload,
        target: Target,
        environment: dict[str, Any],
        cells: Sequence[Cell],
        notes: Sequence[str],
    ) -> Results:
        """Results made now: the workload's first mode is the baseline of the gains."""
        baseline = workload.modes[0].name
        return cls(
            kind=workload.kind,
            name=workload.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=environment,
            target=target,
            workload=dump(workload),
            baseline=baseline,
            cells=list(cells),
            ratios=gains(cells, baseline),
            notes=list(notes),
        )

    def to_json(self) -> str:
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"


def read_results(path: Path) -> Results:
    """Results from their file or from the folder that `bench` left; InputError, one line, for anything else."""
    file = path / RESULTS_FILE if path.is_dir() else path
    try:
        body = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected the results of `bench`") from None
    except (ValueError, RecursionError):
        raise InputError(f"{file}: is not JSON; expected the results of `bench`") from None
    version = body.get("schema_version") if isinstance(body, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{file}: schema_version is {version!r}; this program reads {SCHEMA_VERSION}")
    try:
        return Results.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{file}: {place}: {first['msg']}; expected the results of `bench`") from None
