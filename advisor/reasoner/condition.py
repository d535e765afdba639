"""One comparison of a rule: `fact op value`, checked when it is read, evaluated with three values.

    baseline.kv_share > 0.3
    support.weights.fp8 in [native, fallback]
    measured.accuracy_loss_pct > goal.accuracy_budget_pct

A fact on the left; a fact or a literal on the right: a number, true, false, a word (quoted where it has spaces or dots), or for
`in` and `not in` a list of them. No `or` (that is a second rule), no arithmetic (that belongs in a fact).
A fact that is not known makes the comparison unknown (None), never false.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from advisor.reasoner.place import Place, did_you_mean
from advisor.reasoner.vocabulary import FACTS, Fact
from advisor.types import Evidence, Scalar

ORDERINGS = ("<", "<=", ">", ">=")
MEMBERSHIPS = ("in", "not in")
_LINE = re.compile(
    r"\s*(?P<left>[^\s<>=!]+)(?:\s*(?P<sign><=|>=|==|!=|<>|<|>|=)|\s+(?P<word>not\s+in|in|is)(?=[\s\[]))\s*(?P<right>.*?)\s*"
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FACT = re.compile(r"[A-Za-z_]\w*(\.\w+)+")
_WORD = re.compile(r"[A-Za-z][\w:/-]*")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


class Condition(NamedTuple):
    """A checked comparison."""

    text: str
    left: str
    """a fact"""
    operator: str
    right: Scalar | tuple[Scalar, ...]
    """the literal, or a fact's name where right_is_fact"""
    right_is_fact: bool = False


class _Fault(Exception):
    """What is wrong with characters start to start + length of a line."""

    def __init__(self, what: str, start: int, length: int, hint: str = "") -> None:
        super().__init__(what)
        self.what, self.start, self.length, self.hint = what, start, length, hint


def parse(line: str, place: Place | None = None) -> Condition:
    """The comparison that a line says. Raises RuleProblem with the place, a caret and a proposal."""
    try:
        return _parse(line)
    except _Fault as fault:
        place = place or Place("condition", 1, 1, line)
        raise place.problem(fault.what, hint=fault.hint, start=fault.start, length=fault.length) from None


def how_to_find_out(name: str) -> str:
    """How to learn a fact, wherever it is unknown."""
    return FACTS[name].find_out


def evaluate(condition: Condition, facts: Mapping[str, Scalar], find_out: Callable[[str], str] = how_to_find_out) -> Evidence:
    """The comparison with both sides' values; a fact that `facts` lacks is as unknown as one that is None."""
    left, right = _sides(condition, facts)
    sides = [(condition.left, left)] + ([(str(condition.right), right)] if condition.right_is_fact else [])
    unknown = [name for name, value in sides if value is None]
    return Evidence(
        condition=condition.text,
        left=left,
        right=f"[{', '.join(map(str, right))}]" if isinstance(right, tuple) else right,
        holds=None if unknown else compare(left, condition.operator, right),
        find_out="; ".join(f"{name}: {find_out(name)}" for name in unknown),
    )


def holds(condition: Condition, facts: Mapping[str, Scalar]) -> bool | None:
    """Whether the comparison holds, without evidence; None where a side is not known."""
    left, right = _sides(condition, facts)
    return None if left is None or right is None else compare(left, condition.operator, right)


def _sides(condition: Condition, facts: Mapping[str, Scalar]) -> tuple[Scalar, Scalar | tuple[Scalar, ...]]:
    right = _known(facts.get(str(condition.right))) if condition.right_is_fact else condition.right
    return _known(facts.get(condition.left)), right


def compare(left: Scalar, operator: str, right: Scalar | tuple[Scalar, ...]) -> bool:
    """`left operator right` for two known values of comparable types."""
    if operator == "==":
        return left == right
    if operator == "!=":
        return left != right
    if isinstance(right, tuple):
        return (left in right) is (operator == "in")
    if not isinstance(left, (int, float)) or not isinstance(right, (int, float)):
        raise TypeError(f"{left!r} {operator} {right!r}: only numbers have an order")
    if operator in ("<", "<="):
        return left < right or (operator == "<=" and left == right)
    return left > right or (operator == ">=" and left == right)


def _known(value: Scalar) -> Scalar:
    return None if isinstance(value, float) and math.isnan(value) else value


