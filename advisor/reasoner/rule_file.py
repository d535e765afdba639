"""One rule from its file: every key checked, every problem at its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, get_args

from pydantic import ValidationError

from advisor.errors import InputError, RuleProblem
from advisor.reasoner.condition import parse
from advisor.reasoner.place import Place, did_you_mean
from advisor.reasoner.source import Node, Source
from advisor.reasoner.vocabulary import FACTS, misfit
from advisor.types import Application, Basis, Deployment, Prediction, Reference, Rule, RuleCase, Scalar, Verdict

KEYS = (
    "id",
    "status",
    "seed_row",
    "problem",
    "why",
    "remedy",
    "safety",
    "when",
    "requires",
    "conflicts",
    "predicts",
    "applies",
    "references",
    "tests",
)
OPTIONAL = frozenset(("seed_row", "requires", "conflicts", "predicts"))
ACTIONS = ("serve", "quantize", "recalibrate", "mixed_precision", "qat", "distill", "draft", "none")
SEED_ROWS = range(1, 10)
OVERLAY = "overlay.yaml"
_METRICS = get_args(Prediction.model_fields["metric"].annotation)
_STATUSES = get_args(Rule.model_fields["status"].annotation)
_SAFETIES = get_args(Rule.model_fields["safety"].annotation)


class RuleFile(NamedTuple):
    """A rule and where its keys' values stand; rule is None where `problems` kept it from being read."""

    id: str
    rule: Rule | None
    places: dict[str, Place]
    problems: tuple[InputError, ...]


def read_folder(folder: Path, called: str) -> tuple[RuleFile, ...]:
    """Every rule file of a folder of problem folders, ordered by id. `called`: the folder's name in problems."""
    found = []
    for path in sorted(folder.rglob("*.y*ml")):
        parts = path.relative_to(folder).parts
        name = f"{called}/{'/'.join(parts)}"
        if parts == (OVERLAY,) or any(part.startswith(".") for part in parts):
            continue
        if len(parts) != 2 or path.suffix != ".yaml":
            hint = "a rule is a file <problem>/<remedy>.yaml"
            found.append(RuleFile(name, None, {}, (RuleProblem("this file is no rule of any problem", where=name, hint=hint),)))
        else:
            found.append(read_rule(path, f"{parts[0]}/{path.stem}", name))
    return tuple(found)


def read_rule(path: Path, rule_id: str, called: str) -> RuleFile:
    """The rule of one file; everything that is wrong with it is in the result's problems."""
    try:
        source = Source(path, called)
    except InputError as problem:
        return RuleFile(rule_id, None, {}, (problem,))
    if source.problems:
        return RuleFile(rule_id, None, {}, tuple(source.problems))
    nodes = source.mapping(source.root, KEYS, OPTIONAL, what="a rule", ordered=True)
    rule = Rule.model_construct(
        id=_id(source, nodes.get("id"), rule_id),
        status=source.word(nodes.get("status"), _STATUSES, "status"),
        seed_row=_seed_row(source, nodes.get("seed_row")),
        problem=source.text(nodes.get("problem"), "problem"),
        why=source.text(nodes.get("why"), "why"),
        remedy=source.text(nodes.get("remedy"), "remedy"),
        safety=source.word(nodes.get("safety"), _SAFETIES, "safety"),
        when=conditions(source, nodes.get("when"), "when"),
        requires=conditions(source, nodes.get("requires"), "requires"),
        conflicts=tuple(source.text(item, "a conflict") for item in source.items(nodes.get("conflicts"), "conflicts")),
        predicts=tuple(_prediction(source, item) for item in source.items(nodes.get("predicts"), "predicts")),
        applies=_application(source, nodes.get("applies")),
        references=tuple(_reference(source, item) for item in source.items(nodes.get("references"), "references")),
        tests=tuple(_case(source, item) for item in source.items(nodes.get("tests"), "tests")),
    )
    for key in ("when", "references", "tests"):
        if key in nodes and not getattr(rule, key):
            source.report(nodes[key], f"{key} is empty", f"a rule has at least one of its {key}")
    places = {key: source.place(node) for key, node in nodes.items()}
    return RuleFile(rule_id, None if source.problems else rule, places, tuple(source.problems))


