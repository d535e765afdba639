"""A condition line: what it says, what is wrong with it, and its three values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.errors import RuleProblem
from advisor.reasoner.condition import Condition, evaluate, parse
from advisor.reasoner.place import Place
from advisor.reasoner.vocabulary import FACTS

READ = [
    ("baseline.kv_share > 0.3", "baseline.kv_share", ">", 0.3),
    ("  traffic.concurrency<=32 ", "traffic.concurrency", "<=", 32),
    ("traffic.rate < 1e3", "traffic.rate", "<", 1000.0),
    ("gain.fp8 >= -.5", "gain.fp8", ">=", -0.5),
    ("model.is_moe == true", "model.is_moe", "==", True),
    ("goal.objective != latency", "goal.objective", "!=", "latency"),
    ("engine.batching == in-flight", "engine.batching", "==", "in-flight"),
    ("goal.accuracy_metric == task:mmlu", "goal.accuracy_metric", "==", "task:mmlu"),
    ('gpu.name == "NVIDIA H100 80GB HBM3"', "gpu.name", "==", "NVIDIA H100 80GB HBM3"),
    ("engine.version != '1.2.1'", "engine.version", "!=", "1.2.1"),
    ("support.weights.fp8 in [native, fallback]", "support.weights.fp8", "in", ("native", "fallback")),
    ("model.weight_bits not in [4,8]", "model.weight_bits", "not in", (4, 8)),
]


@pytest.mark.parametrize(("line", "left", "operator", "right"), READ, ids=[line for line, *_ in READ])
def test_reads(line: str, left: str, operator: str, right: object) -> None:
    assert parse(line) == Condition(line.strip(), left, operator, right)


def test_a_fact_may_stand_on_the_right() -> None:
    condition = parse("measured.ttft_ms > goal.ttft_ms")
    assert condition.right_is_fact and condition.right == "goal.ttft_ms"


WRONG = [
    ("baseline.kv_shear > 0.3", "unknown fact", "baseline.kv_shear", "did you mean baseline.kv_share"),
    ("measured.ttft_ms > goal.tftt_ms", "unknown fact", "goal.tftt_ms", "did you mean goal.ttft_ms"),
    ("wholly.else == 1", "unknown fact", "wholly.else", "advise facts"),
    ("gpu.memory_gib > native", "is a number", "native", "its unit: GiB"),
    ("support.weights.fp8 > native", "has no order", "support.weights.fp8", "=="),
    ("gpu.name < 'a'", "has no order", "gpu.name", "=="),
    ("model.is_moe >= true", "has no order", "model.is_moe", "=="),
    ("support.weights.fp8 == nativ", "is never 'nativ'", "nativ", "did you mean native?"),
    ("goal.objective in [latency, speed]", "is never 'speed'", "speed", "one of throughput, latency, cost"),
    ("model.is_moe == 1", "is true or false", "1", "true or false"),
    ("model.is_moe == yes", "is true or false", "yes", "true or false"),
    ("gpu.name == 100", "is text", "100", '"100"'),
    ("gain.fp8 > gpu.name", "can't be compared", "gpu.name", "gain.fp8"),
    ("goal.objective == model.attention", "can't be compared", "model.attention", ""),
    ("traffic.rate in 3", "needs a list", "3", "write [3]"),
    ("traffic.rate in []", "list is empty", "[]", ""),
    ("traffic.rate == [1, 2]", "belongs to `in`", "[1, 2]", "in [...]"),
    ("traffic.rate = 3", "is not an operator", "=", "did you mean ==?"),
    ("traffic.rate <> 3", "is not an operator", "<>", "did you mean !=?"),
    ("model.is_moe is true", "is not an operator", "is", "did you mean ==?"),
    ("traffic.rate > 5 or traffic.rate < 3", "one comparison a line", "or", "a second rule"),
    ("support.weights.fp8 == native and gpu.count > 1", "one comparison a line", "and", "a second line"),
    ("traffic.rate > 2 * traffic.concurrency", "no arithmetic", "*", "name the result as a fact"),
    ("traffic.rate > 1e3/60", "no arithmetic", "/", ""),
    ("traffic.rate > 5ms", "no unit", "ms", "advise facts"),
    ("traffic.rate > 30 %", "no unit", "%", ""),
    ("5 < gain.fp8", "a fact stands on the left", "5", "turn"),
    ("gain.fp8 >", "nothing to compare with", ">", ""),
    ("gain.fp8", "not a comparison", "gain.fp8", "fact op value"),
    ("", "not a comparison", "", ""),
    ("goal.objective == null", "is unknown", "null", "by itself"),
    ("support.weights.fp8 == unknown", "is unknown", "unknown", "by itself"),
    ("gpu.name == NVIDIA H100", "neither a number", "NVIDIA H100", "quotes"),
    ("traffic.rate > nan", "is a number", "nan", ""),
]


@pytest.mark.parametrize(("line", "what", "marked", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_says_what_is_wrong_and_where(line: str, what: str, marked: str, hint: str) -> None:
    prefix = "  - "
    with pytest.raises(RuleProblem) as caught:
        parse(line, Place("rules/a/b.yaml", 7, len(prefix) + 1, prefix + line))
    problem = caught.value
    assert what in problem.what
    assert hint in problem.hint
    where, shown, carets = problem.where.splitlines()
    assert shown.strip() == (prefix + line).strip()
    start, length = carets.index("^"), carets.count("^")
    if marked:
        assert shown[start : start + length] == marked
    indent = len(shown) - len(prefix + line)
    assert where == f"rules/a/b.yaml:7:{start - indent + 1}"


def test_without_a_place_the_line_itself_is_shown() -> None:
    with pytest.raises(RuleProblem, match=r"unknown fact 'a\.b'") as caught:
        parse("a.b > 3")
    assert str(caught.value) == (
        "error: unknown fact 'a.b'\nwhere: condition:1:1\n       a.b > 3\n       ^^^\nnext:  `advise facts` lists them all"
    )


VALUES = [
    ("gpu.count > 2", {"gpu.count": 3}, True),
    ("gpu.count > 2", {"gpu.count": 2}, False),
    ("gpu.count >= 2", {"gpu.count": 2}, True),
    ("gpu.count < 2", {"gpu.count": 2}, False),
    ("gpu.count <= 2", {"gpu.count": 2}, True),
    ("gpu.count == 2", {"gpu.count": 2.0}, True),
    ("gpu.count != 2", {"gpu.count": 2}, False),
    ("gpu.count in [1, 2]", {"gpu.count": 2}, True),
    ("gpu.count not in [1, 2]", {"gpu.count": 2}, False),
    ("goal.objective in [latency]", {"goal.objective": "cost"}, False),
    ("goal.objective not in [latency]", {"goal.objective": "cost"}, True),
    ("model.is_moe == false", {"model.is_moe": False}, True),
    ("measured.ttft_ms > goal.ttft_ms", {"measured.ttft_ms": 3.0, "goal.ttft_ms": 2.0}, True),
    ("measured.ttft_ms > goal.ttft_ms", {"measured.ttft_ms": 3.0}, None),
    ("measured.ttft_ms > goal.ttft_ms", {"goal.ttft_ms": 3.0}, None),
    ("gpu.count > 2", {}, None),
    ("gpu.count != 2", {"gpu.count": None}, None),
    ("goal.objective not in [latency]", {"goal.objective": None}, None),
    ("gain.fp8 > 1", {"gain.fp8": float("nan")}, None),
]


@pytest.mark.parametrize(("line", "facts", "holds"), VALUES)
def test_three_values(line: str, facts: dict[str, object], holds: bool | None) -> None:
    assert evaluate(parse(line), facts).holds is holds


def test_evidence_shows_both_sides_and_how_to_find_out() -> None:
    known = evaluate(parse("measured.ttft_ms > goal.ttft_ms"), {"measured.ttft_ms": 3.0, "goal.ttft_ms": 2.0})
    assert (known.left, known.right, known.find_out) == (3.0, 2.0, "")
    unknown = evaluate(parse("measured.ttft_ms > goal.ttft_ms"), {"goal.ttft_ms": 2.0})
    assert (unknown.left, unknown.right) == (None, 2.0)
    assert unknown.find_out == f"measured.ttft_ms: {FACTS['measured.ttft_ms'].find_out}"
    listed = evaluate(parse("gpu.count in [1, 2]"), {"gpu.count": 4})
    assert (listed.left, listed.right) == (4, "[1, 2]")


numbers = st.floats(-1e6, 1e6)


@given(left=numbers, right=numbers)
def test_an_operator_and_its_opposite_never_agree(left: float, right: float) -> None:
    facts = {"gain.fp8": left}
    for one, other in (("<", ">="), (">", "<="), ("==", "!=")):
        answers = {evaluate(Condition("", "gain.fp8", sign, right), facts).holds for sign in (one, other)}
        assert answers == {True, False}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_politely(line: str) -> None:
    try:
        parse(line)
    except RuleProblem as problem:
        assert problem.what and "^" in problem.where


@given(st.sampled_from(sorted(FACTS)), st.sampled_from(["<", "==", "in", "not in", ">="]), st.text(max_size=20))
def test_any_right_side_is_read_or_refused_politely(fact: str, operator: str, right: str) -> None:
    try:
        parse(f"{fact} {operator} {right}")
    except RuleProblem as problem:
        assert problem.what
