"""An organisation's folder over the rules."""

from __future__ import annotations

import shutil
from datetime import date
from pathlib import Path

import pytest

from advisor import library
from advisor.errors import FileProblem, InputError, RuleProblem
from advisor.reasoner.rulebook import lint, load_rules

FIXTURES = Path(__file__).parent / "fixtures" / "rules"
RULE = "cache-too-small/shrink-cache"
TODAY = date(2026, 11, 23)
GOOD = """\
suppress:
  - {rule: cache-too-small/take-fewer, reason: we never refuse anybody, until: 2027-03-31}
tighten:
  - rule: cache-too-small/shrink-cache
    when: [traffic.concurrency > 8]
    requires: [model.is_mla == false, gpu.count >= 2]
    reason: not validated for MLA here
    until: 2026-11-23
"""


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "RULES", FIXTURES)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "overlay.yaml").write_text(GOOD)
    return tmp_path


def test_suppresses_and_tightens(folder: Path) -> None:
    rulebook = load_rules(folder, today=TODAY)
    assert [rule.id for rule in rulebook.rules] == [RULE]
    plain, tightened = load_rules().rule(RULE), rulebook.rule(RULE)
    assert tightened.when == (*plain.when, "traffic.concurrency > 8")
    assert tightened.requires == (*plain.requires, "model.is_mla == false"), "a line that is there already is not repeated"
    assert tightened.model_copy(update={"when": plain.when, "requires": plain.requires}) == plain
    assert [(one.rule, one.change, one.reason, one.until, one.expired) for one in rulebook.overrides] == [
        (RULE, "tightened", "not validated for MLA here", "2026-11-23", False),
        ("cache-too-small/take-fewer", "suppressed", "we never refuse anybody", "2027-03-31", False),
    ]
    assert {one.source for one in rulebook.overrides} == {str(folder / "overlay.yaml")}


def test_an_expired_entry_is_reported_and_not_applied(folder: Path) -> None:
    rulebook = load_rules(folder, today=date(2026, 11, 24))
    assert rulebook.rule(RULE) == load_rules().rule(RULE)
    assert [(one.rule, one.expired) for one in rulebook.overrides] == [(RULE, True), ("cache-too-small/take-fewer", False)]
    everything = load_rules(folder, today=date(2027, 4, 1))
    assert everything.rules == load_rules().rules
    assert all(one.expired for one in everything.overrides)


def test_adds_a_rule(tmp_path: Path) -> None:
    (tmp_path / "cache-too-small").mkdir()
    text = (FIXTURES / "cache-too-small" / "take-fewer.yaml").read_text()
    added = tmp_path / "cache-too-small" / "buy-memory.yaml"
    added.write_text(text.replace("cache-too-small/take-fewer", "cache-too-small/buy-memory"))
    rulebook = load_rules(tmp_path, today=TODAY)
    assert len(rulebook.rules) == 3
    (override,) = rulebook.overrides
    assert (override.rule, override.change, override.source) == ("cache-too-small/buy-memory", "added", str(added))
    assert lint(tmp_path) == ()


def test_an_added_rule_can_be_tightened_in_the_same_folder(tmp_path: Path) -> None:
    test_adds_a_rule(tmp_path)
    entry = "{rule: cache-too-small/buy-memory, when: [gpu.count > 1], reason: r, until: 2030-01-01}"
    (tmp_path / "overlay.yaml").write_text(f"tighten:\n  - {entry}\n")
    rulebook = load_rules(tmp_path, today=TODAY)
    assert rulebook.rule("cache-too-small/buy-memory").when[-1] == "gpu.count > 1"
    assert [one.change for one in rulebook.overrides] == ["added", "tightened"]


WRONG = [
    ("reason: we never refuse anybody, ", "", "has no 'reason'", "rule, reason, until"),
    (", until: 2027-03-31", "", "has no 'until'", "until"),
    ("we never refuse anybody", '""', "reason is empty", ""),
    ("until: 2027-03-31", "until: soon", "'soon' is not a date", "2027-03-31"),
    ("until: 2027-03-31", "until: 2027-02-30", "is not a date", ""),
    ("cache-too-small/take-fewer", "cache-too-small/take-fever", "unknown rule", "did you mean cache-too-small/take-fewer"),
    ("suppress:", "supress:", "has no key 'supress'", "did you mean suppress?"),
    ("traffic.concurrency > 8", "traffic.concurency > 8", "unknown fact", "did you mean traffic.concurrency"),
    ("model.is_mla == false", "model.is_mla > 1", "has no order", ""),
    (
        "    when: [traffic.concurrency > 8]\n    requires: [model.is_mla == false, gpu.count >= 2]\n",
        "",
        "adds conditions",
        "when or",
    ),
    ("    reason: not", "    conflicts: []\n    reason: not", "has no key 'conflicts'", ""),
    ("suppress:\n  - ", "suppress:\n  ", "suppress is a list", "- "),
    ("suppress:", "suppress: [", "not valid YAML", ""),
]


@pytest.mark.parametrize(("old", "new", "what", "hint"), WRONG, ids=[what for _, _, what, _ in WRONG])
def test_says_what_is_wrong(folder: Path, old: str, new: str, what: str, hint: str) -> None:
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    (folder / "overlay.yaml").write_text(text)
    found = lint(folder, today=TODAY)
    problem = next((problem for problem in found if what in problem.what), None)
    assert problem is not None, [problem.what for problem in found]
    assert hint in problem.hint
    assert problem.where.startswith(str(folder / "overlay.yaml")) and "^" in problem.where
    with pytest.raises(InputError):
        load_rules(folder, today=TODAY)


def test_a_shipped_id_cannot_be_taken(folder: Path) -> None:
    shutil.copytree(FIXTURES / "cache-too-small", folder / "cache-too-small")
    with pytest.raises(RuleProblem, match="already a rule") as caught:
        load_rules(folder, today=TODAY)
    assert "overlay.yaml" in caught.value.hint and "^" in caught.value.where


def test_an_added_rule_names_conflicts_that_exist(tmp_path: Path) -> None:
    test_adds_a_rule(tmp_path)
    path = tmp_path / "cache-too-small" / "buy-memory.yaml"
    path.write_text(path.read_text().replace("[cache-too-small/shrink-cache]", "[cache-too-small/shrink-cash]"))
    with pytest.raises(RuleProblem, match="unknown rule") as caught:
        load_rules(tmp_path, today=TODAY)
    assert "cache-too-small/shrink-cache" in caught.value.hint


def test_a_folder_that_is_no_overlay(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="neither overlay"):
        load_rules(tmp_path)
    with pytest.raises(FileProblem, match="not a folder"):
        load_rules(tmp_path / "nothing")
