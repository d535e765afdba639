"""What the rules call up now that something was measured: the next remedies, and the facts that they miss."""

from __future__ import annotations

from collections.abc import Callable

from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.fallbacks import LEAVES, effort
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Profile, Rule


def find_remedies(
    profile: Profile, rulebook: Rulebook, ban: Callable[[Rule], str] = lambda rule: ""
) -> tuple[tuple[Rule, ...], tuple[str, ...]]:
    """The rules that fire and whose action works on a measured shortfall, least effort first; and the measured facts that
    such a rule asked for and that are not known, sorted.

    ban: why a rule may not be used, or "". Nothing need be measured for a banned rule: it is among those that fire.
    """
    rules = {rule.id: rule for rule in rulebook.rules if rule.applies.action in LEAVES}
    findings = diagnose(profile, Rulebook(rules=tuple(rules.values()), overrides=()))
    banned = {rule.id for rule in rules.values() if ban(rule)}
    may = {finding.rule for finding in findings if finding.verdict == "unknown"} & banned
    fired = [rules[finding.rule] for finding in findings if finding.verdict == "fires" or finding.rule in may]
    unknown = {
        line.condition.split()[0]
        for finding in findings
        if finding.verdict == "unknown" and finding.rule not in banned
        for line in finding.evidence
        if line.holds is None
    }
    return tuple(sorted(fired, key=effort)), tuple(sorted(name for name in unknown if name.startswith("measured.")))
