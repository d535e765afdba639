"""What changed between two reports, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from advisor.report.comparison import Comparison, compare, render_comparison
from advisor.types import Evidence, Finding, Report

STORED = Path(__file__).parent / "fixtures" / "reports"


def load(name: str) -> Report:
    return Report.model_validate_json((STORED / f"{name}.json").read_text(encoding="utf-8"))


def with_traffic(report: Report, **changes: Any) -> Report:
    traffic = report.profile.traffic.model_copy(update=changes)
    return report.model_copy(update={"profile": report.profile.model_copy(update={"traffic": traffic})})


def judged(report: Report, rule: str, verdict: str, *evidence: Evidence) -> Report:
    findings = tuple(
        f.model_copy(update={"verdict": verdict, "evidence": evidence}) if f.rule == rule else f for f in report.findings
    )
    return report.model_copy(update={"findings": findings})


def compared(condition: str, left: Any, right: Any, holds: bool | None) -> Evidence:
    return Evidence.model_validate({"condition": condition, "left": left, "right": right, "holds": holds})


RULE = "weights-bound-decode/int4-weight-only"


def test_report_against_itself_has_no_change() -> None:
    for path in sorted(STORED.glob("*.json")):
        found = compare(load(path.stem), load(path.stem))
        assert found.same
        assert render_comparison(found) == "Nothing changed.\n"


def test_changed_fact_has_both_values_and_its_source() -> None:
    before = load("plan-only")
    found = compare(before, with_traffic(before, concurrency=4.0))
    assert [(c.fact, c.before, c.after, c.source_after) for c in found.facts] == [("traffic.concurrency", 32, 4, "flag")]
    assert "traffic.concurrency: 32 -> 4 (flag)" in render_comparison(found)


def test_a_source_that_several_facts_share_is_said_once() -> None:
    before = load("plan-only")
    traffic = before.profile.traffic
    longer = traffic.isl.model_copy(update={"mean": 999, "p50": 998, "p99": 9999})
    sources = {**before.profile.sources, "traffic.isl": "a trace"}
    update = {"traffic": traffic.model_copy(update={"isl": longer}), "sources": sources}
    after = before.model_copy(update={"profile": before.profile.model_copy(update=update)})
    text = " ".join(render_comparison(compare(before, after)).split())
    assert "traffic.isl.p50: 800 -> 998; traffic.isl.p99: 3,100 -> 9,999 (no source -> a trace)" in text


def test_changed_source_of_an_unchanged_fact_is_no_changed_fact() -> None:
    before = load("plan-only")
    sources = {**before.profile.sources, "gpu.memory_gib": "nvml"}
    after = before.model_copy(update={"profile": before.profile.model_copy(update={"sources": sources})})
    assert compare(before, after).facts == ()


def test_turned_verdict_names_the_condition_and_the_fact_that_turned_it() -> None:
    before = load("plan-only")
    after = judged(
        with_traffic(before, concurrency=4.0),
        RULE,
        "fires",
        compared("traffic.concurrency <= 16", 4, 16, True),
        compared("gain.int4_over_fp8 > 1.05", 1.31, 1.05, True),
    )
    found = compare(before, after)
    (verdict,) = found.verdicts
    assert (verdict.rule, verdict.before, verdict.after) == (RULE, "silent", "fires")
    assert verdict.because == (
        "traffic.concurrency 32 (wanted <= 16) before, traffic.concurrency 4 (<= 16) now",
        "gain.int4_over_fp8 0.884 (wanted > 1.05) before, gain.int4_over_fp8 1.31 (> 1.05) now",
    )
    assert verdict.causes == ("traffic.concurrency",)
    assert "(follows from traffic.concurrency)" in " ".join(render_comparison(found).split())


def test_computed_fact_is_traced_to_everything_that_changed() -> None:
    before = load("plan-only")
    model = before.profile.model.model_copy(update={"name": "other/model", "layers": 80})
    after = with_traffic(before, isl=before.profile.traffic.isl.model_copy(update={"mean": 9000.0, "p99": 20000.0}))
    after = after.model_copy(update={"profile": after.profile.model_copy(update={"model": model})})
    after = judged(after, RULE, "fires", compared("gain.int4_over_fp8 > 1.05", 1.31, 1.05, True))
    (verdict,) = compare(before, after).verdicts
    assert verdict.causes == ("model", "traffic.isl")


def test_condition_that_came_or_went_with_another_version_of_the_rule() -> None:
    before = load("plan-only")
    after = judged(before, RULE, "fires", compared("traffic.concurrency <= 64", 32, 64, True))
    (verdict,) = compare(before, after).verdicts
    assert "traffic.concurrency <= 16: no longer asked" in verdict.because
    assert "traffic.concurrency <= 64: now asked" in verdict.because


def test_rule_that_is_new_or_gone() -> None:
    before = load("plan-only")
    words = {"problem": "p", "why": "w", "remedy": "r", "references": ()}
    new = Finding(rule="new/rule", verdict="silent", safety="manual", evidence=(), **words)  # type: ignore[arg-type]
    after = before.model_copy(update={"findings": (*before.findings[1:], new)})
    found = {v.rule: (v.before, v.after) for v in compare(before, after).verdicts}
    assert found == {before.findings[0].rule: ("fires", None), "new/rule": (None, "silent")}


def test_changed_plan_names_the_rules_that_set_the_field() -> None:
    before = load("plan-only")
    plan = before.plan.model_copy(
        update={
            "deployment": before.plan.deployment.model_copy(update={"kv_cache": "bf16"}),
            "steps": before.plan.steps[:1],
            "expected": before.plan.steps[0].after,
        }
    )
    found = compare(before, before.model_copy(update={"plan": plan}))
    assert [(c.field, c.before, c.after, c.because) for c in found.plan] == [
        ("kv_cache", "FP8 KV cache", "BF16 KV cache", ("kv-cache-starves-batch/fp8-kv-cache",))
    ]
    moved = {c.figure: (c.before, c.after) for c in found.figures if c.of == "plan"}
    assert moved["output_tokens_per_s"] == (5530, 5160)
    assert "output_tokens_per_s: 5,530 -> 5,160 (−6.7 %)" in render_comparison(found)


def test_feasibility_gates_measurements_overrides_and_versions() -> None:
    text = " ".join(render_comparison(compare(load("applied"), load("failed-gate"))).split())
    assert "gpu-has-faster-format/fp8: passed -> failed" in text
    assert "accuracy_loss_pct: 0.420 -> 2.31" in text
    text = " ".join(render_comparison(compare(load("plan-only"), load("applied"))).split())
    assert "now: weights-bound-decode/int4-weight-only suppressed" in text
    assert "nvidia-modelopt: none -> 0.47.0" in text
    text = " ".join(render_comparison(compare(load("plan-only"), load("infeasible"))).split())
    assert "feasible: keeps every limit -> does not keep every limit" in text
    assert "goal.ttft_ms: not set -> 200" in text


@pytest.mark.parametrize("pair", [("plan-only", "infeasible"), ("moe", "applied"), ("applied", "failed-gate")])
def test_shown_as_text_of_80_columns_and_as_json(pair: tuple[str, str]) -> None:
    found = compare(load(pair[0]), load(pair[1]))
    assert max(map(len, render_comparison(found).splitlines())) <= 80
    page = render_comparison(found, "json")
    assert Comparison.model_validate(json.loads(page)) == found
