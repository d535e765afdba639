"""A page of text: its width, its colours, its glyphs."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

INDENT = "  "


@dataclass(frozen=True)
class Glyphs:
    """The characters that are not plain text."""

    bar: tuple[str, str, str, str, str]
    """weights, KV cache, activations, runtime, free"""
    limit: str
    ellipsis: str
    bullet: str


UNICODE = Glyphs(("█", "▓", "▒", "░", "·"), "│", "…", "–")
ASCII = Glyphs(("#", "k", "a", "r", "."), "|", "~", "-")
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


@dataclass(frozen=True)
class Page:
    """How to lay out: width in columns, colours or none, which glyphs."""

    width: int
    color: bool
    glyphs: Glyphs

    def style(self, name: str, text: str) -> str:
        """`text` in a style of the terminal; after padding, as the codes have no width."""
        return f"\x1b[{_STYLES.get(name, name)}m{text}\x1b[0m" if self.color and text.strip() else text

    def wrap(self, text: str, *, first: str = INDENT, rest: str | None = None) -> list[str]:
        """`text` in lines of at most the page's width, hanging under `rest`."""
        rest = " " * len(first) if rest is None else rest
        wrapped = textwrap.wrap(
            text, self.width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=True
        )
        return wrapped or [first.rstrip()]

    def cut(self, text: str, width: int) -> str:
        """`text` in at most `width` columns."""
        return text if len(text) <= width else text[: max(width - 1, 0)] + self.glyphs.ellipsis

    def heading(self, text: str) -> list[str]:
        """A section's first lines."""
        return ["", self.style("bold", self.cut(text, self.width))]
