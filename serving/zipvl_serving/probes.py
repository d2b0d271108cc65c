"""Which tokens of a prompt are probed and which are forced: the host's part of the selection."""

from __future__ import annotations

import numpy as np

from zipvl_serving.arrays import Array


def probe_positions(tokens: int, recent: int, random: int, seed: int) -> Array:
    """Places of the probe tokens (paper, appendix A): the last `recent` and `random` of the earlier ones.

    Returns int64 [probes], ascending, without repeats; fewer than recent + random where the prompt is shorter.
    The same seed gives the same places.
    """
    first_recent = max(0, tokens - recent)
    generator = np.random.Generator(np.random.PCG64(seed))
    earlier = generator.choice(first_recent, size=min(random, first_recent), replace=False)
    return np.concatenate([np.sort(earlier), np.arange(first_recent, tokens)]).astype(np.int64)


def forced_tokens(is_text: Array, last: int, *, text: bool) -> Array:
    """bool [tokens]: the last `last` tokens, and all text tokens where `text`; they are in T whatever their score."""
    forced = is_text.copy() if text else np.zeros(len(is_text), dtype=bool)
    forced[max(0, len(forced) - last) :] = True
    return forced
