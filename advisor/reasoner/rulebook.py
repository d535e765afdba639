"""The rules as a whole: loaded for judging, or linted so that every problem is shown at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from os.path import isdir
from pathlib import Path

from advisor import library
from advisor.errors import FileProblem, InputError, UnknownName
from advisor.reasoner.overlay import apply_overlay, read_overlay
from advisor.reasoner.place import Place, did_you_mean
from advisor.reasoner.rule_file import OVERLAY, RuleFile, read_folder
from advisor.types import Override, Rule


@dataclass(frozen=True)
class Rulebook:
    """The rules that are judged, ordered by id, and what an overlay changed."""

    rules: tuple[Rule, ...]
    overrides: tuple[Override, ...] = ()
    fingerprint: str = ""
    """of the shipped files"""

    def rule(self, rule_id: str) -> Rule:
        """The rule of that id. Raises UnknownName with the nearest ones."""
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise UnknownName("rule", rule_id, [rule.id for rule in self.rules], hint="`advise rules list` lists them")


def load_rules(overlay: Path | None = None, *, today: date | None = None) -> Rulebook:
    """The shipped rules, changed by an overlay folder where one is given.

    today: the day against which the overlay's expiry dates are held. Raises the first problem: RuleProblem with file, line
    and caret, or FileProblem.
    """
    fingerprint = library.fingerprint(library.RULES)
    rules = _shipped(library.RULES, fingerprint).copy()
    overrides: tuple[Override, ...] = ()
    if overlay is not None:
        changes = read_overlay(overlay, rules, today or date.today())
        _raise_first(changes.problems)
        _raise_first(_unknown_conflicts(changes.files, set(rules) | {file.id for file in changes.files}))
        rules, overrides = apply_overlay(changes, rules)
    return Rulebook(tuple(rules[rule_id] for rule_id in sorted(rules)), overrides, fingerprint)


@lru_cache(maxsize=1)
def _shipped(folder: Path, fingerprint: str) -> dict[str, Rule]:
    """The rules of a folder by id, read again when a file of it has changed (its fingerprint then has)."""
    files = read_folder(folder, "rules")
    _raise_first(problem for file in files for problem in file.problems)
    return {file.id: file.rule for file in files if file.rule is not None}


def rules_in(folder: Path | None = None) -> tuple[Rule, ...]:
    """The rules that are written in a folder (the shipped one without), for testing them by themselves, ordered by id.

    Raises the first problem of their files; FileProblem without a folder.
    """
    folder = folder or library.RULES
    if not isdir(folder):  # noqa: PTH112 (Path.is_dir raises for a name too long)
        raise FileProblem("this is not a folder of rules", where=str(folder), hint="give a folder of <problem>/<remedy>.yaml")
    files = read_folder(folder, str(folder))
    _raise_first(problem for file in files for problem in file.problems)
    return tuple(sorted((file.rule for file in files if file.rule is not None), key=lambda rule: rule.id))


def lint(folder: Path, *, today: date | None = None) -> tuple[InputError, ...]:
    """Every problem of a folder of rules, in the files' order: of each file, of the overlay, and between the rules.

    A folder that repeats shipped ids and has no overlay.yaml is a rule set of its own; any other is an overlay over the
    shipped rules. Raises FileProblem without a folder.
    """
    if not isdir(folder):  # noqa: PTH112 (Path.is_dir raises for a name too long)
        raise FileProblem("this is not a folder of rules", where=str(folder), hint="give a folder of <problem>/<remedy>.yaml")
    shipped = () if folder.resolve() == library.RULES.resolve() else read_folder(library.RULES, "rules")
    ids = {file.id for file in shipped}
    files = read_folder(folder, str(folder) if shipped else "rules")
    alone = not shipped or (not (folder / OVERLAY).exists() and any(file.id in ids for file in files))
    if alone:
        problems = [problem for file in files for problem in file.problems]
        return (*problems, *check_set(files))
    changes = read_overlay(folder, ids, today or date.today())
    return (*changes.problems, *check_set(changes.files, shipped))


def check_set(files: tuple[RuleFile, ...], beside: tuple[RuleFile, ...] = ()) -> Iterator[InputError]:
    """What is wrong between the rules of `files`, given the shipped ones `beside` them."""
    yield from _unknown_conflicts(files, {file.id for file in (*files, *beside)})
    by_id = {file.id: file.rule for file in files if file.rule is not None}
    for file in files:
        rule = file.rule
        if rule is None:
            continue
        for other in rule.conflicts:
            if other in by_id and rule.id not in by_id[other].conflicts:
                hint = f"add {rule.id} to the conflicts of {other}"
                yield _at(file, "conflicts").problem(f"{other} does not name this rule as a conflict", hint=hint)
        if rule.safety == "lossy" and all(prediction.metric != "accuracy_loss" for prediction in rule.predicts):
            yield _at(file, "safety").problem(
                "a lossy rule predicts its accuracy_loss", hint="add it to predicts, with a basis"
            )
    yield from _disagreeing(files, beside)


def _unknown_conflicts(files: tuple[RuleFile, ...], known: set[str]) -> Iterator[InputError]:
    for file in files:
        for other in file.rule.conflicts if file.rule else ():
            if other not in known or other == file.id:
                what = "a rule does not conflict with itself" if other == file.id else f"unknown rule {other!r} in conflicts"
                yield _at(file, "conflicts").problem(what, hint=did_you_mean(other, known - {file.id}))


def _disagreeing(files: tuple[RuleFile, ...], beside: tuple[RuleFile, ...]) -> Iterator[InputError]:
    """Siblings, the remedies of one problem, say the problem with the same lines."""
    first: dict[str, Rule] = {}
    for file in (*beside, *files):
        if file.rule is None:
            continue
        sibling = first.setdefault(file.id.partition("/")[0], file.rule)
        if file in files and set(sibling.when) != set(file.rule.when):
            hint = f"{sibling.id} has: {'; '.join(sibling.when)}"
            yield _at(file, "when").problem("the remedies of one problem have the same `when`", hint=hint)


def _at(file: RuleFile, key: str) -> Place:
    return file.places.get(key) or next(iter(file.places.values()))


def _raise_first(problems: Iterable[InputError]) -> None:
    for problem in problems:
        raise problem