@cache
def _parse(line: str) -> Condition:
    match = _LINE.fullmatch(line)
    if match is None:
        start = len(line) - len(line.lstrip())
        raise _Fault(
            "this is not a comparison", start, len(line.strip()), "write `fact op value`, op one of < <= > >= == != in, not in"
        )
    operator = match["sign"] or " ".join(match["word"].split())
    if operator in ("=", "is", "<>"):
        start = match.start("sign") if match["sign"] else match.start("word")
        raise _Fault(
            f"{operator!r} is not an operator", start, len(operator), f"did you mean {'!=' if operator == '<>' else '=='}?"
        )
    fact = _fact(match["left"], match.start("left"))
    if operator in ORDERINGS and fact.kind != "number":
        raise _Fault(
            f"{fact.name} is {_kind_of(fact)}, which has no order",
            match.start("left"),
            len(fact.name),
            "compare it with ==, != or in",
        )
    right, start = match["right"], match.start("right")
    if not right:
        raise _Fault("there is nothing to compare with", max(0, len(line.rstrip()) - 1), 1, "write `fact op value`")
    if operator in MEMBERSHIPS:
        return Condition(line.strip(), fact.name, operator, _list(fact, right, start))
    if _FACT.fullmatch(right):
        other = _fact(right, start)
        _check_pair(fact, other, start)
        return Condition(line.strip(), fact.name, operator, other.name, right_is_fact=True)
    return Condition(line.strip(), fact.name, operator, _literal(fact, right, start))


def _fact(name: str, start: int) -> Fact:
    fact = FACTS.get(name)
    if fact is not None:
        return fact
    if _NUMBER.fullmatch(name):
        raise _Fault("a fact stands on the left, its value on the right", start, len(name), "turn the comparison round")
    raise _Fault(f"unknown fact {name!r}", start, len(name), did_you_mean(name, FACTS) or "`advise facts` lists them all")


def _check_pair(left: Fact, right: Fact, start: int) -> None:
    if left.kind != right.kind or (left.kind == "enum" and not set(left.values) & set(right.values)):
        what = f"{left.name} is {_kind_of(left)} and {right.name} is {_kind_of(right)}: they can't be compared"
        raise _Fault(what, start, len(right.name), f"{left.name}: {left.doc}")


def _list(fact: Fact, text: str, start: int) -> tuple[Scalar, ...]:
    if not (text.startswith("[") and text.endswith("]")):
        raise _Fault("`in` needs a list", start, len(text), f"write [{text}]")
    items = []
    for match in re.finditer(r"[^,]+", text[1:-1]):
        item = match[0].strip()
        items.append(_literal(fact, item, start + 1 + match.start() + match[0].index(item)))
    if not items:
        raise _Fault("the list is empty", start, len(text), f"{fact.name}: {fact.doc}")
    return tuple(items)


def _literal(fact: Fact, text: str, start: int) -> Scalar:
    """The literal that `text` says, of the type of `fact`."""
    value = _value(text, start)
    if value == "unknown" and fact.kind != "string":
        hint = "an unknown fact makes the verdict unknown by itself"
        raise _Fault("a condition can't ask whether a fact is unknown", start, len(text), hint)
    if fact.kind == "number" and not (isinstance(value, (int, float)) and not isinstance(value, bool)):
        hint = did_you_mean(text, FACTS) if "." in text or "_" in text else ""
        raise _Fault(
            f"{fact.name} is a number and {text!r} is none", start, len(text), hint or f"its unit: {fact.unit or 'none'}"
        )
    if fact.kind == "bool" and not isinstance(value, bool):
        raise _Fault(f"{fact.name} is true or false, not {text!r}", start, len(text), "write true or false")
    if fact.kind == "enum" and value not in fact.values:
        choices = "one of " + ", ".join(fact.values)
        raise _Fault(f"{fact.name} is never {text!r}", start, len(text), did_you_mean(str(text), fact.values) or choices)
    if fact.kind == "string" and not isinstance(value, str):
        raise _Fault(f"{fact.name} is text and {text!r} is none", start, len(text), f'put it in quotes: "{text}"')
    return value


def _value(text: str, start: int) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    if _QUOTED.fullmatch(text):
        return text[1:-1]
    if _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    if _WORD.fullmatch(text):
        return "unknown" if text.lower() in ("null", "none", "unknown") else text
    raise _Fault(*_explain(text, start))


def _explain(text: str, start: int) -> tuple[str, int, int, str]:
    """Why `text` is no literal: what, start, length, hint."""
    joined = re.search(r"\s(or|and|\|\||&&)\s", text)
    if joined:
        hint = "a second rule is an `or`" if joined[1] in ("or", "||") else "all lines must hold: write a second line"
        return "one comparison a line", start + joined.start(1), len(joined[1]), hint
    measured = re.fullmatch(rf"({_NUMBER.pattern})\s*([%A-Za-z/]+)", text)
    if measured:
        unit = measured[measured.lastindex or 1]
        return "a number here carries no unit", start + len(text) - len(unit), len(unit), "the fact has one: see `advise facts`"
    arithmetic = re.search(r"[*/+-]", text)
    if arithmetic:
        return "no arithmetic in a condition", start + arithmetic.start(), 1, "name the result as a fact"
    if text.startswith("["):
        return "a list belongs to `in` or `not in`", start, len(text), "write `fact in [...]`"
    return f"{text!r} is neither a number, a word nor a fact", start, len(text), "put text with spaces in quotes"


def _kind_of(fact: Fact) -> str:
    return {"number": "a number", "bool": "true or false", "enum": f"one of {', '.join(fact.values)}", "string": "text"}[
        fact.kind
    ]
