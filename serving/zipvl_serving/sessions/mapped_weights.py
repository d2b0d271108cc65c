"""A bundle's weights file (safetensors) as torch tensors: mapped, so that programs share one copy."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from zipvl_serving.errors import ZipvlError, one_line

_LENGTH_BYTES = 8
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_weights(file: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """Every tensor by name: on a CPU pages of the file, read when first used, elsewhere one copy on the device.

    Raises ZipvlError where the file is none of safetensors or cannot be read, torch.OutOfMemoryError where it does not
    fit the device.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = _LENGTH_BYTES + int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            header = json.loads(stream.read(min(start, size) - _LENGTH_BYTES))
        held = torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
        return {
            name: held[start + entry["data_offsets"][0] : start + entry["data_offsets"][1]]
            .view(_DTYPES[entry["dtype"]])
            .view(entry["shape"])
            .to(device)
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except torch.OutOfMemoryError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ZipvlError(f"{file}: not readable as safetensors: {one_line(error)}") from None
