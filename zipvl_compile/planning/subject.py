"""What a plan knows of a model: its configuration, never its weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path

from zipvl_compile.checkpoint.base import refuse_revision
from zipvl_compile.checkpoint.config import read_config
from zipvl_compile.checkpoint.hub import fetch_config, is_hub_id
from zipvl_compile.models.spec import DecoderSpec
from zipvl_compile.recipe.load import LoadedRecipe
from zipvl_compile.recipe.source import is_dir
from zipvl_serving.errors import InputError

_EXPECTED = "a directory with config.json"
_DECODER = ("model.language_model.", "lm_head.")


@dataclass(frozen=True)
class Subject:
    """The model that is planned for."""

    decoder: DecoderSpec
    decoder_numbers: int
    """Parameters of the decoder; a tied output head counts once."""
    vision_numbers: int
    """Parameters of the vision tower and the projector."""
    tokens_per_image: int


def read_subject(loaded: LoadedRecipe) -> Subject:
    """From config.json of the recipe's model, which is all that is read, and all that is fetched of a hub's model.

    Raises InputError where there is none, or one of a family that cannot be compiled.
    """
    from zipvl_compile.models.registry import family

    model = loaded.recipe.model
    directory = _directory(loaded.model_source, model.revision)
    config, _ = read_config(directory, _EXPECTED)
    cut = family(config, directory).first_layers(model.layers)
    tied = cut.optional_tensors()
    numbers = {name: prod(shape) for name, shape in cut.expected_tensors().items() if name not in tied}
    decoder = sum(count for name, count in numbers.items() if name.startswith(_DECODER))
    return Subject(cut.decoder, decoder, sum(numbers.values()) - decoder, cut.shape().tokens_per_image)


def _directory(source: Path | str, revision: str | None) -> Path:
    """Where config.json lies: a directory wins over a hub id of the same spelling, as in a build."""
    path = Path(source).expanduser()
    if is_dir(path):
        refuse_revision(source, revision)
        return path
    if isinstance(source, str) and is_hub_id(source):
        return fetch_config(source, revision)
    raise InputError(f"checkpoint not found: {str(source)!r}; expected {_EXPECTED}, or a hub id owner/name")
