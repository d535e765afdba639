"""The report as text, Markdown and JSON: golden pages, the layout's promises, and numbers for people."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from advisor.report import commands, evidence, sections, units
from advisor.report.changes import change_lines
from advisor.report.charts import accuracy
from advisor.report.deployments import settings
from advisor.report.outcome import headline, of_steps
from advisor.report.rendering import render
from advisor.types import Change, Evidence, Finding, Report

HERE = Path(__file__).parent
STORED = HERE / "fixtures" / "reports"
GOLDEN = HERE / "golden" / "reports"
NAMES = sorted(path.stem for path in STORED.glob("*.json"))


def load(name: str) -> Report:
    return Report.model_validate_json((STORED / f"{name}.json").read_text(encoding="utf-8"))


def table(text: str) -> list[str]:
    """The lines of the decision table of a text page."""
    return text[text.index("\nPlan\n") :].split("\n\n")[0].splitlines()[2:]


# ---------------------------------------------------------------- golden pages


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("form", "suffix"), [("text", "txt"), ("markdown", "md")])
def test_page_is_the_golden_one(name: str, form: str, suffix: str) -> None:
    """Set UPDATE_GOLDEN=1 to write them anew, and read the difference like code."""
    page = render(load(name), form)  # type: ignore[arg-type]
    path = GOLDEN / f"{name}.{suffix}"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    assert page == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_same_report_gives_the_same_bytes(name: str) -> None:
    for form in ("text", "markdown", "html", "json"):
        assert render(load(name), form) == render(load(name), form)  # type: ignore[arg-type]


# ---------------------------------------------------------------- text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [77, 80, 100, 120])
def test_no_line_is_wider_than_asked(name: str, width: int) -> None:
    page = render(load(name), "text", width=width)
    assert max(map(len, page.splitlines())) <= width
    assert "\x1b" not in page


@pytest.mark.parametrize("name", NAMES)
def test_colour_changes_nothing_but_colour(name: str) -> None:
    colored = render(load(name), "text", color=True)
    assert "\x1b[" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == render(load(name), "text")


@pytest.mark.parametrize("name", NAMES)
def test_ascii_page_is_ascii_and_as_narrow(name: str) -> None:
    page = render(load(name), "text", ascii=True)
    assert page.isascii()
    assert max(map(len, page.splitlines())) <= 80


@pytest.mark.parametrize("name", NAMES)
def test_columns_of_the_table_are_aligned(name: str) -> None:
    report = load(name)
    lines = table(render(report, "text"))
    ends = [match.end() for match in re.finditer(r"\S+", lines[0])]
    rows = [line for line in lines[2:] if re.match(r"  (baseline|plan|\d )", line) and len(line) > ends[-1] - 1]
    assert len(rows) == len(sections.rows(report))
    for line in rows:
        for end in ends:
            assert line[end - 1] != " ", line
            assert line[end : end + 1] in ("", " "), line


def test_long_names_are_shown_whole_or_cut_but_never_break_the_page() -> None:
    report = load("applied")
    name = "organisation/" + "a-very-long-name-" * 12
    model = report.profile.model.model_copy(update={"name": name})
    change = report.changes[0].model_copy(update={"rule": name})
    report = report.model_copy(update={"profile": report.profile.model_copy(update={"model": model}), "changes": (change,)})
    page = render(report, "text")
    assert max(map(len, page.splitlines())) <= 80
    assert "…" in page
    assert "gate passed" in page


def test_memory_bar_is_to_scale() -> None:
    report = load("plan-only")
    page = render(report, "text")
    bar = next(line for line in page.splitlines() if line.startswith("  after"))[10:]
    memory = report.plan.expected.memory_gib
    assert bar.count("█") == round(memory.weights / memory.capacity * len(bar))
    assert abs(bar.count("▓") - memory.kv_cache / memory.capacity * len(bar)) <= 1


def test_memory_bar_shows_what_does_not_fit() -> None:
    report = load("infeasible")
    page = render(report, "text")
    lines = [line for line in page.splitlines() if line.startswith(("  before", "  after"))]
    assert "│" in lines[0]
    assert lines[0].index("│") == lines[1].rindex("│")
    assert "over" in lines[2]
    assert "does not fit" in page


def test_what_cannot_be_estimated_is_a_dash_with_its_reason_and_never_zero() -> None:
    page = render(load("infeasible"), "text")
    row = next(line for line in table(page) if line.startswith("  baseline"))
    assert row.split()[-6:-2] == ["–", "–", "–", "–"]
    assert re.search(r"– baseline: BF16, KV BF16: 131 GiB of weights do not fit", " ".join(page.split()))


def test_infeasible_plan_says_what_would_have_to_give() -> None:
    report = load("infeasible")
    page = " ".join(render(report, "text").split())
    assert "No deployment keeps every limit" in page
    for item in report.plan.shortfall:
        assert item in page
    assert "advise apply" not in page


@pytest.mark.parametrize(("gate", "said"), [("passed", "the gate passed after a remedy"), ("failed", "a gate failed")])
def test_a_remedy_decides_over_the_step_it_follows(gate: str, said: str) -> None:
    report = load("failed-gate")
    failed = next(change for change in report.changes if change.gate == "failed")
    alone = report.model_copy(update={"changes": (failed,)})
    remedy = failed.model_copy(update={"rule": "accuracy-missed/qad", "action": "qat", "gate": gate})
    remedied = alone.model_copy(update={"changes": (failed, remedy)})
    assert "a gate failed" in (headline(alone) or ("", ""))[1]
    assert said in (headline(remedied) or ("", ""))[1]
    assert of_steps(remedied)[failed.rule] is remedy and of_steps(alone)[failed.rule] is failed


def test_several_rounds_are_named_and_none_is_lost() -> None:
    report = load("failed-gate")
    first = next(change for change in report.changes if change.accuracy)
    better = first.accuracy[-1].model_copy(update={"value": 7.21, "low": 7.2, "high": 7.22})
    again = first.model_copy(update={"accuracy": (*first.accuracy[:-1], better), "seconds": 77.0})
    remedy = again.model_copy(update={"rule": "accuracy-missed/mixed-precision", "action": "mixed_precision"})
    what = first.accuracy[-1].what
    labels = [point["label"] for point in accuracy(report.model_copy(update={"changes": (first, again, remedy)}))[0]["points"]]
    assert labels == ["original", f"{what} (quantize)", f"{what} (quantize 2, mixed precision)"]
    assert [point["label"] for point in accuracy(report)[0]["points"]] == ["original", what]
    page = render(report.model_copy(update={"changes": (first, again)}), "html")
    assert page.count("<dd>gate") == 2 and f"took {units.figure(first.seconds)} s" in page and "took 77.0 s" in page


def test_what_was_not_run_passed_no_gate() -> None:
    report = load("failed-gate")
    skipped = report.changes[0].model_copy(update={"rule": "accuracy-missed/qad", "action": "qat", "gate": "not run"})
    only_skipped = report.model_copy(update={"changes": (skipped,)})
    assert headline(only_skipped) == ("bad", "Applied in part: not every gate has passed.")


def test_failed_gate_is_said_first_in_the_next_command() -> None:
    page = render(load("failed-gate"), "text")
    assert "gate failed" in page
    assert "--resume" in page


def test_only_what_was_assumed_is_listed_as_assumed() -> None:
    report = load("plan-only")
    page = render(report, "text")
    block = page[page.index("Assumed") : page.index("\n\nMemory")]
    assert "engine.version 1.2.1" in block
    assert "traffic.concurrency" not in block
    assert "gpu.memory_gib" not in block


def test_every_step_has_its_reason_and_evidence() -> None:
    report = load("plan-only")
    page = " ".join(render(report, "text").split())
    for reason in sections.reasons(report):
        assert reason.finding is not None
        assert reason.finding.problem in page
        for item in reason.finding.evidence:
            assert evidence.compared(item) in page


def test_flips_fallbacks_and_overrides_are_shown() -> None:
    report = load("applied")
    page = " ".join(render(report, "text").split())
    assert "now 32, at 11 or less INT4 AWQ weights give" in page
    assert "21,500 or more" in page
    assert "suppressed, until 2027-03-31: INT4 is not approved" in page
    assert "1 if the accuracy loss exceeds 1 %" in page


# ---------------------------------------------------------------- what the sections say


def test_unknowns_are_grouped_by_the_way_to_find_them_out() -> None:
    def unknown(rule: str, condition: str, how: str, right: object = None) -> Finding:
        item = Evidence.model_validate({"condition": condition, "left": None, "right": right, "holds": None, "find_out": how})
        words = {"problem": "p", "why": "w", "remedy": "r", "references": ()}
        return Finding(rule=rule, verdict="unknown", safety="lossy", evidence=(item,), **words)  # type: ignore[arg-type]

    measure = "advise apply measures it; or give --measured FILE.json"
    findings = (
        unknown("a/one", "measured.x > 1", f"measured.x: {measure}", 1),
        unknown("a/two", "measured.y > goal.z", f"measured.y: {measure}; goal.z: give --z"),
    )
    report = load("plan-only").model_copy(update={"findings": findings})
    found = {item.find_out: (item.facts, item.rules) for item in evidence.unknowns(report)}
    assert found == {
        measure: (("measured.x", "measured.y"), ("a/one", "a/two")),
        "give --z": (("goal.z",), ("a/two",)),
    }


@pytest.mark.parametrize(
    ("condition", "left", "right", "holds", "says"),
    [
        ("gain.fp8 > 1.1", 1.483, 1.1, True, "gain.fp8 1.48 (> 1.1)"),
        ("gain.fp8 > 1.48", 1.4801, 1.48, True, "gain.fp8 1.4801 (> 1.48)"),
        ("traffic.concurrency <= 16", 32, 16, False, "traffic.concurrency 32 (wanted <= 16)"),
        ("support.weights.fp8 == native", "native", "native", True, "support.weights.fp8 = native"),
        ("support.weights.fp8 == native", "impossible", "native", False, "support.weights.fp8 = impossible (wanted native)"),
        ("gpu.link != pcie", "nvlink", "pcie", True, "gpu.link = nvlink (not pcie)"),
        ("support.weights.fp8 != native", "native", "native", False, "support.weights.fp8 = native (wanted another)"),
        ("traffic.concurrency > baseline.batch", 2, 3, False, "traffic.concurrency 2 (wanted > baseline.batch 3)"),
        ("model.is_moe == true", False, True, False, "model.is_moe = no (wanted yes)"),
        (
            "traffic.concurrency > baseline.max_concurrency",
            32,
            11,
            True,
            "traffic.concurrency 32 > baseline.max_concurrency 11",
        ),
        ("measured.loss > goal.budget", None, None, None, "measured.loss unknown (wanted > goal.budget unknown)"),
        ("measured.scheme in [fp8, nvfp4]", None, "[fp8, nvfp4]", None, "measured.scheme unknown (wanted in [fp8, nvfp4])"),
    ],
)
def test_comparison_shows_both_sides(condition: str, left: object, right: object, holds: bool | None, says: str) -> None:
    item = Evidence.model_validate({"condition": condition, "left": left, "right": right, "holds": holds})
    assert evidence.compared(item) == says


def test_step_that_moves_nothing_says_so_and_the_plan_keeps_its_own_line() -> None:
    report = load("plan-only")
    step = report.plan.steps[-1]
    idle = step.model_copy(update={"rule": "x/y", "changes": {"chunked_prefill": True}, "before": step.after})
    kept = idle.model_copy(update={"changes": {"cuda_graphs": True}})
    plan = report.plan.model_copy(update={"steps": (*report.plan.steps, idle, kept)})
    page = render(report.model_copy(update={"plan": plan}), "text")
    lines = table(page)
    assert any(line.split()[:3] == ["3", "chunked", "prefill"] and line.split()[3:] == ["="] * 6 for line in lines)
    assert any(line.startswith("  4 keep CUDA graphs") for line in lines)
    assert any(line.startswith("  plan: FP8, KV FP8") and "5,530" in line for line in lines)


def test_executed_change_says_what_it_measured() -> None:
    change = Change(
        rule="a/b", action="quantize", before={"ppl": 7.0}, after={"ppl": 7.25, "accuracy_loss_pct": 3.57}, gate="failed"
    )
    assert change_lines(change) == ("ppl 7 -> 7.25; accuracy_loss_pct 3.57",)


def test_changes_are_shown_as_settings() -> None:
    changes = {"weights": "fp8", "cuda_graphs": True, "speculation": {"method": "mtp", "draft_len": 4, "draft_model": None}}
    assert settings(changes) == "weights: fp8, cuda_graphs: true, speculation: (method: mtp, draft_len: 4)"


def test_flip_of_a_limit_that_nobody_set_is_below() -> None:
    assert sections.flip_when("goal.accuracy_budget_pct", None, 0.5) == "0.5 or less"
    assert sections.flip_when("traffic.concurrency", 32, 11) == "11 or less"
    assert sections.flip_when("traffic.concurrency", 32, 64) == "64 or more"


# ---------------------------------------------------------------- commands


def test_repeating_command_is_the_one_that_was_given() -> None:
    report = load("plan-only")
    assert commands.repeat(report).split()[1:] == list(report.command)


def test_command_is_made_from_the_profile_where_none_is_kept() -> None:
    line = commands.repeat(load("infeasible"))
    for piece in ("--model=meta-llama/Llama-3.3-70B-Instruct", "--gpu=h100-sxm-80gb", "--isl 4096", "--ttft-ms 200"):
        assert piece in line


def test_next_command_leaves_out_how_the_answer_was_shown() -> None:
    report = load("plan-only")
    asked = (*report.command, "--format", "html", "-o", "x.html", "--format=json")
    for _, line in commands.upcoming(report.model_copy(update={"command": asked})):
        assert "html" not in line
        assert "json" not in line


# ---------------------------------------------------------------- Markdown and JSON


@pytest.mark.parametrize("name", NAMES)
def test_markdown_tables_have_one_width(name: str) -> None:
    page = render(load(name), "markdown")
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert page.count("<details>") == page.count("</details>") >= 3


@pytest.mark.parametrize("name", NAMES)
def test_json_is_the_report(name: str) -> None:
    report = load(name)
    page = render(report, "json")
    assert page.isascii()
    assert Report.model_validate_json(page) == report
    told = [(item["if"], item["rule"]) for item in json.loads(page)["plan"]["fallbacks"]]
    assert told == [(item.if_, item.rule) for item in report.plan.fallbacks]


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (float("nan"), "–"), (float("inf"), "–"), (0, "0"), (0.0, "0"), (12345.6, "12,300"), (999.6, "1,000"),
        (99.95, "100"), (9.996, "10.0"), (5.6, "5.60"), (1234, "1,230"), (0.0123, "0.0123"), (-3.14159, "-3.14"),
        (0.000_012_3, "0.0000123"), (1e9, "1,000,000,000"),
    ],
)  # fmt: skip
def test_figure(value: float | None, shown: str) -> None:
    assert units.figure(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "–"), (True, "yes"), (4096, "4,096"), (4096.0, "4,096"), (0.1 + 0.2, "0.3"), ("fp8", "fp8")]
)
def test_given(value: object, shown: str) -> None:
    assert units.given(value) == shown  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("left", "right", "shown"),
    [(0.3001, 0.3, ("0.3001", "0.3000")), (0.62, 0.3, ("0.620", "0.300")), (None, 3, ("unknown", "3")), (2, 2, ("2", "2"))],
)
def test_pair_has_the_figures_it_takes(left: object, right: object, shown: tuple[str, str]) -> None:
    assert units.pair(left, right) == shown  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (100, 145, "+45 %"),
        (100, 67, "−33 %"),
        (100, 100, "±0 %"),
        (10, 40, "×4.00"),
        (0, 5, None),
        (None, 5, None),
        (5, None, None),
    ],
)
def test_relative_change(before: float | None, after: float | None, shown: str | None) -> None:
    assert units.change(before, after) == shown
