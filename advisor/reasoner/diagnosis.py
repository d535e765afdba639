"""Every rule's verdict on a profile, with the evidence of each of its lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from advisor.estimator.remembering import by_identity
from advisor.reasoner.condition import evaluate, holds, how_to_find_out, parse
from advisor.reasoner.facts import gather_facts
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Finding, Profile, Rule, Scalar, Verdict


def diagnose(profile: Profile, rulebook: Rulebook) -> tuple[Finding, ...]:
    """A finding for every rule that is not retired, ordered by id: a pure function of the profile and the rules.

    Raises InputError for a measured fact that is none, RuleProblem for a condition that is none.
    """
    facts = gather_facts(profile)
    rules = sorted((rule for rule in rulebook.rules if rule.status != "retired"), key=lambda rule: rule.id)
    return tuple(judge(rule, facts, facts.find_out) for rule in rules)


def find_firing(profile: Profile, rulebook: Rulebook) -> tuple[Finding, ...]:
    """Only the rules that fire, without evidence: what a search asks of a moved profile. A rule's lines are read up to the
    first that does not hold, so that facts which cost an estimate are not made in vain."""
    facts = gather_facts(profile)
    rules = sorted((rule for rule in rulebook.rules if rule.status != "retired"), key=lambda rule: rule.id)
    return tuple(
        _fired(rule) for rule in rules if all(holds(parse(line), facts) is True for line in (*rule.when, *rule.requires))
    )


@by_identity(256)
def _fired(rule: Rule) -> Finding:
    return Finding(
        rule=rule.id, seed_row=rule.seed_row, verdict="fires", safety=rule.safety, evidence=(),
        problem=rule.problem, why=rule.why, remedy=rule.remedy, references=rule.references,
    )  # fmt: skip


def judge(rule: Rule, facts: Mapping[str, Scalar], find_out: Callable[[str], str] = how_to_find_out) -> Finding:
    """One rule's verdict; every line is evaluated and leaves its evidence, those of `when` first."""
    when = [evaluate(parse(line), facts, find_out) for line in rule.when]
    requires = [evaluate(parse(line), facts, find_out) for line in rule.requires]
    return Finding(
        rule=rule.id,
        seed_row=rule.seed_row,
        verdict=verdict((line.holds for line in when), (line.holds for line in requires)),
        safety=rule.safety,
        evidence=(*when, *requires),
        problem=rule.problem,
        why=rule.why,
        remedy=rule.remedy,
        references=rule.references,
    )


def verdict(when: Iterable[bool | None], requires: Iterable[bool | None]) -> Verdict:
    """No beats unknown; unknown never beats anything.

    when with a no: silent, with an unknown: unknown; then requires with a no: blocked, with an unknown: unknown; else fires.
    """
    problem, remedy = all_hold(when), all_hold(requires)
    if problem is not True:
        return "silent" if problem is False else "unknown"
    if remedy is not True:
        return "blocked" if remedy is False else "unknown"
    return "fires"


def all_hold(lines: Iterable[bool | None]) -> bool | None:
    """False if any line is false, else None if any is not known, else True."""
    values = list(lines)
    return False if False in values else None if None in values else True
