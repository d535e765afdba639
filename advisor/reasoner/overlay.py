"""An organisation's own folder over the rules: it adds rules, tightens some and switches some off, each with reason and expiry.

    overlay.yaml
        suppress:
          - {rule: weights-slow-decode/fp8-weights, reason: our FP8 audit is open, until: 2027-03-31}
        tighten:
          - rule: kv-cache-starves-batch/fp8-kv-cache
            requires: [model.is_mla == false]
            reason: MLA in FP8 is not validated here
            until: 2027-03-31
    <problem>/<remedy>.yaml     further rules, written like the shipped ones, under ids of their own

Tightening only adds conditions. An entry holds through the day of `until`; after it, it is not applied but still reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from os.path import isdir
from pathlib import Path
from typing import NamedTuple

from advisor.errors import FileProblem, InputError
from advisor.reasoner.place import did_you_mean
from advisor.reasoner.rule_file import OVERLAY, RuleFile, conditions, read_folder
from advisor.reasoner.source import Node, Source
from advisor.types import Override, Rule


class Entry(NamedTuple):
    """One suppression (no lines) or tightening of overlay.yaml."""

    override: Override
    when: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


class Overlay(NamedTuple):
    """What a folder says, and what is wrong with it."""

    files: tuple[RuleFile, ...]
    entries: tuple[Entry, ...]
    problems: tuple[InputError, ...]


def read_overlay(folder: Path, shipped: Iterable[str], today: date) -> Overlay:
    """An overlay folder; everything that is wrong with it is in the result's problems. Raises FileProblem without a folder."""
    if not isdir(folder):  # noqa: PTH112 (Path.is_dir raises for a name too long)
        raise FileProblem("this is not a folder of rules", where=str(folder), hint="give a folder with overlay.yaml or rules")
    files = read_folder(folder, str(folder))
    known = set(shipped)
    problems = [problem for file in files for problem in file.problems]
    for file in files:
        if file.id in known and "id" in file.places:
            hint = "give it an id of its own; overlay.yaml tightens or suppresses the other"
            problems.append(file.places["id"].problem(f"{file.id} is already a rule", hint=hint, length=len(file.id)))
    path = folder / OVERLAY
    if not path.exists():
        if not files:
            problems.append(FileProblem("this folder has neither overlay.yaml nor rules", where=str(folder)))
        return Overlay(files, (), tuple(problems))
    try:
        source = Source(path, str(path))
    except InputError as problem:
        return Overlay(files, (), (*problems, problem))
    entries = [] if source.problems else _entries(source, known | {file.id for file in files}, today)
    return Overlay(files, tuple(entries), (*problems, *source.problems))


def apply_overlay(overlay: Overlay, rules: Mapping[str, Rule]) -> tuple[dict[str, Rule], tuple[Override, ...]]:
    """The rules under an overlay without problems, and every override, expired ones too."""
    result = dict(rules)
    overrides = []
    for file in overlay.files:
        if file.rule is not None:
            result[file.id] = file.rule
            where = next(iter(file.places.values())).file
            overrides.append(Override(rule=file.id, change="added", reason="a rule of this folder", source=where))
    for override, when, requires in overlay.entries:
        overrides.append(override)
        if override.expired:
            continue
        rule = result.get(override.rule)
        if override.change == "suppressed":
            result.pop(override.rule, None)
        elif rule is not None:
            stricter = {"when": _joined(rule.when, when), "requires": _joined(rule.requires, requires)}
            result[override.rule] = rule.model_copy(update=stricter)
    return result, tuple(sorted(overrides, key=lambda override: (override.rule, override.change)))


def _joined(lines: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return (*lines, *(line for line in more if line not in lines))


def _entries(source: Source, known: set[str], today: date) -> list[Entry]:
    nodes = source.mapping(source.root, ("suppress", "tighten"), ("suppress", "tighten"), what="an overlay")
    entries = []
    for item in source.items(nodes.get("suppress"), "suppress"):
        found = source.mapping(item, ("rule", "reason", "until"), what="a suppression")
        entries.append(Entry(_override(source, found, "suppressed", known, today)))
    for item in source.items(nodes.get("tighten"), "tighten"):
        keys = ("rule", "when", "requires", "reason", "until")
        found = source.mapping(item, keys, ("when", "requires"), what="a tightening")
        when = conditions(source, found.get("when"), "when")
        requires = conditions(source, found.get("requires"), "requires")
        if not when and not requires:
            source.report(item, "a tightening adds conditions", "give it lines under when or requires")
        entries.append(Entry(_override(source, found, "tightened", known, today), when, requires))
    return entries


def _override(source: Source, nodes: Mapping[str, Node], change: str, known: set[str], today: date) -> Override:
    rule = source.text(nodes.get("rule"), "rule")
    if rule and rule not in known:
        source.report(nodes["rule"], f"unknown rule {rule!r}", did_you_mean(rule, known) or "`advise rules list` lists them")
    until = source.text(nodes.get("until"), "until")
    try:
        expired = bool(until) and date.fromisoformat(until) < today
    except ValueError:
        source.report(nodes["until"], f"{until!r} is not a date", "write it as 2027-03-31")
        expired = False
    return Override.model_validate(
        {
            "rule": rule,
            "change": change,
            "reason": source.text(nodes.get("reason"), "reason"),
            "until": until,
            "expired": expired,
            "source": source.name,
        }
    )
