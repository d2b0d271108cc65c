"""manifest.json: what a bundle is, where it came from and what every file in it must be."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from zipvl_serving.contract import GraphName, ModelShape

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    """One file of the bundle."""

    sha256: str
    bytes: int


class Model(_Part):
    """The model's numbers and its limits."""

    architecture: str
    shape: ModelShape
    image_token: int
    parameters: int
    """Weights stored in the bundle."""


class Method(_Part):
    """Defaults of the method; what a request may override is said in docs/contract.md."""

    tau: float
    ratio_min: float
    ratio_max: float
    probe_recent: int
    probe_random: int
    seed: int
    cache: Literal["full", "evict"]
    dense_below: int
    """Prompts shorter than this many tokens run dense; `auto` in the recipe is resolved to the measured break-even."""
    dense_layers: int
    force_last: int
    force_text: bool


class Limits(_Part):
    """What the bundle was built for."""

    max_input_tokens: int
    max_batch: int
    max_new_tokens: int
    default_new_tokens: int
    kv_bytes: int
    page_size: int


class Engine(_Part):
    """Who executes the graphs, and the file of each."""

    backend: str
    backend_version: str
    graphs: dict[GraphName, str]
    weights: str


class BreakEven(_Part):
    """From which prompt length on selection pays on the building machine, measured at build."""

    ratio: float
    """The forced ratio of the measurement."""
    tokens: int | None
    """The shortest measured length from which zipvl was never slower than dense; None where it never paid."""
    ratios: dict[int, float]
    """Prompt length -> median time of zipvl / dense."""


class Manifest(_Part):
    """The whole of manifest.json."""

    schema_version: Literal[1]
    name: str
    created: str
    """ISO 8601, UTC."""
    cache_key: str
    model: Model
    method: Method
    limits: Limits
    engine: Engine
    break_even: BreakEven
    recipe: dict[str, Any]
    checkpoint: dict[str, Any]
    tools: dict[str, str]
    """Versions of everything in the chain that made the bundle."""
    timings: dict[str, float]
    """Seconds of each build step."""
    files: dict[str, FileEntry]

    def to_json(self) -> str:
        """The manifest's text, closed by a digest of everything above it."""
        body = self.model_dump(mode="json")
        return json.dumps({**body, "digest": digest(body)}, indent=2) + "\n"


def digest(body: dict[str, Any]) -> str:
    """SHA-256 of a manifest's canonical JSON, without its `digest` key."""
    kept = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
