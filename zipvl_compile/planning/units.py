"""Figures as people read them."""

from __future__ import annotations


def show_bytes(count: float) -> str:
    """41.2 GiB, 800 KiB, 12 B."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(count) >= scale:
            return f"{count / scale:.3g} {unit}" if abs(count) < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:.3g} B"


def show_seconds(seconds: float) -> str:
    """1.57 s, 23.1 ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def show_rate(rate: float) -> str:
    """15.3 below a hundred, whole above."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
