"""What a server is pointed at: a bundle, a model repository, or one model of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from zipvl_serving.errors import InputError
from zipvl_serving.triton.repository import SETTING_PREFIX, find_bundle, is_model, is_repository

_CONFIG = "config.pbtxt"
_SETTING = re.compile(
    rf'key\s*:\s*"{re.escape(SETTING_PREFIX)}(\w+)"\s*,?\s*value\s*:?\s*\{{\s*string_value\s*:\s*"([^"\\]*)"'
)


@dataclass(frozen=True)
class Source:
    """A bundle, and what is packaged around it.

    model: the model's directory in its repository, None for a bare bundle. settings: what it was packaged with.
    """

    bundle: Path
    model: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)


def find_source(path: Path) -> Source:
    """InputError for a repository of several models and for settings that cannot be read; a path that is neither
    bundle nor repository is left for whoever opens the bundle."""
    if not (is_model(path) or is_repository(path)):
        return Source(path)
    bundle = find_bundle(path)
    model = bundle.parents[1]
    return Source(bundle, model, _read_settings(model / _CONFIG))


def _read_settings(config: Path) -> dict[str, str]:
    """The settings among the model's parameters."""
    text = config.read_text(encoding="utf-8")
    settings = dict(_SETTING.findall(text))
    if len(settings) != text.count(f'"{SETTING_PREFIX}'):
        raise InputError(f"{config}: its zipvl settings cannot be read; package the bundle again")
    return settings
