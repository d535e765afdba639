"""The report for a pull request: short, the detail collapsed, every value from the report escaped."""

from __future__ import annotations

import re
from typing import Any

from advisor.report import commands, evidence, omissions, second_opinions, sections, served, students, units
from advisor.report.changes import change_lines
from advisor.report.outcome import headline, of_steps
from advisor.report.templating import fill
from advisor.types import Report

_SPECIAL = re.compile(r"[\\`*{}\[\]<>&|~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|@|#|://|\bwww\.", re.IGNORECASE)
_LEADING = re.compile(r"^(?:([-+])(?=\s|$)|(\d+)([.)])(?=\s|$))")
_PLAIN_CODE = re.compile(r"[A-Za-z0-9_./:;=,+()\[\] <>!%-]*")


class Markdown(str):
    """Text that is Markdown already and must not be escaped again."""


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown. `report` is sanitised already."""
    values = {
        "report": report,
        "plan": report.plan,
        "sections": sections,
        "omissions": omissions,
        "change_lines": change_lines,
        "served": served,
        "evidence": evidence,
        "students": students,
        "second_opinions": second_opinions,
        "units": units,
        "commands": commands,
        "code": code,
        "block": block,
        "headline": headline(report) if report.changes else None,
        "done": of_steps(report),
    }
    page = fill("report.md.j2", values, escape=_finalize)
    return re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def escape(text: str) -> str:
    """`text` as Markdown that reads as exactly this text: no markup, no HTML, no link, no mention, no issue number."""
    return _LEADING.sub(_escape_list, _SPECIAL.sub(_escape_one, text))


def _escape_one(found: re.Match[str]) -> str:
    special = found[0]
    named = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    if special in named:
        return named[special]
    if special in "@#":
        # GitHub makes mentions and issue links after rendering, so only something between the sign and the name stops it
        return f"{special}<!-- -->"
    if special == "://":
        return "\\://"
    if special.lower() == "www.":
        return f"{special[:3]}\\."
    return f"\\{special}"


def _escape_list(found: re.Match[str]) -> str:
    return f"\\{found[1]}" if found[1] else f"{found[2]}\\{found[3]}"


def code(text: str) -> Markdown:
    """`text` in a code span, safe inside a table cell too."""
    if text and _PLAIN_CODE.fullmatch(text):
        return Markdown(f"`{text}`")
    return Markdown(f"<code>{escape(text)}</code>") if text else Markdown("")


def block(text: str) -> Markdown:
    """Lines of shell in a fence that they cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}sh\n{text}\n{fence}")


def _finalize(value: Any) -> Any:
    if isinstance(value, Markdown):
        return value
    return escape(value) if isinstance(value, str) else value
