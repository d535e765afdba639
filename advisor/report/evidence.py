"""What is known, from where, what a rule compared, and what nobody knows yet."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.report import units
from advisor.types import Evidence, Lengths, Report

ASSUMED = ("default", "assumed")
"""a source that begins so is no measurement and no declaration"""
OPERATORS = ("not in", "<=", ">=", "==", "!=", "<", ">", "in")


@dataclass(frozen=True)
class Unknown:
    """Facts that nobody knows yet, and the one way to find them out."""

    facts: tuple[str, ...]
    rules: tuple[str, ...]
    find_out: str


def compared(item: Evidence) -> str:
    """A comparison with both sides' values; what does not hold, or is not known, says what was wanted.

    "gain.fp8 1.48 (> 1.1)", "traffic.concurrency 32 (wanted <= 16)", "traffic.concurrency 32 > baseline.max_concurrency 11".
    """
    name, operator, right_text = split_condition(item.condition)
    left, right = units.pair(item.left, item.right)
    if not operator:
        return f"{item.condition}: {left}, {right}"
    if is_fact(right_text):
        return (
            f"{name} {left} {operator} {right_text} {right}"
            if item.holds
            else f"{name} {left} (wanted {operator} {right_text} {right})"
        )
    if operator in ("==", "!=") and item.holds is not None:
        equal = f"{name} = {left}"
        if operator == "==":
            return equal if item.holds else f"{equal} (wanted {right})"
        return f"{equal} (not {right})" if item.holds else f"{equal} (wanted another)"
    return f"{name} {left} ({operator} {right_text})" if item.holds else f"{name} {left} (wanted {operator} {right_text})"


def split_condition(condition: str) -> tuple[str, str, str]:
    """("baseline.kv_share", ">", "0.3"); operator and right side are "" when the condition has another shape."""
    for operator in OPERATORS:
        left, found, right = condition.partition(f" {operator} ")
        if found and left.strip() and right.strip():
            return left.strip(), operator, right.strip()
    return condition, "", ""


def is_fact(text: str) -> bool:
    """Whether the right side of a condition names a fact rather than a value."""
    return "." in text and text.replace(".", "").replace("_", "").isalnum() and not text[0].isdigit()


def unknowns(report: Report) -> tuple[Unknown, ...]:
    """What the undecided rules lack, grouped by the way to find it out."""
    groups: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for finding in report.findings:
        for item in finding.evidence if finding.verdict == "unknown" else ():
            for fact, how in _ways(item):
                names, rules = groups.setdefault(how, ({}, {}))
                names[fact] = rules[finding.rule] = None
    return tuple(Unknown(tuple(names), tuple(rules), how) for how, (names, rules) in groups.items())


def _ways(item: Evidence) -> list[tuple[str, str]]:
    """(fact, how to find it out); the reasoner writes "fact: how; other.fact: how" where both sides are unknown."""
    if item.holds is not None:
        return []
    names, text = unknown_facts(item), item.find_out
    starts = sorted((text.find(f"{name}: "), name) for name in names if f"{name}: " in text)
    if len(starts) != len(names):
        return [(name, text) for name in names]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    return [(name, text[start + len(name) + 2 : end].rstrip("; ")) for (start, name), end in zip(starts, ends, strict=True)]


def unknown_facts(item: Evidence) -> list[str]:
    """The facts of a comparison that have no value."""
    name, _, right = split_condition(item.condition)
    names = [name] if item.left is None else []
    return names + ([right] if item.right is None and is_fact(right) else [])


def assumptions(report: Report) -> tuple[tuple[str, str], ...]:
    """(facts with their values, source) of what was assumed instead of measured or given, by source."""
    groups: dict[str, list[str]] = {}
    for name, value, source in facts(report):
        if source.startswith(ASSUMED) and name != "traffic.lengths":
            groups.setdefault(source, []).append(f"{name} {value}".strip())
    return tuple((", ".join(names), source) for source, names in groups.items())


def facts(report: Report) -> tuple[tuple[str, str, str], ...]:
    """(fact, value, source) of everything with a source, in the profile's order."""
    return tuple((name, fact_value(report, name), source) for name, source in report.profile.sources.items())


def fact_source(report: Report, name: str) -> str:
    """Where a fact came from; a fact that was computed from others says so."""
    if name in report.profile.sources:
        return report.profile.sources[name]
    group = name.split(".")[0]
    if group in ("baseline", "fit", "gain", "speculation"):
        return "estimated"
    return "profiles/support" if group == "support" else "computed from the profile"


def fact_value(report: Report, name: str) -> str:
    """The value of a sourced fact, as text; "" where the profile holds no single number for it."""
    value: object = report.profile
    parts = name.split(".")
    if parts[0] == "measured":
        return units.given(report.profile.measured.get(name.removeprefix("measured.")))
    for part in parts:
        value = _member(value, part)
    if isinstance(value, Lengths):
        return f"mean {units.figure(value.mean)}"
    return units.given(value) if value is None or isinstance(value, bool | int | float | str) else ""


def _member(value: object, part: str) -> object:
    if hasattr(type(value), "model_fields") and part in type(value).model_fields:  # type: ignore[attr-defined]
        return getattr(value, part)
    head, _, tail = part.rpartition("_")
    if head and tail and hasattr(type(value), "model_fields") and head in type(value).model_fields:  # type: ignore[attr-defined]
        return getattr(getattr(value, head), tail, "")
    return value.get(part, "") if isinstance(value, dict) else ""
