"""The rule set itself: its cases, the test of the cases, and that it says what the estimator says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sample_profiles import gpu, large_model, model

from advisor.estimator.deployment import estimate
from advisor.reasoner.cases import check_rule, mutants, run_cases
from advisor.reasoner.condition import parse
from advisor.reasoner.explanation import rule_docs
from advisor.reasoner.rule_file import read_rule
from advisor.reasoner.rulebook import load_rules
from advisor.reasoner.vocabulary import FACTS
from advisor.types import Deployment, Estimate, Load, Prediction, Rule, RuleCase

RULES = load_rules().rules
DOCS = Path(__file__).parents[1] / "docs" / "rules"
FIXTURES = Path(__file__).parent / "fixtures" / "rules"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_cases_of_a_rule_pass_and_notice_every_threshold(rule: Rule) -> None:
    assert check_rule(rule).failures == ()


def test_every_row_of_the_table_is_covered() -> None:
    assert {rule.seed_row for rule in RULES if rule.status != "retired"} >= set(range(1, 10))


def test_every_fact_that_a_rule_names_exists() -> None:
    for rule in RULES:
        for line in (*rule.when, *rule.requires):
            condition = parse(line)
            assert condition.left in FACTS and (not condition.right_is_fact or condition.right in FACTS)
        for case in rule.tests:
            assert set(case.facts) <= set(FACTS)


def test_a_case_gives_only_facts_that_its_rule_asks_for() -> None:
    for rule in RULES:
        conditions = [parse(line) for line in (*rule.when, *rule.requires)]
        asked = {one.left for one in conditions} | {str(one.right) for one in conditions if one.right_is_fact}
        for case in rule.tests:
            assert set(case.facts) <= asked, (rule.id, case.name)


def test_rules_that_set_a_field_to_different_values_conflict() -> None:
    for one in RULES:
        for other in RULES:
            for field, value in one.applies.deployment.items():
                if other.applies.deployment.get(field, value) != value:
                    assert other.id in one.conflicts, f"{one.id} and {other.id} both set {field}"


METRICS: dict[str, tuple[str, Callable[[Estimate], float | None]]] = {
    "weight_memory": ("weights", lambda made: made.memory_gib.weights),
    "kv_memory": ("kv_cache", lambda made: made.memory_gib.kv_cache),
    "max_concurrency": ("kv_cache", lambda made: made.max_concurrency),
}
"""metric -> the field that is predicted to change it, and how it is read"""


def arithmetic() -> list[tuple[Rule, Prediction]]:
    """The arithmetic predictions of what a change of a numeric format does to memory."""
    return [
        (rule, prediction)
        for rule in RULES
        for prediction in rule.predicts
        if prediction.basis == "arithmetic" and prediction.metric in METRICS
        if METRICS[prediction.metric][0] in rule.applies.deployment
    ]


@pytest.mark.parametrize(("rule", "prediction"), arithmetic(), ids=lambda one: one.id if isinstance(one, Rule) else one.metric)
def test_arithmetic_predictions_are_the_estimators(rule: Rule, prediction: Prediction) -> None:
    load = Load(isl=8192, osl=512, concurrency=4)
    field, read = METRICS[prediction.metric]
    changes = rule.applies.deployment
    others = {name: value for name, value in changes.items() if name != field}
    for one, ranks in ((model(), 1), (large_model(), 4)):
        plain = Deployment(tensor_parallel=ranks).model_copy(update=others)
        was = read(estimate(one, gpu(count=ranks), plain, load))
        now = read(estimate(one, gpu(count=ranks), plain.model_copy(update=changes), load))
        assert was and now
        low, high = prediction.range
        assert low * 0.995 <= now / was <= high * 1.005, f"{prediction.metric}: {now / was:.3f} for {one.name}"


def test_there_are_arithmetic_predictions_to_test() -> None:
    assert len(arithmetic()) >= 8


def test_the_pages_of_the_rules_are_up_to_date() -> None:
    pages = {path.relative_to(DOCS).as_posix(): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    expected = rule_docs(load_rules())
    assert sorted(pages) == sorted(expected), "run python docs/generate.py"
    for name, text in expected.items():
        assert pages[name] == text, f"{name}: run python docs/generate.py"


# ---------------------------------------------------------------- the test of the cases, tested


def fixture(name: str = "shrink-cache") -> Rule:
    found = read_rule(FIXTURES / "cache-too-small" / f"{name}.yaml", f"cache-too-small/{name}", name).rule
    assert found is not None
    return found


def without(rule: Rule, name: str) -> Rule:
    left = tuple(case for case in rule.tests if case.name != name)
    assert len(left) == len(rule.tests) - 1
    return rule.model_copy(update={"tests": left})


@pytest.mark.parametrize("name", ["shrink-cache", "take-fewer"])
def test_the_fixtures_own_cases_are_complete(name: str) -> None:
    assert check_rule(fixture(name)).failures == ()


def test_a_case_with_another_verdict_fails() -> None:
    rule = fixture()
    wrong = rule.model_copy(
        update={"tests": (*rule.tests, RuleCase(name="x", facts={"baseline.kv_share": 0.9}, verdict="fires"))}
    )
    assert check_rule(wrong).failures == ("cache-too-small/shrink-cache: 'x' should be fires and is unknown",)
    assert [result.passed for result in run_cases(wrong)] == [True] * 5 + [False]


MISSED = [
    ("exactly there", "baseline.kv_share >= 0.3"),
    ("exactly there", "baseline.kv_share > 0.27"),
    ("all is well", "gpu.count > 2"),
    ("all is well", "measured.accuracy_loss_pct < goal.accuracy_budget_pct"),
    ("all is well", "measured.accuracy_loss_pct <= 0.9 * goal.accuracy_budget_pct"),
    ("one GPU", "gpu.count >= 1"),
    ("a little too lossy", "measured.accuracy_loss_pct <= 1.1 * goal.accuracy_budget_pct"),
]


@pytest.mark.parametrize(("name", "changed"), MISSED)
def test_a_boundary_that_no_case_holds_is_noticed(name: str, changed: str) -> None:
    unnoticed = check_rule(without(fixture(), name)).unnoticed
    assert changed in [mutant.changed for mutant in unnoticed]


def test_a_verdict_that_no_case_has_is_noticed() -> None:
    rule = fixture()
    only = rule.model_copy(update={"tests": (rule.tests[2],)})
    assert check_rule(only).missing == ("silent", "blocked or unknown")


def test_a_line_between_two_whole_facts_is_moved_by_one() -> None:
    rule = fixture("take-fewer").model_copy(update={"when": ("gpu.count > baseline.tensor_parallel",)})
    assert [mutant.changed for mutant in mutants(rule)] == [
        "gpu.count >= baseline.tensor_parallel",
        "gpu.count > baseline.tensor_parallel + 1",
        "gpu.count > baseline.tensor_parallel - 1",
    ]
    cases = [
        RuleCase(name=str(count), facts={"gpu.count": count, "baseline.tensor_parallel": 2}, verdict=verdict)
        for count, verdict in ((2, "silent"), (3, "fires"))
    ]
    assert check_rule(rule.model_copy(update={"tests": tuple(cases)})).failures == ()
    assert len(check_rule(rule.model_copy(update={"tests": (cases[0],)})).unnoticed) == 1


def test_every_numeric_line_is_moved_up_down_and_flipped() -> None:
    assert [mutant.changed for mutant in mutants(fixture())] == [
        "baseline.kv_share >= 0.3",
        "baseline.kv_share > 0.33",
        "baseline.kv_share > 0.27",
        "gpu.count > 2",
        "gpu.count >= 3",
        "gpu.count >= 1",
        "measured.accuracy_loss_pct < goal.accuracy_budget_pct",
        "measured.accuracy_loss_pct <= 1.1 * goal.accuracy_budget_pct",
        "measured.accuracy_loss_pct <= 0.9 * goal.accuracy_budget_pct",
    ]
