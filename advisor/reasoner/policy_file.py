"""A policy file (advise.yaml): what a platform team allows, read so that each problem is shown where it stands.

    techniques:
      allow: [weights-slow-decode/*, kv-cache-starves-batch/*]     absent: every rule
      forbid: [few-streams-read-all-weights/int4-awq]
    deployment:                          Deployment field -> the values that may be served
      weights: [bf16, fp8]
      speculation: never                 or methods: [mtp, eagle3]
    engines: {tensorrt-llm: ["1.2.*", ">=1.3"], vllm: any}
    accuracy:                            the first pattern that matches the model's name counts
      - {model: "meta-llama/*", budget_pct: 1, metric: perplexity}
    limits: {ttft_ms: 500, itl_ms: 30}
    spend: {gpu_hours: 20, hours: 6, disk_gib: 400}
    training: never                      or ask, or unasked
    tell: ["hf://our-org/*"]
    rules: overlay                       a folder beside this file
    suppress:
      - {rule: weights-slow-decode/nvfp4-weights, reason: the audit is open, until: 2027-03-31}

Every key may be left out; what is left out is not limited (training is asked for, nobody is told).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from advisor.reasoner.place import did_you_mean
from advisor.reasoner.rulebook import load_rules
from advisor.reasoner.source import Node, Source
from advisor.types import Deployment, Engine, ModelBudget, Policy, Scalar, SpeculationMethod, Suppression

KEYS = ("techniques", "deployment", "engines", "accuracy", "limits", "spend", "training", "tell", "rules", "suppress")
TRAINING = ("never", "ask", "unasked")
FIELDS = tuple(name for name in Deployment.model_fields if name != "keep_high_precision")
METRICS = ("perplexity", "kl", "top1", "command")
ENGINES = get_args(Engine.model_fields["name"].annotation)
PLACE = re.compile(r"\*$|[a-z][a-z0-9+.-]*://.")
VERSION = re.compile(r"(>=|<=|==|>|<)?\s*[0-9*][0-9A-Za-z.*+-]*")


def read_policy(path: Path, *, today: date | None = None) -> Policy:
    """The policy of a file. today: the day against which its suppressions are held.

    Raises the first problem: RuleProblem with file, line, column and caret, FileProblem for a file that can't be read.
    """
    source = Source(path, str(path), what="policy")
    if source.problems:
        raise source.problems[0]
    policy = _Reader(source, path.parent, today or date.today()).read()
    if source.problems:
        raise source.problems[0]
    return policy


class _Reader:
    """One policy file while it is read: every key's line is kept, for the reasons that name it."""

    def __init__(self, source: Source, folder: Path, today: date) -> None:
        self.source = source
        self.folder = folder
        self.today = today
        self.lines: dict[str, int] = {}

    def read(self) -> Policy:
        """The whole file; its problems are in the source's."""
        source = self.source
        if source.root is None:
            return Policy(file=source.name)
        nodes = source.mapping(source.root, KEYS, KEYS, what="a policy")
        overlay = self._overlay(nodes.get("rules"))
        known = tuple(rule.id for rule in load_rules(Path(overlay) if overlay else None, today=self.today).rules)
        techniques = self._section(nodes.get("techniques"), ("allow", "forbid"), "techniques")
        limits = self._numbers(nodes.get("limits"), ("ttft_ms", "itl_ms"), "limits")
        spend = self._numbers(nodes.get("spend"), ("gpu_hours", "hours", "disk_gib"), "spend")
        training = source.word(nodes["training"], TRAINING, "training") if "training" in nodes else "ask"
        for key in ("training", "tell"):
            if key in nodes:
                self._note(key, nodes[key])
        return Policy.model_validate(
            {
                "file": source.name,
                "allow": self._patterns(techniques.get("allow"), "allow", known),
                "forbid": self._patterns(techniques.get("forbid"), "forbid", known),
                "deployment": dict(self._fields(nodes.get("deployment"))),
                "engines": dict(self._engines(nodes.get("engines"))),
                "accuracy": tuple(self._budgets(nodes.get("accuracy"))),
                **limits,
                **spend,
                "training": training,
                "tell": tuple(self._place(item) for item in source.items(nodes.get("tell"), "tell")),
                "rules": overlay,
                "suppress": tuple(self._suppressions(nodes.get("suppress"), known)),
                "lines": self.lines,
            }
        )

    def _note(self, key: str, node: Node) -> None:
        self.lines[key] = self.source.place(node).line

    def _section(self, node: Node, keys: tuple[str, ...], what: str) -> dict[str, Node]:
        return {} if node is None else self.source.mapping(node, keys, keys, what=what)

    def _overlay(self, node: Node) -> str | None:
        if node is None:
            return None
        folder = self.folder / self.source.text(node, "rules")
        if not folder.is_dir():
            self.source.report(node, f"there is no folder {folder}", "give the overlay's folder, from this file's own on")
            return None
        return str(folder)

    def _patterns(self, node: Node, key: str, known: tuple[str, ...]) -> tuple[str, ...]:
        items = self.source.items(node, key)
        if node is not None and not items and key == "allow":
            self.source.report(node, "an empty list would allow nothing", "leave the key out to allow every rule")
        return tuple(self._pattern(item, key, known) for item in items)

    def _pattern(self, node: Node, key: str, known: tuple[str, ...]) -> str:
        pattern = self.source.text(node, f"a rule of {key}")
        if pattern and not any(fnmatchcase(rule, pattern) for rule in known):
            hint = did_you_mean(pattern, known) or "`advise rules list` lists them"
            self.source.report(node, f"no rule is called {pattern!r}", hint)
        self._note(f"{key} {pattern}", node)
        return pattern

    def _place(self, node: Node) -> str:
        pattern = self.source.text(node, "a place to tell")
        if pattern and not PLACE.match(pattern):
            hint = 'a place with its scheme: "hf://our-org/*", "s3://bucket/models/*", or "*" for every place'
            self.source.report(node, f"no place is called {pattern!r}", hint)
        return pattern

    def _fields(self, node: Node) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
        for key, value in self.source.pairs(node, "deployment", FIELDS) if node is not None else ():
            if key.value not in FIELDS:
                continue
            self._note(f"deployment.{key.value}", key)
            yield key.value, tuple(self._values(key.value, value))

    def _values(self, field: str, node: Node) -> Iterator[Scalar]:
        if field == "speculation":
            if getattr(node, "value", None) == "never":
                return
            for item in self._listed(node, field):
                yield self.source.word(item, get_args(SpeculationMethod), "a method of speculation")
            return
        for item in self._listed(node, field):
            value = self.source.scalar(item, field)
            try:
                Deployment.model_validate({field: value})
                if isinstance(value, bool) and not isinstance(getattr(Deployment(), field), bool):
                    raise ValueError
                yield value
            except (ValidationError, ValueError):
                choices = _choices(field)
                hint = did_you_mean(str(value), choices) or (
                    f"one of {', '.join(choices)}" if choices else "see `advise schema`"
                )
                self.source.report(item, f"{field} is never {value!r}", hint)

    def _listed(self, node: Node, field: str) -> list[Node]:
        if _is_scalar(node) and node.value:
            return [node]
        items = self.source.items(node, field)
        if not items:
            self.source.report(node, f"no value of {field} would be allowed", "list the allowed values, or leave the key out")
        return items

    def _engines(self, node: Node) -> Iterator[tuple[str, tuple[str, ...]]]:
        for key, value in self.source.pairs(node, "engines", ENGINES) if node is not None else ():
            if key.value not in ENGINES:
                continue
            self._note(f"engines.{key.value}", key)
            if getattr(value, "value", None) == "any":
                yield key.value, ()
                continue
            nodes = [value] if _is_scalar(value) else self.source.items(value, key.value)
            if not nodes:
                self.source.report(value, f"no version of {key.value} would be allowed", 'list versions, or write "any"')
            yield key.value, tuple(self._version(item) for item in nodes)

    def _version(self, node: Node) -> str:
        text = self.source.text(node, "a version")
        if text and not VERSION.fullmatch(text):
            self.source.report(node, f"{text!r} is no version", 'for example "1.2.1", "1.2.*" or ">=1.2"')
        return text

    def _budgets(self, node: Node) -> Iterator[ModelBudget]:
        keys = ("model", "budget_pct", "metric")
        for item in self.source.items(node, "accuracy"):
            found = self.source.mapping(item, keys, ("metric",), what="an accuracy budget")
            metric = self.source.text(found["metric"], "metric") if "metric" in found else "perplexity"
            if metric and metric not in METRICS and not metric.startswith("task:"):
                hint = did_you_mean(metric, METRICS) or f"one of {', '.join(METRICS)}, or task:NAME"
                self.source.report(found["metric"], f"unknown metric {metric!r}", hint)
            model = self.source.text(found.get("model"), "model")
            self._note(f"accuracy {model}", item)
            yield ModelBudget(model=model, budget_pct=self._positive(found.get("budget_pct"), "budget_pct", 0), metric=metric)

    def _numbers(self, node: Node, keys: tuple[str, ...], what: str) -> dict[str, float]:
        found = self._section(node, keys, what)
        for key, value in found.items():
            self._note(f"{what}.{key}", value)
        return {key: self._positive(value, key, None if what == "limits" else 0) for key, value in found.items()}

    def _positive(self, node: Node, what: str, least: float | None) -> float:
        value = float(self.source.number(node, what))
        if node is not None and (not math.isfinite(value) or value < 0 or (least is None and value == 0)):
            self.source.report(node, f"{what} cannot be {value:g}", "give a number above 0")
        return value

    def _suppressions(self, node: Node, known: Iterable[str]) -> Iterator[Suppression]:
        for item in self.source.items(node, "suppress"):
            found = self.source.mapping(item, ("rule", "reason", "until"), what="a suppression")
            rule = self.source.text(found.get("rule"), "rule")
            if rule and rule not in known:
                hint = did_you_mean(rule, known) or "`advise rules list` lists them"
                self.source.report(found["rule"], f"unknown rule {rule!r}", hint)
            until = self.source.text(found.get("until"), "until")
            self._note(f"suppress {rule}", item)
            yield Suppression(
                rule=rule,
                reason=self.source.text(found.get("reason"), "reason"),
                until=until,
                expired=self._expired(found.get("until"), until),
            )

    def _expired(self, node: Node, until: str) -> bool:
        try:
            return bool(until) and date.fromisoformat(until) < self.today
        except ValueError:
            self.source.report(node, f"{until!r} is not a date", "write it as 2027-03-31")
            return False


def _is_scalar(node: Node) -> bool:
    return getattr(node, "id", None) == "scalar"


def _choices(field: str) -> tuple[str, ...]:
    annotation: Any = Deployment.model_fields[field].annotation
    return ("true", "false") if annotation is bool else tuple(str(one) for one in get_args(annotation) if isinstance(one, str))
