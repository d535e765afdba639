"""Rule files: read exactly, and every way of writing one wrongly answered with its place."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from advisor import library
from advisor.errors import FileProblem, InputError, RuleProblem, UnknownName
from advisor.reasoner.rule_file import KEYS, read_folder, read_rule
from advisor.reasoner.rulebook import Rulebook, check_set, lint, load_rules, rules_in
from advisor.types import Deployment, Rule

FIXTURES = Path(__file__).parent / "fixtures" / "rules"
RULE_ID = "cache-too-small/shrink-cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES, tmp_path / "rules")
    return tmp_path / "rules"


def change(folder: Path, old: str, new: str, *, rule: str = RULE_ID) -> Path:
    path = folder / f"{rule}.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


def problems_of(path: Path) -> tuple[InputError, ...]:
    return read_rule(path, f"{path.parent.name}/{path.stem}", path.name).problems


def test_reads_every_key() -> None:
    rule = read_rule(FIXTURES / f"{RULE_ID}.yaml", RULE_ID, "x").rule
    assert rule is not None
    assert rule.when == ("baseline.kv_share > 0.3",)
    assert rule.requires[0] == "support.kv_cache.fp8 in [native, fallback]"
    assert rule.seed_row is None and rule.safety == "lossy" and rule.conflicts == ("cache-too-small/take-fewer",)
    assert rule.predicts[1].range == (0.0, 1.0) and rule.predicts[1].when == "a made-up case"
    assert rule.applies.deployment == {"kv_cache": "fp8"}
    assert rule.applies.parameters == {"scales": [1.0, "1.10"], "note": "a fixture"}
    assert rule.references[0].date == "2026-11-23"
    assert rule.tests[3].facts == {"baseline.kv_share": 0.9, "gpu.count": 1, "measured.accuracy_loss_pct": None}
    assert Rule.model_validate(rule.model_dump()) == rule, "what is built without validation must pass it"


def test_every_shipped_rule_would_pass_validation() -> None:
    for rule in load_rules().rules:
        assert Rule.model_validate(rule.model_dump()) == rule
        Deployment.model_validate(rule.applies.deployment)


WRONG = [
    # old text, new text, what, marked, hint
    ("status: stable", "status: stabel", "is never 'stabel'", "stabel", "did you mean stable?"),
    ("status: stable\n", "", "has no 'status'", None, "id, status"),
    ("status: stable\n", "status: stable\nstatus: stable\n", "twice", "status", "keep one"),
    ("status: stable\n", "state: stable\n", "has no key 'state'", "state", "did you mean status?"),
    ("status: stable\n", "status: stable\non: true\n", "reads the key on as true or false", "on", "status"),
    ("status: stable\nproblem: The", "problem: The", "has no 'status'", None, ""),
    ("id: cache-too-small/s", "id: cache-too-small/x", "is not the file's path", "cache-too-small/xhrink-cache", "write"),
    ("status: stable\n", "status: stable\nseed_row: 10\n", "1 to 9", "10", "leave the key out"),
    ("status: stable\n", "status: stable\nseed_row: true\n", "1 to 9", "true", ""),
    ("remedy: Store the cache in eight bits.", "remedy: 1.10", "reads 1.10 as the number 1.1", "1.10", 'write "1.10"'),
    ("remedy: Store the cache in eight bits.", "remedy: off", "as true or false", "off", 'write "off"'),
    ("remedy: Store the cache in eight bits.", "remedy: ''", "remedy is empty", None, ""),
    ("remedy: Store the cache in eight bits.", "remedy: [a]", "remedy is text", "[a]", ""),
    ("safety: lossy", "safety: losy", "is never 'losy'", "losy", "did you mean lossy"),
    ("baseline.kv_share > 0.3", "baseline.kv_shares > 0.3", "unknown fact", "baseline.kv_shares", "baseline.kv_share"),
    ("- baseline.kv_share > 0.3", "- 'baseline.kv_share > x'", "is a number", "x", ""),
    ("  - baseline.kv_share > 0.3", "  baseline.kv_share > 0.3", "when is a list", "baseline.kv_share > 0.3", "- "),
    ("  - baseline.kv_share > 0.3\n", "  []\n", "when is empty", "[]", "at least one"),
    ("  - gpu.count >= 2\n", "  - gpu.count >= 2\n  - gpu.count >= 2\n", "twice", "gpu.count >= 2", "keep one"),
    ("metric: kv_memory", "metric: kv_memori", "is never", "kv_memori", "did you mean kv_memory"),
    ("range: [0.5, 0.5]", "range: [0.5, 0.4]", "the smaller first", "[0.5, 0.4]", "[low, high]"),
    ("range: [0.5, 0.5]", "range: [0.5]", "two numbers", "[0.5]", ""),
    ("range: [0.5, 0.5]", "range: [0.5, 5e-1]", "reads 5e-1 as text", "5e-1", "write 5.0e-1"),
    ("range: [0.5, 0.5]", "range: 0.5", "range is a list", "0.5", ""),
    ("basis: arithmetic", "basis: guessed", "is never 'guessed'", "guessed", "arithmetic"),
    ("kv_cache: fp8}", "kv_cahe: fp8}", "has no key 'kv_cahe'", "kv_cahe", "did you mean kv_cache"),
    ("kv_cache: fp8}", "kv_cache: fp9}", "kv_cache cannot be 'fp9'", None, ""),
    ("kv_cache: fp8}", "kv_cache: [}", "not valid YAML", None, "quotes"),
    ("action: serve", "action: serv", "is never 'serv'", "serv", "did you mean serve"),
    ("scales: [1.0e+0,", "scales: [1e9,", "reads 1e9 as text", "1e9", "write 1.0e+9"),
    ("scales: [1.0e+0,", "scales: [1.5e9,", "reads 1.5e9 as text", "1.5e9", "write 1.5e+9"),
    ("scales: [1.0e+0,", "scales: [010,", "octal", "010", "leading zero"),
    ("scales: [1.0e+0,", "scales: [No,", "as true or false", "No", "false"),
    ("note: a fixture", "note: {a: 1, a: 2}", "twice", "a", ""),
    ("says: Eight bits are half of sixteen.", "says: [x", "not valid YAML", None, ""),
    ("    says: Eight bits are half of sixteen.\n", "", "a reference has no 'says'", None, "source, says"),
    ("{baseline.kv_share: 0.31}", "{baseline.kv_sharing: 0.31}", "unknown fact", "baseline.kv_sharing", "did you mean"),
    ("{baseline.kv_share: 0.31}", "{baseline.kv_share: high}", "is a number, not 'high'", "high", "leave a fact out"),
    ("{baseline.kv_share: 0.31}", "{baseline.kv_share: 3e-1}", "reads 3e-1 as text", "3e-1", "3.0e-1"),
    ("support.kv_cache.fp8: fallback", "support.kv_cache.fp8: unknown", "is never 'unknown'", "unknown", "leave a fact out"),
    ("support.kv_cache.fp8: fallback", "support.kv_cache.fp8: [a]", "no list", "[a]", ""),
    ("verdict: silent", "verdict: quiet", "is never 'quiet'", "quiet", "fires, silent"),
    ("facts: {baseline.kv_share: 0.31}", "facts: &f {baseline.kv_share: 0.31}", "", None, ""),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "what", "marked", "hint"), WRONG, ids=[f"{old} -> {new}" for old, new, *_ in WRONG])
def test_says_what_is_wrong_and_where(folder: Path, old: str, new: str, what: str, marked: str | None, hint: str) -> None:
    path = change(folder, old, new)
    found = problems_of(path)
    if not what:  # an anchor that nothing repeats is harmless
        assert not found
        return
    problem = next((problem for problem in found if what in problem.what), None)
    assert problem is not None, [problem.what for problem in found]
    assert isinstance(problem, RuleProblem)
    assert hint in problem.hint
    where, shown, carets = problem.where.splitlines()
    name, line, column = where.split(":")
    indent = " " * len("where: ")
    assert name == path.name
    assert shown.removeprefix(indent) == path.read_text().splitlines()[int(line) - 1]
    start, length = carets.index("^"), carets.count("^")
    assert int(column) == start - len(indent) + 1
    if marked is not None:
        assert shown[start : start + length] == marked


def test_the_order_of_the_keys_is_fixed(folder: Path) -> None:
    path = change(folder, "status: stable\n", "")
    path.write_text(path.read_text().replace("safety: lossy\n", "safety: lossy\nstatus: stable\n"))
    (problem,) = problems_of(path)
    assert problem.what == "the key 'status' stands too late"
    assert ", ".join(KEYS) in problem.hint


def test_all_problems_of_a_file_are_found_at_once(folder: Path) -> None:
    change(folder, "status: stable", "status: x")
    change(folder, "safety: lossy", "safety: y")
    path = change(folder, "kv_share > 0.3", "kv_share > z")
    assert len(problems_of(path)) == 3


def test_aliases_are_refused_before_they_grow(folder: Path) -> None:
    laughs = "\n".join(f"    l{n}: {'&l' + str(n)} [*l{n - 1}, *l{n - 1}, *l{n - 1}]" for n in range(1, 40))
    path = change(folder, "parameters: {scales", f"parameters:\n    l0: &l0 [x]\n{laughs}\n    old: {{scales")
    assert any("aliases are not read" in problem.what for problem in problems_of(path))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{a: " * 50_000, "- " * 100_000, "? " * 100_000, "\n".join(" " * n + "-" for n in range(600))]
)
def test_deep_nesting_is_refused_without_a_crash(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a" / "b.yaml"
    path.parent.mkdir()
    path.write_text(text)
    found = problems_of(path)
    assert found and all(isinstance(problem, InputError) for problem in found)


@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xfe", b"a: 1\n---\nb: 2\n", b"- a\n", b"just words", b"a" * 300_000])
def test_a_file_that_is_no_rule_is_one_clear_problem(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a" / "b.yaml"
    path.parent.mkdir()
    path.write_bytes(content)
    assert problems_of(path)


def test_a_misplaced_file_is_named(folder: Path) -> None:
    shutil.copy(folder / f"{RULE_ID}.yaml", folder / "loose.yaml")
    (folder / "cache-too-small" / "deep").mkdir()
    shutil.copy(folder / f"{RULE_ID}.yaml", folder / "cache-too-small" / "deep" / "er.yaml")
    shutil.copy(folder / f"{RULE_ID}.yaml", folder / "cache-too-small" / "short.yml")
    found = [problem for file in read_folder(folder, "rules") for problem in file.problems]
    assert [problem.where for problem in found] == [
        "rules/cache-too-small/deep/er.yaml",
        "rules/cache-too-small/short.yml",
        "rules/loose.yaml",
    ]


def test_a_good_folder_has_no_problems(folder: Path) -> None:
    assert lint(folder) == ()


def test_the_shipped_rules_have_no_problems() -> None:
    assert [str(problem) for problem in lint(library.RULES)] == []


BETWEEN = [
    ("conflicts: [cache-too-small/take-fewer]", "conflicts: []", "does not name this rule as a conflict"),
    ("conflicts: [cache-too-small/take-fewer]", "conflicts: [cache-too-small/take-fever]", "unknown rule"),
    ("conflicts: [cache-too-small/take-fewer]", f"conflicts: [{RULE_ID}, cache-too-small/take-fewer]", "with itself"),
    ("metric: accuracy_loss", "metric: itl", "predicts its accuracy_loss"),
    ("baseline.kv_share > 0.3", "baseline.kv_share > 0.4", "the same `when`"),
]


@pytest.mark.parametrize(("old", "new", "what"), BETWEEN)
def test_says_what_is_wrong_between_rules(folder: Path, old: str, new: str, what: str) -> None:
    change(folder, old, new)
    assert any(what in problem.what for problem in lint(folder))


def test_a_set_that_stands_alone_is_not_held_against_the_shipped_one(tmp_path: Path) -> None:
    shutil.copytree(library.RULES, tmp_path / "rules")
    assert lint(tmp_path / "rules") == ()


def test_lint_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="not a folder of rules"):
        lint(tmp_path / "nothing")


def test_loading_raises_the_first_problem(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "RULES", folder)
    assert [rule.id for rule in load_rules().rules] == ["cache-too-small/shrink-cache", "cache-too-small/take-fewer"]
    change(folder, "safety: lossy", "safety: y")
    with pytest.raises(RuleProblem, match="safety is never 'y'"):
        load_rules()


def test_a_rule_by_its_id() -> None:
    rulebook = load_rules()
    first = rulebook.rules[0]
    assert rulebook.rule(first.id) is first
    with pytest.raises(UnknownName, match="unknown rule") as caught:
        rulebook.rule(first.id[:-1])
    assert first.id in caught.value.hint


def test_the_rules_of_a_folder_alone(folder: Path) -> None:
    assert [rule.id for rule in rules_in(folder)] == ["cache-too-small/shrink-cache", "cache-too-small/take-fewer"]
    assert rules_in() == load_rules().rules
    change(folder, "safety: lossy", "safety: y")
    with pytest.raises(RuleProblem, match="safety is never"):
        rules_in(folder)
    with pytest.raises(FileProblem, match="not a folder"):
        rules_in(folder / "nothing")


def test_rules_are_ordered_by_id() -> None:
    ids = [rule.id for rule in load_rules().rules]
    assert ids == sorted(ids)
    assert isinstance(load_rules(), Rulebook)


def test_a_set_is_checked_against_the_rules_beside_it(folder: Path) -> None:
    files = read_folder(folder, "rules")
    assert list(check_set(files[:1], files[1:])) == []
    assert any("unknown rule" in problem.what for problem in check_set(files[:1]))
