"""Triton model repositories that hold bundles.

REPO/<model>/config.pbtxt
             1/model.py
               bundle/     the bundle, whole and unchanged
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from zipvl_serving.bundle import Bundle
from zipvl_serving.errors import InputError
from zipvl_serving.manifest import MANIFEST_FILE
from zipvl_serving.triton.tensors import INPUTS, OUTPUTS

VERSION = "1"
BUNDLE_FOLDER = "bundle"
SETTING_PREFIX = "zipvl."
"""Of the model's parameters that override its ServingConfig."""

_CONFIG = "config.pbtxt"
_MODEL = f"{VERSION}/model.py"
_MARK = "# Written by zipvl-compile"
"""How a config.pbtxt of ours starts."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write_repository(bundle: Bundle, out: Path, settings: Mapping[str, str], *, link: bool = False) -> Path:
    """Make `out`/<the bundle's name>, which must not be there yet, and return it. As `write_model`."""
    model = out / model_name(bundle)
    model.mkdir(parents=True)
    write_model(bundle, model, settings, link=link)
    return model


def write_model(bundle: Bundle, folder: Path, settings: Mapping[str, str], *, link: bool = False) -> None:
    """Fill an empty directory with one model; `settings` override the bundle's ServingConfig.

    The bundle's files are hard links where the file system can, else copies; with `link`, for a repository that lives
    no longer than the bundle, its directory is a symbolic link. Raises InputError for a wrong setting, before anything
    is written.
    """
    config = _render_config(bundle, settings)
    version = folder / VERSION
    version.mkdir()
    (folder / _CONFIG).write_text(config, encoding="utf-8")
    shutil.copyfile(templates_folder() / _MODEL, folder / _MODEL)
    if link:
        (version / BUNDLE_FOLDER).symlink_to(bundle.path.resolve(), target_is_directory=True)
        return
    for name in (*bundle.manifest.files, MANIFEST_FILE):
        target = version / BUNDLE_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(bundle.path / name, target)


def model_name(bundle: Bundle) -> str:
    """The name that the bundle is served under; InputError where it can be none."""
    name = bundle.manifest.name
    if not _NAME.fullmatch(name):
        raise InputError(f"{bundle.path}: {name!r} can be no model's name; valid: letters, digits, '.', '_', '-'")
    return name


def models(repository: Path) -> dict[str, Path]:
    """The bundle of each model of a repository of ours, by name, sorted; hidden entries are left out.

    Raises InputError where there is no model, or where something else is.
    """
    if not repository.is_dir():
        raise InputError(f"{repository}: not a model repository: it {_state(repository)}")
    found = {}
    for entry in sorted(repository.iterdir()):
        if entry.name.startswith("."):
            continue
        if not is_model(entry):
            raise InputError(f"{repository}: not a repository of zipvl-compile: {entry.name} is no model of it")
        found[entry.name] = entry / VERSION / BUNDLE_FOLDER
    if not found:
        raise InputError(f"{repository}: holds no model; expected what `zipvl-compile package` leaves")
    return found


def find_bundle(repository: Path) -> Path:
    """The one bundle of a repository, or of a model's directory in one; InputError where there are none or several."""
    if is_model(repository):
        return repository / VERSION / BUNDLE_FOLDER
    found = models(repository)
    if len(found) > 1:
        listing = ", ".join(str(repository / name) for name in found)
        raise InputError(f"{repository}: holds several models; name one: {listing}")
    return next(iter(found.values()))


def is_repository(path: Path) -> bool:
    """Whether a model of ours is in it."""
    return path.is_dir() and any(is_model(entry) for entry in path.iterdir())


def is_model(folder: Path) -> bool:
    """Whether it is a model's directory that `write_repository` made."""
    try:
        with (folder / _CONFIG).open(encoding="utf-8") as config:
            return config.readline().startswith(_MARK) and (folder / VERSION / BUNDLE_FOLDER / MANIFEST_FILE).is_file()
    except (OSError, UnicodeDecodeError):
        return False


def model_files(folder: Path) -> set[str] | None:
    """The files of a model's directory of ours, by relative name; None where it is not one."""
    if not is_model(folder):
        return None
    bundle = folder / VERSION / BUNDLE_FOLDER
    try:
        listed = json.loads((bundle / MANIFEST_FILE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    inside = (folder / VERSION / BUNDLE_FOLDER / name for name in (*listed, MANIFEST_FILE))
    compiled = (folder / VERSION / "__pycache__").glob("model.*.pyc")  # Triton's Python leaves it there
    return {_CONFIG, _MODEL, *(path.relative_to(folder).as_posix() for path in (*inside, *compiled))}


@cache
def templates_folder() -> Path:
    """config.pbtxt.j2 and 1/model.py: inside an installed wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "data" / "model_repository"
    return installed if installed.is_dir() else package.parent / "model_repository"


def _render_config(bundle: Bundle, settings: Mapping[str, str]) -> str:
    config = bundle.manifest.serving.override(settings)
    template = Environment(
        loader=FileSystemLoader(templates_folder()), undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template(f"{_CONFIG}.j2")
    return template.render(
        name=model_name(bundle),
        inputs=INPUTS.values(),
        outputs=OUTPUTS.values(),
        settings={SETTING_PREFIX + name: json.dumps(getattr(config, name)) for name in settings},
    )


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _state(path: Path) -> str:
    return "is a file" if path.exists() else "does not exist"
