"""What is not in the plan, and why: beaten by it, no such problem here, impossible here, or not decided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from advisor.report.evidence import compared, unknown_facts
from advisor.types import Estimate, Finding, Report

KINDS: dict[str, Literal["beaten", "absent", "impossible", "undecided"]] = {
    "fires": "beaten", "silent": "absent", "blocked": "impossible", "unknown": "undecided"
}  # fmt: skip
KIND_TITLES = {
    "beaten": "possible, but the plan is better",
    "absent": "no such problem here",
    "impossible": "impossible here",
    "undecided": "not decided until a fact is known",
}


@dataclass(frozen=True)
class LeftOut:
    """A remedy that is not in the plan."""

    rule: str
    kind: Literal["beaten", "absent", "impossible", "undecided"]
    reason: str
    short: str
    """the facts that decide, in a few words"""
    estimate: Estimate | None = None
    matters: bool = False
    """it was estimated, and its figures are not those of the plan"""


def left_out(report: Report) -> tuple[LeftOut, ...]:
    """The planner's rejections, then the rules whose remedy is impossible here."""
    findings = {f.rule: f for f in report.findings}
    done = {s.rule for s in report.plan.steps}
    items = []
    for rejection in report.plan.rejected:
        finding = findings.get(rejection.rule)
        is_forbidden = rejection.reason.startswith("forbidden by the policy")
        kind = KINDS[finding.verdict] if finding and not is_forbidden else "beaten"
        matters = _differs(rejection.estimate, report.plan.expected)
        reason = f"waits for {', '.join(_waits(finding))}" if finding and kind == "undecided" else rejection.reason
        items.append(LeftOut(rejection.rule, kind, reason, _deciding(finding), rejection.estimate, matters))
    named = {item.rule for item in items}
    for finding in report.findings:
        if finding.verdict == "blocked" and finding.rule not in named | done:
            short = _deciding(finding)
            reason = f"the problem is real, the remedy impossible here: {short or 'see its evidence'}"
            items.append(LeftOut(finding.rule, "impossible", reason, short))
    return tuple(items)


def told(items: tuple[LeftOut, ...]) -> tuple[LeftOut, ...]:
    """Those worth a sentence each where space is short: beaten by the plan, or estimated with other figures than its."""
    return tuple(item for item in items if item.kind == "beaten" or (item.kind == "absent" and item.matters))


def briefly(items: tuple[LeftOut, ...]) -> tuple[tuple[str, tuple[LeftOut, ...]], ...]:
    """(why, those left out for it) of all others."""
    rest = [item for item in items if item not in told(items)]
    groups = ((KIND_TITLES[kind], tuple(i for i in rest if i.kind == kind)) for kind in ("absent", "impossible", "undecided"))
    return tuple((title, group) for title, group in groups if group)


def in_short(item: LeftOut) -> str:
    """A remedy in a list of others: with the facts that make it impossible, or that it waits for."""
    deciding = {"impossible": item.short, "undecided": item.reason}.get(item.kind, "")
    return f"{item.rule} ({deciding})" if deciding else item.rule


def _waits(finding: Finding) -> list[str]:
    return list(dict.fromkeys(name for item in finding.evidence if item.holds is None for name in unknown_facts(item)))


def _deciding(finding: Finding | None) -> str:
    return "; ".join(compared(item) for item in finding.evidence if item.holds is False) if finding else ""


def _differs(one: Estimate | None, other: Estimate) -> bool:
    if one is None:
        return False
    ours, theirs = other.output_tokens_per_s, one.output_tokens_per_s
    return one.fits != other.fits or bool(ours and theirs and abs(theirs / ours - 1) >= 0.01)