def conditions(source: Source, node: Node, key: str) -> tuple[str, ...]:
    """The checked lines of `when` or `requires`, no line twice."""
    lines: list[str] = []
    for item in source.items(node, key):
        line = source.text(item, f"a line of {key}")
        if not line:
            continue
        try:
            parse(line, source.place(item))
        except RuleProblem as problem:
            source.problems.append(problem)
        if line in lines:
            source.report(item, "this line stands here twice", "keep one of them")
        lines.append(line)
    return tuple(lines)


def _id(source: Source, node: Node, rule_id: str) -> str:
    written = source.text(node, "id")
    if node is not None and written != rule_id:
        source.report(node, f"the id {written!r} is not the file's path", f"write {rule_id}, or move the file")
    return rule_id


def _seed_row(source: Source, node: Node) -> int | None:
    if node is None:
        return None
    row = source.scalar(node, "seed_row")
    if isinstance(row, bool) or not isinstance(row, int) or row not in SEED_ROWS:
        source.report(node, "seed_row is a row of the table, 1 to 9", "leave the key out for a rule beyond it")
        return None
    return row


def _prediction(source: Source, node: Node) -> Prediction:
    nodes = source.mapping(node, ("metric", "range", "basis", "when"), ("when",), what="a prediction")
    ends = [source.number(end, "an end of the range") for end in source.items(nodes.get("range"), "range")]
    if "range" in nodes and not (len(ends) == 2 and ends[0] <= ends[1]):
        source.report(nodes["range"], "a range is two numbers, the smaller first", "write [low, high]")
    return Prediction.model_construct(
        metric=source.word(nodes.get("metric"), _METRICS, "metric"),
        range=(float(ends[0]), float(ends[-1])) if ends else (0.0, 0.0),
        basis=source.word(nodes.get("basis"), get_args(Basis), "basis"),
        when=source.text(nodes.get("when"), "when"),
    )


def _application(source: Source, node: Node) -> Application:
    nodes = source.mapping(node, ("deployment", "action", "parameters"), ("deployment", "parameters"), what="applies")
    return Application.model_construct(
        deployment=_deployment(source, nodes.get("deployment")),
        action=source.word(nodes.get("action"), ACTIONS, "action"),
        parameters=dict(_entries(source, nodes.get("parameters"), "parameters")),
    )


def _deployment(source: Source, node: Node) -> dict[str, object]:
    """Each field is one of the Deployment's and its value one that the field takes."""
    fields: dict[str, object] = {}
    for name, value in _entries(source, node, "deployment", tuple(Deployment.model_fields)):
        fields[name] = value
        try:
            Deployment.model_validate({name: value})
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"]
            source.report(node, f"{name} cannot be {value!r}: {message[0].lower()}{message[1:]}")
    return fields


def _entries(source: Source, node: Node, what: str, known: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    if node is None:
        return
    for key, value in source.pairs(node, what, known):
        if not known or key.value in known:
            yield key.value, source.data(value)


def _reference(source: Source, node: Node) -> Reference:
    nodes = source.mapping(node, ("source", "says", "date"), ("date",), what="a reference")
    return Reference.model_construct(
        source=source.text(nodes.get("source"), "source"),
        says=source.text(nodes.get("says"), "says"),
        date=source.text(nodes.get("date"), "date"),
    )


def _case(source: Source, node: Node) -> RuleCase:
    nodes = source.mapping(node, ("name", "facts", "verdict"), what="a test")
    return RuleCase.model_construct(
        name=source.text(nodes.get("name"), "name"),
        facts=dict(_given(source, nodes.get("facts"))),
        verdict=source.word(nodes.get("verdict"), get_args(Verdict), "verdict"),
    )


def _given(source: Source, node: Node) -> Iterator[tuple[str, Scalar]]:
    """The facts that a case gives, each known and of its type."""
    if node is None:
        return
    for key, value_node in source.pairs(node, "facts"):
        fact = FACTS.get(key.value)
        if fact is None:
            source.report(key, f"unknown fact {key.value!r}", did_you_mean(key.value, FACTS) or "`advise facts` lists them all")
            continue
        value = source.scalar(value_node, fact.name)
        problem = misfit(fact, value)
        if problem:
            source.report(value_node, problem, "leave a fact out that is not known")
        yield fact.name, value
