"""Where an answer ends: the first stop string in its text, however the text is cut into pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Lets the text before the first stop string through, and holds back only what may be the beginning of one.

    First means by where it starts; of several that start in the same place the shortest decides, since the text before
    them is the same. So "bc" in "abcd" waits while "abcd" is a stop string too, and counts as soon as that one fails.

    stopped: the first stop string is decided; nothing more comes out. `flush` can still set it.

    The stop strings must not be empty. At most one character less than the longest is held back, and each character
    of text costs a constant number of steps per stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._prefixes = [_Prefix(stop) for stop in dict.fromkeys(stops)]
        self._starts = frozenset(stop[0] for stop in stops)
        self._held = ""
        # Where in the held text a stop string was found that an earlier, longer one may still overrule.
        self._found: int | None = None

    def push(self, text: str) -> str:
        """The text that may go out now."""
        if self.stopped:
            return ""
        if not self._held and self._starts.isdisjoint(text):
            return text
        held, found, open_from = self._held + text, self._found, 0
        for end, character in enumerate(text, start=len(self._held) + 1):
            open_from = end
            for prefix in self._prefixes:
                length = prefix.extend(character)
                open_from = min(open_from, end - length)
                if prefix.complete and (found is None or end - length < found):
                    found = end - length
            if found is not None and found <= open_from:
                return self._stop(held[:found])
        self._held = held[open_from:]
        self._found = None if found is None else found - open_from
        return held[:open_from]

    def flush(self) -> str:
        """What is still held back, once no more text comes: all of it, or up to a stop string that waited in it."""
        held, self._held = self._held, ""
        if self._found is not None:
            return self._stop(held[: self._found])
        return held

    def _stop(self, before: str) -> str:
        self.stopped, self._held, self._found = True, "", None
        return before


class _Prefix:
    """The longest beginning of one stop string that the text so far ends with (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self._stop = stop
        self._length = 0
        # borders[k]: the longest proper prefix of stop[:k] that is its suffix too; known as far as text has matched.
        self._borders = [0, 0]

    @property
    def complete(self) -> bool:
        return self._length == len(self._stop)

    def extend(self, character: str) -> int:
        """Take the next character of the text; the length of the beginning that it now ends with."""
        if self.complete:
            self._length = self._borders[self._length]
        self._length = self._follow(self._length, character)
        if self._length == len(self._borders):
            self._borders.append(self._follow(self._borders[-1], character))
        return self._length

    def _follow(self, length: int, character: str) -> int:
        while length and self._stop[length] != character:
            length = self._borders[length]
        return length + (self._stop[length] == character)
