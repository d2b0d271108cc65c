"""manifest.json: what a bundle is, where it came from and what every file in it must be."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from zipvl_serving.backends import BACKENDS
from zipvl_serving.config import ServingConfig
from zipvl_serving.contract import GRAPHS, Dtype, GraphName, ModelShape
from zipvl_serving.errors import nearest

SCHEMA_VERSION: Final = 4
MANIFEST_FILE = "manifest.json"


Share = Annotated[float, Field(ge=0, le=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file of the bundle."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Natural


class Model(_Part):
    """The model's numbers and its limits."""

    architecture: str
    shape: ModelShape
    dtype: Dtype
    """Of weights and activations."""
    image_token: int
    parameters: Natural
    """Weights stored in the bundle."""

    @field_validator("shape")
    @classmethod
    def _positive(cls, shape: ModelShape) -> ModelShape:
        for name, size in asdict(shape).items():
            if size < 1:
                raise ValueError(f"{name} is {size}; must be >= 1")
        return shape


class Method(_Part):
    """Defaults of the method; what a request may override is said in docs/contract.md."""

    tau: Annotated[float, Field(gt=0, le=1)]
    ratio_min: Share
    ratio_max: Share
    probe_recent: Positive
    probe_random: Natural
    seed: Natural
    cache: Literal["full", "evict"]
    dense_below: Natural
    """Prompts shorter than this many tokens run dense; `auto` in the recipe is resolved to the measured break-even."""
    dense_layers: Natural
    force_last: Positive
    force_text: bool


class Limits(_Part):
    """What the bundle was built for."""

    max_input_tokens: Positive
    max_batch: Positive
    max_new_tokens: Positive
    default_new_tokens: Positive
    kv_bytes: Positive
    page_size: Positive


class Engine(_Part):
    """Who executes the graphs, and the file of each."""

    backend: str
    backend_version: str
    gpu: str | None
    """The compute capability that the engines were compiled for, such as SM80; None where they run on any."""
    graphs: dict[GraphName, str]
    weights: str | None
    """The weights file; None where the engines hold their weights."""
    reports: dict[GraphName, dict[str, Any]]
    """What the backend says of each engine it built: bytes, seconds, layers; empty where it has nothing to say."""

    @field_validator("backend")
    @classmethod
    def _known(cls, backend: str) -> str:
        """Before anything is said of installing it."""
        if backend not in BACKENDS:
            raise ValueError(f"no session for {backend!r}; {nearest(backend, BACKENDS)}")
        return backend

    @field_validator("graphs")
    @classmethod
    def _complete(cls, graphs: dict[GraphName, str]) -> dict[GraphName, str]:
        if not set(GRAPHS) <= set(graphs):
            raise ValueError(f"names {', '.join(graphs) or 'no graph'}; must name {', '.join(GRAPHS)}")
        return graphs


class BreakEven(_Part):
    """From which prompt length on selection pays on the building machine, measured at build.

    `ratios` is empty where the engines could not run there.
    """

    ratio: float
    """The forced ratio of the measurement."""
    tokens: int | None
    """The shortest measured length from which zipvl was never slower than dense; None where it never paid."""
    ratios: dict[int, float]
    """Prompt length -> median time of zipvl / dense."""


class Manifest(_Part):
    """The whole of manifest.json."""

    schema_version: Literal[4]
    name: str
    created: str
    """ISO 8601, UTC."""
    cache_key: str
    model: Model
    method: Method
    limits: Limits
    serving: ServingConfig
    engine: Engine
    break_even: BreakEven
    recipe: dict[str, Any]
    checkpoint: dict[str, Any]
    tools: dict[str, str]
    """Versions of everything in the chain that made the bundle."""
    timings: dict[str, float]
    """Seconds of each build step."""
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _self_contained(self) -> Manifest:
        """Every file lies inside the bundle, and whatever is loaded is a file whose hash is checked."""
        for name in self.files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.as_posix() != name:
                raise ValueError(f"file name {name!r} does not stay inside the bundle")
        for loaded in (*self.engine.graphs.values(), self.engine.weights):
            if self.files and loaded is not None and loaded not in self.files:
                raise ValueError(f"{loaded!r} is loaded but not listed among the files")
        return self

    def to_json(self) -> str:
        """The manifest's text, closed by a digest of everything above it."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "digest": digest(body)}, indent=2) + "\n"


def digest(body: dict[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON, without its `digest` key."""
    kept = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
