"""A rule's own test cases: run, counted, and themselves tested by moving every threshold.

A case gives some facts, the others are unknown, and says the verdict. The cases of a rule notice a threshold if moving it
one step either way, or turning < into <= and the like, changes the verdict of at least one of them. One step is a tenth of the
value, at least 1 where the fact is always whole, and 0.1 where the value is 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from advisor.reasoner.condition import Condition, evaluate, parse
from advisor.reasoner.diagnosis import judge, verdict
from advisor.reasoner.vocabulary import FACTS
from advisor.types import Rule, RuleCase, Verdict

STEP = 0.1
LEAST_STEP_AT_ZERO = 0.1
_FLIPPED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}


class CaseResult(NamedTuple):
    """What became of one case."""

    case: RuleCase
    got: Verdict

    @property
    def passed(self) -> bool:
        """The verdict is the one that the case says."""
        return self.got == self.case.verdict


class Mutant(NamedTuple):
    """A rule with one line changed."""

    line: str
    changed: str
    """how, for people"""
    when: tuple[Condition, ...]
    requires: tuple[Condition, ...]
    position: int
    """of the changed line among when + requires"""
    moved: str = ""
    """a fact on the right of the changed line, to be multiplied by `factor` and moved by `shift` there"""
    factor: float = 1.0
    shift: int = 0


class RuleCheck(NamedTuple):
    """Everything that a rule's cases show."""

    rule: str
    results: tuple[CaseResult, ...]
    missing: tuple[str, ...]
    """verdicts that no case has, though one should"""
    unnoticed: tuple[Mutant, ...]
    """changes of a threshold that no case notices"""

    @property
    def failures(self) -> tuple[str, ...]:
        """One line each."""
        wrong = [
            f"{self.rule}: {result.case.name!r} should be {result.case.verdict} and is {result.got}"
            for result in self.results
            if not result.passed
        ]
        absent = [f"{self.rule}: no case is {verdict}" for verdict in self.missing]
        untested = [f"{self.rule}: no case notices `{mutant.line}` as `{mutant.changed}`" for mutant in self.unnoticed]
        return (*wrong, *absent, *untested)


def check_rule(rule: Rule) -> RuleCheck:
    """Runs a rule's cases, looks which verdicts they cover, and moves every threshold."""
    results = run_cases(rule)
    noticed = [mutant for mutant in mutants(rule) if not any(_differs(mutant, result) for result in results)]
    return RuleCheck(rule.id, results, _missing(rule), tuple(noticed))


def run_cases(rule: Rule) -> tuple[CaseResult, ...]:
    """Every case's verdict."""
    return tuple(CaseResult(case, judge(rule, case.facts).verdict) for case in rule.tests)


def _missing(rule: Rule) -> tuple[str, ...]:
    there = {case.verdict for case in rule.tests}
    missing = [verdict for verdict in ("fires", "silent") if verdict not in there]
    if rule.requires and not there & {"blocked", "unknown"}:
        missing.append("blocked or unknown")
    return tuple(missing)


def mutants(rule: Rule) -> Iterator[Mutant]:
    """The rule with each numeric comparison moved a step up, a step down, and with its boundary on the other side."""
    lines = [parse(line) for line in (*rule.when, *rule.requires)]
    for position, condition in enumerate(lines):
        for change in _changes(condition):
            every = [*lines[:position], change.condition, *lines[position + 1 :]]
            when, requires = tuple(every[: len(rule.when)]), tuple(every[len(rule.when) :])
            moved = str(condition.right) if condition.right_is_fact else ""
            yield Mutant(condition.text, change.text, when, requires, position, moved, change.factor, change.shift)


class _Change(NamedTuple):
    """Another comparison, or the same with the fact on its right moved."""

    condition: Condition
    text: str
    factor: float = 1.0
    shift: int = 0


def _changes(condition: Condition) -> Iterator[_Change]:
    left, operator, right = condition.left, condition.operator, condition.right
    if FACTS[left].kind != "number" or isinstance(right, tuple):
        return
    if operator in _FLIPPED:
        flipped = _FLIPPED[operator]
        yield _Change(condition._replace(operator=flipped), f"{left} {flipped} {right}")
    if condition.right_is_fact:
        if FACTS[left].whole and FACTS[str(right)].whole:
            yield _Change(condition, f"{left} {operator} {right} + 1", shift=1)
            yield _Change(condition, f"{left} {operator} {right} - 1", shift=-1)
        else:
            yield _Change(condition, f"{left} {operator} {1 + STEP:g} * {right}", factor=1 + STEP)
            yield _Change(condition, f"{left} {operator} {1 - STEP:g} * {right}", factor=1 - STEP)
        return
    assert isinstance(right, (int, float))
    step = abs(right) * STEP or LEAST_STEP_AT_ZERO
    if FACTS[left].whole:
        step = max(1, round(step))
    for value in (right + step, right - step):
        yield _Change(condition._replace(right=value), f"{left} {operator} {value:g}")


def _differs(mutant: Mutant, result: CaseResult) -> bool:
    facts = result.case.facts
    holds = []
    for position, condition in enumerate((*mutant.when, *mutant.requires)):
        given = facts
        value = facts.get(mutant.moved)
        if position == mutant.position and isinstance(value, (int, float)):
            given = facts | {mutant.moved: value * mutant.factor + mutant.shift}
        holds.append(evaluate(condition, given).holds)
    return verdict(holds[: len(mutant.when)], holds[len(mutant.when) :]) != result.got
