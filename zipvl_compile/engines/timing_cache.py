"""How long layers took in earlier builds on this GPU, kept beside the build cache: the next build times fewer."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from zipvl_compile.bundling.cache import cache_directory


class TimingCache:
    """One builder's timings, in a file of the cache directory; a cache that cannot be used or kept is done without."""

    def __init__(self, name: str) -> None:
        """`name` says what the timings hold for: the library's version, the GPU, the kernels' sources."""
        self.file = cache_directory() / "timings" / f"{name}.bin"
        self._config: Any = None
        self._cache: Any = None
        """Held until the engine is built, as the builder asks."""

    def attach(self, config: Any) -> None:
        """Let the builder read and extend the timings kept so far; those of another machine are left aside."""
        kept = b""
        with suppress(OSError):
            kept = self.file.read_bytes()
        for held in (kept, b""):
            cache = config.create_timing_cache(held)
            if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
                self._config, self._cache = config, cache
                return

    def keep(self) -> None:
        """Write what the builder holds now; another build may read or write meanwhile."""
        if self._config is None:
            return
        new = self.file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new.write_bytes(memoryview(self._config.get_timing_cache().serialize()))
            new.replace(self.file)
