"""Checkpoints from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zipvl_compile.checkpoint.base import CONFIG
from zipvl_serving.errors import InputError, ZipvlError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer*"]
_SUBFOLDERS = "*/*"  # other formats of the same weights (onnx/, original/) live there


def is_hub_id(source: str) -> bool:
    """Whether `source` reads as owner/name."""
    return _HUB_ID.fullmatch(source) is not None


def fetch_checkpoint(hub_id: str, revision: str | None) -> Path:
    """The local snapshot of `hub_id` at `revision` (a branch, tag or commit; None: main), downloaded where needed.

    The hub's cache serves it when the network is down. The directory's name is the commit. Pickled weights are not
    fetched. Raises InputError where the hub has no such repository or revision, ZipvlError where it cannot be reached.
    """
    from huggingface_hub import snapshot_download

    with _one_line_errors(hub_id, revision):
        snapshot = snapshot_download(hub_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_SUBFOLDERS)
        return Path(snapshot)


def fetch_config(hub_id: str, revision: str | None) -> Path:
    """As fetch_checkpoint, but only config.json is fetched."""
    from huggingface_hub import snapshot_download

    with _one_line_errors(hub_id, revision):
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=[CONFIG]))


@contextmanager
def _one_line_errors(hub_id: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub import errors

    otherwise = "a local checkpoint directory works too"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"the hub's {hub_id!r} is gated: ask for access there and log in; {otherwise}") from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(f"the hub has no {hub_id!r} that you may read, nor is it a directory; {otherwise}") from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"the hub's {hub_id!r} has no revision {revision!r}") from error
    # The client fails with its own errors, its HTTP library's and the operating system's, with no root in common.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].removeprefix("Got: ")
        raise ZipvlError(f"cannot fetch {hub_id!r} from the hub ({reason}); {otherwise}") from error
