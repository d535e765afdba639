"""Where a piece of text stands in a file, so that a problem can be shown under it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from advisor.errors import RuleProblem

_INDENT = " " * len("where: ")


@dataclass(frozen=True)
class Place:
    """A spot in a file. line and column count from 1; text is the whole line."""

    file: str
    line: int
    column: int
    text: str

    def problem(self, what: str, *, hint: str = "", start: int = 0, length: int = 1) -> RuleProblem:
        """A problem `start` characters on from here, with the line and a caret under `length` characters of it."""
        column = self.column + start
        marks = "^" * max(1, min(length, len(self.text) - column + 1))
        where = f"{self.file}:{self.line}:{column}\n{_INDENT}{self.text}\n{_INDENT}{' ' * (column - 1)}{marks}"
        return RuleProblem(what, where=where, hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that offers the nearest known words, or ""."""
    near = difflib.get_close_matches(word.lower(), list(known), n=3, cutoff=0.55)
    return f"did you mean {' or '.join(near)}?" if near else ""
