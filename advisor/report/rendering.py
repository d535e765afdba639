"""One verb: a Report in, a page out."""

from __future__ import annotations

import re
from typing import Literal

from advisor.report import sanitation
from advisor.types import Report, Value

Format = Literal["text", "markdown", "html", "json"]


def render(report: Report, format: Format, *, width: int = 80, color: bool = False, ascii: bool = False) -> str:
    """The report as a page, ending in a newline.

    width: columns of the text page, 77 to 120. color: ANSI styles in the text page. ascii: a text page for a terminal
    that can't show more. The other formats take none of them. The same report gives the same bytes.
    """
    if format == "json":
        return to_json(report)
    shown = sanitation.sanitise(report)
    if format == "text":
        from advisor.report.text import render_text

        return render_text(
            sanitation.sanitise(shown, sanitation.to_ascii) if ascii else shown, width=width, color=color, ascii=ascii
        )
    if format == "markdown":
        from advisor.report.markdown import render_markdown

        return render_markdown(shown)
    from advisor.report.html import render_html

    return render_html(shown)


def to_json(value: Value) -> str:
    """A value as report.json holds it: faithful, indented, and in ASCII, so that no character of it acts on a terminal."""
    text = value.model_dump_json(by_alias=True, indent=2)
    # outside strings JSON is ASCII already, so the escape is right wherever it is needed
    return (text if text.isascii() and "\x7f" not in text else re.sub(r"[^\x00-\x7e]", _escape, text)) + "\n"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x10000:
        return f"\\u{code:04x}"
    high, low = divmod(code - 0x10000, 0x400)
    return f"\\u{0xD800 + high:04x}\\u{0xDC00 + low:04x}"
