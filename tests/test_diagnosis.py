"""Verdicts: three values, evidence for every line, the same answer every time."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_profiles import profile

from advisor.errors import RuleProblem
from advisor.reasoner.diagnosis import all_hold, diagnose, judge, verdict
from advisor.reasoner.rulebook import Rulebook, load_rules
from advisor.reasoner.vocabulary import FACTS, Fact
from advisor.types import Application, Profile, Rule, Scalar

YES, NO, UNKNOWN = True, False, None


@pytest.mark.parametrize(
    ("when", "requires", "expected"),
    [
        ([YES], [], "fires"),
        ([YES, YES], [YES], "fires"),
        ([NO], [YES], "silent"),
        ([NO, UNKNOWN], [UNKNOWN], "silent"),
        ([UNKNOWN, YES], [YES], "unknown"),
        ([UNKNOWN], [NO], "unknown"),
        ([YES], [NO], "blocked"),
        ([YES], [UNKNOWN, NO], "blocked"),
        ([YES], [UNKNOWN, YES], "unknown"),
    ],
)
def test_no_beats_unknown_and_unknown_beats_nothing(when: list[Any], requires: list[Any], expected: str) -> None:
    assert verdict(when, requires) == expected


def test_a_definite_verdict_stays_whatever_is_learned() -> None:
    def learned(lines: tuple[bool | None, ...]) -> Any:
        return product(*[[line] if line is not None else [True, False] for line in lines])

    for when in product((YES, NO, UNKNOWN), repeat=2):
        for requires in product((YES, NO, UNKNOWN), repeat=2):
            before = verdict(when, requires)
            if before != "unknown":
                assert {verdict(one, other) for one in learned(when) for other in learned(requires)} == {before}


def test_all_hold_of_nothing_is_true() -> None:
    assert all_hold([]) is True


def rule(**changes: Any) -> Rule:
    given: dict[str, Any] = {
        "id": "a/b",
        "status": "stable",
        "problem": "p",
        "why": "w",
        "remedy": "r",
        "safety": "lossless",
        "when": ("traffic.concurrency > 8", "gpu.count == 1"),
        "requires": ("support.weights.fp8 == native",),
        "applies": Application(action="none"),
        "references": (),
        "tests": (),
    }
    return Rule(**(given | changes))


def test_every_line_leaves_evidence_even_when_the_first_decides() -> None:
    finding = judge(rule(), {"traffic.concurrency": 2})
    assert finding.verdict == "silent"
    assert [(line.condition, line.left, line.right, line.holds) for line in finding.evidence] == [
        ("traffic.concurrency > 8", 2, 8, False),
        ("gpu.count == 1", None, 1, None),
        ("support.weights.fp8 == native", None, "native", None),
    ]
    assert finding.evidence[0].find_out == "" and finding.evidence[1].find_out


def test_a_condition_that_is_none_is_a_problem_of_the_rule() -> None:
    with pytest.raises(RuleProblem, match="unknown fact"):
        judge(rule(when=("no.fact > 3",)), {})


def test_diagnose_judges_every_rule_but_the_retired_ones_in_order() -> None:
    rules = (rule(id="b/b"), rule(id="a/c", status="retired"), rule(id="a/a", status="preview"))
    assert [finding.rule for finding in diagnose(profile(), Rulebook(rules))] == ["a/a", "b/b"]


def test_the_same_profile_gives_the_same_bytes() -> None:
    def judged(one: Profile) -> str:
        return "".join(finding.model_dump_json() for finding in diagnose(one, load_rules()))

    first = judged(profile())
    assert first == judged(profile())
    assert first == judged(Profile.model_validate_json(profile().model_dump_json()))


def test_every_shipped_rule_gets_a_finding_with_all_its_lines() -> None:
    rulebook = load_rules()
    findings = {finding.rule: finding for finding in diagnose(profile(), rulebook)}
    for one in rulebook.rules:
        lines = [evidence.condition for evidence in findings[one.id].evidence]
        assert lines == [*one.when, *one.requires]
        for evidence in findings[one.id].evidence:
            assert (evidence.holds is None) == bool(evidence.find_out)


def values(fact: Fact) -> st.SearchStrategy[Scalar]:
    if fact.kind == "bool":
        return st.booleans()
    if fact.kind == "number":
        return st.integers(0, 300) if fact.whole else st.floats(0, 300)
    return st.sampled_from(fact.values) if fact.values else st.sampled_from(["x", "1.2.1"])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_learning_a_fact_never_turns_a_definite_verdict(data: st.DataObject) -> None:
    one = data.draw(st.sampled_from(load_rules().rules))
    names = sorted({word for line in (*one.when, *one.requires) for word in line.split() if word in FACTS})
    facts = {name: data.draw(values(FACTS[name])) for name in names}
    forgotten = {name: data.draw(st.booleans()) for name in names}
    before = judge(one, {name: value for name, value in facts.items() if not forgotten[name]}).verdict
    if before != "unknown":
        assert judge(one, facts).verdict == before
