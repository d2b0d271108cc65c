"""Sections of pages under docs/ that a program writes, each between two markers."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Section:
    """What stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of a page."""

    page: str
    name: str

    @property
    def path(self) -> Path:
        return DOCS / self.page

    def read(self) -> str:
        return self._parts()[1].strip()

    def write(self, text: str) -> None:
        before, _, after = self._parts()
        begin, end = self._markers
        self.path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")

    def main(self, description: str | None, make: Callable[[], str]) -> None:
        """The command line: print what `make` returns, or with --write put it into the page."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--write", action="store_true", help=f"into {self.page}")
        if parser.parse_args().write:
            self.write(make())
        else:
            print(make())

    @property
    def _markers(self) -> tuple[str, str]:
        return f"<!-- {self.name}: begin -->", f"<!-- {self.name}: end -->"

    def _parts(self) -> tuple[str, str, str]:
        """Before, between and after the markers."""
        begin, end = self._markers
        before, rest = self.path.read_text(encoding="utf-8").split(begin)
        between, after = rest.split(end)
        return before, between, after
