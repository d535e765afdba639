"""A rule as a page, and why or why not it holds in a report; as Markdown that reads well as plain text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from advisor.errors import UnknownName
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.vocabulary import FACTS, Fact
from advisor.types import Evidence, Finding, Prediction, Report, Rule, RuleCase, Scalar

_VERDICTS = {
    "fires": "The problem is there and the remedy is possible.",
    "silent": "The problem is not there.",
    "blocked": "The problem is there, but the remedy is not possible.",
    "unknown": "This cannot be said before more is known.",
}
_INTRODUCTION = """\
# Rules

Generated from `rules/` by `python docs/generate.py`; change the rules, not these pages.
"""


def explain(rule: Rule, report: Report | None = None) -> str:
    """The rule as a page; with a report, its verdict there with both sides of every line.

    Raises UnknownName when the report was made without this rule.
    """
    return rule_page(rule) if report is None else _why_here(rule, report)


def rule_page(rule: Rule) -> str:
    """Everything that a rule says."""
    row = f", row {rule.seed_row} of the table" if rule.seed_row else ""
    parts = [
        f"# {rule.id}",
        f"{rule.status}, {rule.safety}{row}",
        f"**Problem.** {rule.problem}",
        f"**Why.** {rule.why}",
        f"**Remedy.** {rule.remedy}",
        _section("The problem is there when", _conditions(rule.when)),
        _section("The remedy requires", _conditions(rule.requires)),
        _section("What is expected of it", [_prediction(prediction) for prediction in rule.predicts]),
        _section("What it changes", _application(rule)),
        _section("Not together with", [f"- {other}" for other in rule.conflicts]),
        _section(
            "References", [f"- {ref.says} ({ref.source}{', ' + ref.date if ref.date else ''})" for ref in rule.references]
        ),
        _section("Tests", [_case(case) for case in rule.tests]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rule_docs(rulebook: Rulebook) -> dict[str, str]:
    """Path under docs/rules -> text: a page a rule and an index."""
    pages = {f"{rule.id}.md": rule_page(rule) for rule in rulebook.rules}
    lines = [_INTRODUCTION]
    problem = ""
    for rule in rulebook.rules:
        folder, _, remedy = rule.id.partition("/")
        if folder != problem:
            problem = folder
            lines.append(f"\n## {folder}\n")
        row = f" (row {rule.seed_row})" if rule.seed_row else ""
        lines.append(f"- [{remedy}]({rule.id}.md){row}, {rule.safety}: {rule.remedy}")
    return {"README.md": "\n".join(lines) + "\n", **pages}


def _section(title: str, lines: Iterable[str]) -> str:
    body = "\n".join(lines)
    return f"## {title}\n\n{body}" if body else ""


def _conditions(lines: tuple[str, ...]) -> list[str]:
    return [f"- `{line}`: {_meaning(line)}" for line in lines]


def _meaning(line: str) -> str:
    """What the fact on the left is, with its unit."""
    fact, _ = _parts(line)
    if fact is None:
        return "a fact that this version does not know"
    return f"{fact.doc} [{fact.unit}]" if fact.unit else fact.doc


def _parts(line: str) -> tuple[Fact | None, str]:
    """The fact on the left and the operator of a line that may be another version's."""
    match = re.match(r"\s*([\w.]+)\s*(not\s+in\b|in\b|[<>=!]+)", line)
    return (FACTS.get(match[1]), match[2]) if match else (None, "")


def _prediction(prediction: Prediction) -> str:
    low, high = prediction.range
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    size = f"{span} %" if prediction.metric == "accuracy_loss" else f"{span} times"
    condition = f"; {prediction.when}" if prediction.when else ""
    return f"- {prediction.metric.replace('_', ' ')}: {size} ({prediction.basis}{condition})"


def _application(rule: Rule) -> list[str]:
    fields = [f"- deployment: {name} = {_shown(value)}" for name, value in rule.applies.deployment.items()]
    parameters = ", ".join(f"{name} = {_shown(value)}" for name, value in rule.applies.parameters.items())
    return [*fields, f"- action: {rule.applies.action}" + (f" ({parameters})" if parameters else "")]


def _case(case: RuleCase) -> str:
    facts = ", ".join(f"{name} = {_shown(value)}" for name, value in case.facts.items())
    return f"- {case.name}: {case.verdict} ({facts or 'nothing is known'})"


def _why_here(rule: Rule, report: Report) -> str:
    finding = next((found for found in report.findings if found.rule == rule.id), None)
    if finding is None:
        hint = "the report was made with other rules, or the rule is retired"
        for override in report.overrides:
            if override.rule == rule.id and override.change == "suppressed" and not override.expired:
                hint = f"{override.source} switches it off until {override.until}: {override.reason}"
        raise UnknownName("finding", rule.id, [found.rule for found in report.findings], where="the report", hint=hint)
    profile, own = report.profile, (*rule.when, *rule.requires)
    lines = [
        f"# {rule.id}: {finding.verdict}",
        f"{profile.model.name} on {profile.gpu.count} x {profile.gpu.name}, traffic {profile.traffic.name}",
        f"{_VERDICTS[finding.verdict]} {_place_in_plan(rule, report)}".strip(),
        f"**Problem.** {finding.problem}",
        _section("Is the problem there?", [_line(line) for line in finding.evidence if line.condition in rule.when]),
        _section("Is the remedy possible?", [_line(line) for line in finding.evidence if line.condition in rule.requires]),
        _section("Added by the overlay of the report", [_line(line) for line in finding.evidence if line.condition not in own]),
        _section("To find out", _find_out(finding)),
        f"**Why.** {finding.why}",
        f"**Remedy.** {finding.remedy}",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _place_in_plan(rule: Rule, report: Report) -> str:
    plan = report.plan
    for number, step in enumerate(plan.steps, start=1):
        if step.rule == rule.id:
            return f"It is step {number} of {len(plan.steps)} in the plan."
    for rejection in plan.rejected:
        if rejection.rule == rule.id:
            return f"It is not in the plan: {rejection.reason}"
    for fallback in plan.fallbacks:
        if fallback.rule == rule.id:
            return f"The plan falls back to it if {fallback.if_}."
    return ""


def _line(evidence: Evidence) -> str:
    answer = {True: "yes", False: "no", None: "not known"}[evidence.holds]
    fact, operator = _parts(evidence.condition)
    unit = f" {fact.unit}" if fact and fact.unit else ""
    values = f"{_shown(evidence.left)} {operator} {_shown(evidence.right)}{unit}"
    return f"- {answer}: `{evidence.condition}`, here {values} ({_meaning(evidence.condition)})"


def _find_out(finding: Finding) -> list[str]:
    return list(dict.fromkeys(f"- {evidence.find_out}" for evidence in finding.evidence if evidence.find_out))


def _shown(value: Scalar | object) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    return str(value)
