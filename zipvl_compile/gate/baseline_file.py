"""Committed baselines: read, written whole, and never without a reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zipvl_compile.bench.writer import put_files
from zipvl_compile.gate.errors import BaselineMissingError
from zipvl_serving.errors import InputError

SCHEMA_VERSION: Final = 1
FOLDER = Path("benchmarks") / "baselines"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Update(_Part):
    """Who changed the baseline to what it is now, and why."""

    date: str
    """ISO 8601, UTC."""
    revision: str
    """The git revision of the sources that were measured; `unknown` outside a checkout."""
    reason: Annotated[str, Field(min_length=1)]
    replaced: dict[str, Any]
    """Figures that changed or vanished, with the values they had; new ones with null."""


class BaselineFile(_Part):
    """What every baseline has."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tools: dict[str, str]
    """Versions of what built and ran the bundle."""
    history: list[Update]
    """Oldest first; the last one made the figures of this file."""

    def values(self) -> dict[str, Any]:
        """Each figure's value as the history keeps it."""
        raise NotImplementedError

    def succeeding(self, previous: Self | None, reason: str, revision: str) -> Self:
        """This with the history of `previous` and an entry of its own; InputError where the reason says nothing."""
        check_reason(reason)
        old, new = previous.values() if previous else {}, self.values()
        replaced = {name: old.get(name) for name in sorted({*old, *new}) if previous and old.get(name) != new.get(name)}
        update = Update(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            revision=revision,
            reason=reason.strip(),
            replaced=replaced,
        )
        return self.model_copy(update={"history": [*(previous.history if previous else ()), update]})


File = TypeVar("File", bound=BaselineFile)


def check_reason(reason: str) -> None:
    """InputError where a reason says nothing."""
    if not reason.strip():
        raise InputError("--reason is empty; say why the baseline changes: it is kept in the baseline's history")


def read(path: Path, kind: type[File], make: str) -> File:
    """A baseline from its file. BaselineMissingError names the command `make`; InputError is of a broken file."""
    try:
        return kind.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise BaselineMissingError(f"{path}: there is no such baseline; make one: {make}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; expected a baseline of `gate update`") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}; expected a baseline of `gate update`") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: is not JSON; expected a baseline of `gate update`") from None


def read_if_there(path: Path, kind: type[File]) -> File | None:
    """A baseline, or None where its file does not exist; InputError for a broken one."""
    try:
        return read(path, kind, "")
    except BaselineMissingError:
        return None


def write(path: Path, baseline: BaselineFile) -> None:
    """Replace the file at once; ZipvlError where it cannot be written, and the old one stands."""
    text = json.dumps(baseline.model_dump(mode="json"), indent=1) + "\n"
    put_files(path.parent, {path.name: text.encode()})
