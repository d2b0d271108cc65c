"""How a benchmark hands over its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def hand_over(result: dict[str, Any], out: Path | None) -> None:
    """Print the figures as JSON, and keep them in a file where one is named."""
    text = json.dumps(result, indent=2)
    print(text)
    if out:
        out.write_text(text + "\n")
