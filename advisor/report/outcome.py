"""What came of a report in one sentence: nothing yet, applied, measured, published or not."""

from __future__ import annotations

from typing import Literal

from advisor.types import Change, Report

Kind = Literal["good", "bad"]
ORDER = ("failed", "inconclusive", "passed")
"""gates, the one that decides first"""


def headline(report: Report) -> tuple[Kind, str] | None:
    """What stands in the way, or what was done; None for a plan that is only a plan."""
    served, applied = _served(report), _applied(report)
    if not applied:
        return _measured(served) or _planned(report)
    if why := unpublished(report):
        return "bad", f"Applied, and {why}: nothing was published. What was made is kept."
    if served == "passed":
        return "good", "Applied, and measured on a server: every gate passed."
    if all(change.gate == "passed" for change in applied):
        return "good", "Applied and measured: every gate passed."
    steps = [change for change in of_steps(report).values() if change.action != "measure"]
    missed = any(change.gate in ("failed", "inconclusive") for change in applied)
    if missed and steps and all(change.gate == "passed" for change in steps):
        return "good", "Applied and measured: the gate passed after a remedy."
    return "bad", "Applied in part: not every gate has passed."


def unpublished(report: Report) -> str:
    """Why what was applied was not published, "" where nothing stood in the way."""
    # a remedy follows a gate that failed: the last one that was judged is of what was made
    last = next((change.gate for change in reversed(_applied(report)) if change.gate != "not run" and not change.drafts), None)
    drafted = {change.gate for change in _applied(report) if change.drafts}
    if last in ("failed", "inconclusive") or "failed" in drafted:
        return "a gate failed"
    served = _served(report) if _applied(report) else None
    found = {"failed": "measured on a server it misses a limit", "inconclusive": "on a server it may miss a limit"}
    return found.get(served or "", "")


def of_steps(report: Report) -> dict[str, Change]:
    """Rule of a step -> what was done of it; where its gate failed, the last remedy that was judged after it."""
    steps, found, root = {step.rule for step in report.plan.steps}, {}, ""
    for change in report.changes:
        if change.rule in steps:
            found[change.rule] = change
            root = change.rule if change.gate in ("failed", "inconclusive") and change.action != "measure" else root
        elif root and change.action != "measure" and change.gate != "not run" and not change.drafts:
            found[root] = change
    return found


def _applied(report: Report) -> list[Change]:
    return [change for change in report.changes if change.action != "measure"]


def _served(report: Report) -> str | None:
    """The gate that decides over what was measured on a server; None: none was judged."""
    gates = {change.gate for change in report.changes if change.action == "measure"}
    return next((gate for gate in ORDER if gate in gates), None)


def _measured(gate: str | None) -> tuple[Kind, str] | None:
    if gate is None:
        return None
    if gate == "passed":
        return "good", "Measured on a server: every limit was kept."
    if gate == "failed":
        return "bad", "Measured on a server: a limit is missed, or requests got no answer."
    return "bad", "Measured on a server: it cannot be told whether every limit is kept."


def _planned(report: Report) -> tuple[Kind, str] | None:
    if report.plan.feasible:
        return None
    return "bad", "No deployment keeps every limit. Below is the nearest one; what would have to give:"
