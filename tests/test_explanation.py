"""A rule as a page, and why or why not it holds in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sample_profiles import profile

from advisor.errors import UnknownName
from advisor.reasoner.diagnosis import judge
from advisor.reasoner.explanation import explain, rule_docs
from advisor.reasoner.rule_file import read_rule
from advisor.reasoner.rulebook import Rulebook
from advisor.types import (
    Deployment,
    Estimate,
    Fallback,
    Goal,
    Memory,
    Override,
    Plan,
    Rejection,
    Report,
    Rule,
    Scalar,
    Step,
)

FIXTURES = Path(__file__).parent / "fixtures" / "rules"
ESTIMATE = Estimate(
    memory_gib=Memory(weights=1, kv_cache=1, activations=1, runtime=1, total=4, capacity=80), fits=True, max_concurrency=1
)
FIRING: dict[str, Scalar] = {
    "baseline.kv_share": 0.61803,
    "support.kv_cache.fp8": "native",
    "gpu.count": 2,
    "measured.accuracy_loss_pct": 0.5,
    "goal.accuracy_budget_pct": 1.0,
}


def rule(name: str = "shrink-cache") -> Rule:
    found = read_rule(FIXTURES / "cache-too-small" / f"{name}.yaml", f"cache-too-small/{name}", name).rule
    assert found is not None
    return found


def report(facts: dict[str, Scalar], judged: Rule | None = None, **plan: Any) -> Report:
    made = Plan(
        goal=Goal(),
        feasible=True,
        verdict="",
        baseline_deployment=Deployment(),
        baseline=ESTIMATE,
        deployment=Deployment(),
        expected=ESTIMATE,
        **({"steps": ()} | plan),
    )
    return Report(profile=profile(), findings=(judge(judged or rule(), facts),), plan=made, versions={})


def test_a_rule_as_a_page() -> None:
    page = explain(rule())
    assert page.startswith("# cache-too-small/shrink-cache\n\nstable, lossy\n")
    for line in (
        "- `baseline.kv_share > 0.3`: KV cache that the whole load needs over the memory's capacity, per GPU; may exceed 1",
        "- `gpu.count >= 2`: GPUs to serve on [GPUs]",
        "- kv memory: 0.5 times (arithmetic)",
        "- accuracy loss: 0 to 1 % (published; a made-up case)",
        "- deployment: kv_cache = fp8",
        "- action: serve (scales = 1, 1.10, note = a fixture)",
        "- cache-too-small/take-fewer",
        "- Eight bits are half of sixteen. (a fixture of the tests, 2026-11-23)",
        "- one GPU: blocked (baseline.kv_share = 0.9, gpu.count = 1, measured.accuracy_loss_pct = not known)",
    ):
        assert f"\n{line}\n" in page, line
    assert "The remedy requires" not in explain(rule("take-fewer"))


def test_why_it_fires_with_both_sides_and_units() -> None:
    page = explain(
        rule(), report(FIRING, steps=(Step(rule=rule().id, changes={}, before=ESTIMATE, after=ESTIMATE, alone=ESTIMATE),))
    )
    assert page.startswith("# cache-too-small/shrink-cache: fires\n")
    assert "meta-llama/Llama-3.1-8B-Instruct on 1 x NVIDIA H100 80GB HBM3, traffic flags" in page
    assert "The problem is there and the remedy is possible. It is step 1 of 1 in the plan." in page
    assert "- yes: `baseline.kv_share > 0.3`, here 0.618 > 0.3 (" in page
    assert "- yes: `measured.accuracy_loss_pct <= goal.accuracy_budget_pct`, here 0.5 <= 1 % (" in page
    assert "- yes: `support.kv_cache.fp8 in [native, fallback]`, here native in [native, fallback] (" in page
    assert "To find out" not in page


def test_why_it_is_silent_blocked_or_unknown() -> None:
    silent = explain(rule(), report(FIRING | {"baseline.kv_share": 0.3}))
    assert "The problem is not there." in silent and "- no: `baseline.kv_share > 0.3`, here 0.3 > 0.3" in silent
    rejected = (Rejection(rule=rule().id, reason="one GPU is too few"),)
    blocked = explain(rule(), report(FIRING | {"gpu.count": 1}, rejected=rejected))
    assert "the remedy is not possible. It is not in the plan: one GPU is too few" in blocked
    assert "- no: `gpu.count >= 2`, here 1 >= 2 GPUs" in blocked
    later = (Fallback.model_validate({"if": "the loss is measured", "rule": rule().id}),)
    unknown = explain(rule(), report(FIRING | {"measured.accuracy_loss_pct": None}, fallbacks=later))
    assert "The plan falls back to it if the loss is measured." in unknown
    assert "here not known <= 1 %" in unknown
    assert "## To find out\n\n- measured.accuracy_loss_pct: advise apply measures it" in unknown


def test_a_line_of_an_overlay_is_shown_as_such() -> None:
    stricter = rule().model_copy(update={"when": (*rule().when, "traffic.concurrency > 8")})
    page = explain(rule(), report(FIRING, stricter))
    assert "## Added by the overlay of the report\n\n- not known: `traffic.concurrency > 8`" in page


def test_a_report_without_the_rule() -> None:
    with pytest.raises(UnknownName, match="unknown finding") as caught:
        explain(rule("take-fewer"), report(FIRING))
    assert "made with other rules" in caught.value.hint
    override = Override(
        rule="cache-too-small/take-fewer", change="suppressed", reason="never", until="2027-01-01", source="o.yaml"
    )
    with pytest.raises(UnknownName) as caught:
        explain(rule("take-fewer"), report(FIRING).model_copy(update={"overrides": (override,)}))
    assert "o.yaml switches it off until 2027-01-01: never" in caught.value.hint


def test_evidence_of_another_versions_vocabulary_is_shown_all_the_same() -> None:
    old = report(FIRING)
    line = old.findings[0].evidence[0].model_copy(update={"condition": "gone.fact > 3"})
    finding = old.findings[0].model_copy(update={"evidence": (line,)})
    page = explain(rule(), old.model_copy(update={"findings": (finding,)}))
    assert "`gone.fact > 3`" in page and "does not know" in page


def test_the_pages_of_all_rules() -> None:
    rulebook = Rulebook((rule(), rule("take-fewer")))
    pages = rule_docs(rulebook)
    assert sorted(pages) == ["README.md", "cache-too-small/shrink-cache.md", "cache-too-small/take-fewer.md"]
    assert "- [take-fewer](cache-too-small/take-fewer.md), lossless: Take fewer requests at once." in pages["README.md"]
