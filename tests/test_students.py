"""The student that would keep the limits: shapes by hand, the largest that passes, what is published, and the pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from advisor import gathering, pipeline
from advisor.estimator.deployment import estimate
from advisor.estimator.memory import parameter_count
from advisor.estimator.students import expected_student_loss, is_uniform, narrower, rounds_of, shallower, share_of
from advisor.profiler.known_models import read_known
from advisor.reasoner.baseline import load_of
from advisor.report import units
from advisor.report.rendering import render
from advisor.types import Change, Interval, Report

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
MODEL = gathering.known_model(LLAMA)
assert MODEL is not None


def advise(model: str = LLAMA, **options: Any) -> Report:
    return pipeline.advise(pipeline.profile(model, gpu="h100", evidence="none", **options))


def test_half_the_layers_of_llama_8b_are_the_minitron_depth_student() -> None:
    half = shallower(MODEL, 16)
    embedding = 2 * 128256 * 4096
    layers = parameter_count(MODEL) - embedding
    assert parameter_count(half) == pytest.approx(embedding + layers / 2, rel=1e-4)
    assert parameter_count(half) == pytest.approx(4.54e9, rel=0.005)  # nvidia/Llama-3.1-Minitron-4B-Depth-Base
    assert share_of(half, MODEL) == pytest.approx(0.565, abs=0.001)
    assert (half.layers, half.attention_layers, half.mlp_layers, half.hidden) == (16, 16, 16, 4096)


def test_a_narrower_model_counts_each_part_by_its_own_width() -> None:
    small = narrower(MODEL, 3072)
    attention = 32 * 2 * 3072 * (32 + 8) * 128
    mlp = 32 * 3 * 3072 * 10752
    assert small.intermediate == 10752
    assert parameter_count(small) == pytest.approx(2 * 128256 * 3072 + attention + mlp, rel=1e-3)
    assert (small.layers, small.heads, small.head_dim) == (32, 32, 128)


def test_only_uniform_models_are_cut() -> None:
    hybrid, _ = read_known("nvidia--Llama-3_3-Nemotron-Super-49B-v1")
    assert is_uniform(MODEL) and not is_uniform(hybrid)


def test_the_largest_student_passes_and_a_larger_one_does_not() -> None:
    report = advise(itl_ms=6)
    found = report.plan.distillation
    assert found is not None and found.rule == "teacher-too-slow/distil-then-quantize"
    assert [one.how for one in found.students] == ["sibling", "depth", "width"]
    assert found.students[0].name == "meta-llama/Llama-3.2-3B" and found.students[0].loss is None
    deep = found.students[1]
    deployment = report.plan.deployment.model_copy(update={"speculation": None})
    profile = report.profile

    def itl(layers: int) -> float:
        made = estimate(shallower(profile.model, layers), profile.gpu, deployment, load_of(profile.traffic), profile.engine)
        assert made.itl_ms is not None
        return made.itl_ms

    assert itl(deep.layers) == deep.expected.itl_ms and itl(deep.layers) <= 6 < itl(deep.layers + 1)
    # the gain is compounded: fewer layers alone are not enough, nor is the format alone
    assert deep.plain.itl_ms is not None and report.plan.expected.itl_ms is not None
    assert deep.plain.itl_ms > 6 and report.plan.expected.itl_ms > 6
    assert deep.cost is not None and deep.cost.gpu_hours[0] < deep.cost.gpu_hours[1]
    assert deep.loss is not None and (deep.loss.low_pct, deep.loss.high_pct) == (1.2, 9.0)
    assert deep.here and not found.students[2].here
    assert any("714 times its teacher's perplexity, and 3.33 times after 15,360 tokens" in note for note in found.notes)
    assert any("2 x NVIDIA H100" in note and "pays for itself" in note for note in found.notes)


def test_a_deep_cut_is_called_hopeless() -> None:
    found = advise(itl_ms=2).plan.distillation
    assert found is not None and "hopeless" in found.verdict
    deep = next(one for one in found.students if one.how == "depth")
    assert deep.rounds == 4 and deep.loss is None


def test_where_nothing_would_do_it_says_so() -> None:
    found = advise(itl_ms=0.2).plan.distillation
    assert found is not None and found.students == () and found.verdict.startswith("No student would do")


def test_no_student_where_the_limits_are_kept() -> None:
    assert advise(itl_ms=20).plan.distillation is None


def test_a_budget_that_no_published_student_kept_is_told() -> None:
    said = "not worth it within an accuracy budget of 0.1 %"
    for budget, told in ((0.1, True), (5.0, False)):
        found = advise(itl_ms=6, accuracy_budget_pct=budget).plan.distillation
        assert found is not None and any(note.startswith(said) for note in found.notes) is told


def test_a_measured_limit_is_kept_as_measured(tmp_path: Path) -> None:
    measured = tmp_path / "measured.json"
    measured.write_text('{"itl_ms": 10.0, "teacher_loss_pct": 0.0}')
    report = advise(itl_ms=8, accuracy_budget_pct=5.0, measured=str(measured))
    found = report.plan.distillation
    assert report.plan.feasible and found is not None
    assert found.broken == ("ITL (measured 10 ms, limit 8 ms)",)
    assert report.plan.expected.itl_ms is not None
    for one in found.students:
        assert one.expected.itl_ms is not None
        assert one.expected.itl_ms * 10 / report.plan.expected.itl_ms <= 8


def test_a_policy_against_training_or_the_rule_stops_it(tmp_path: Path) -> None:
    for text in ("training: never\n", "techniques: {forbid: [teacher-too-slow/*]}\n"):
        policy = tmp_path / "advise.yaml"
        policy.write_text(text)
        profile = pipeline.profile(LLAMA, gpu="h100", itl_ms=6, evidence="none")
        assert pipeline.advise(profile, policy=policy).plan.distillation is None


@pytest.mark.parametrize(
    ("how", "share", "low", "high"),
    [("depth", 0.565, 17.1, 17.1), ("width", 0.6, 1.1, 6.9), ("depth", 0.8, 1.2, 9.0), ("depth", 0.95, 0.0, 9.0)],
)
def test_what_published_students_lost(how: Any, share: float, low: float, high: float) -> None:
    found = expected_student_loss(how, share)
    assert found is not None and (found.low_pct, found.high_pct) == (low, high) and found.basis == "published"


def test_no_published_student_is_near() -> None:
    assert expected_student_loss("depth", 0.3) is None and expected_student_loss("depth", 0.67) is None


@pytest.mark.parametrize(("share", "rounds"), [(0.9, 1), (0.5, 1), (0.48, 3), (0.29, 4), (0.2, 5)])
def test_rounds_of_cutting(share: float, rounds: int) -> None:
    assert rounds_of(share) == rounds


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_every_page_shows_the_student(form: Any) -> None:
    report = advise(itl_ms=6)
    page = render(report, form)
    assert "A smaller model that would keep the limits" in page
    assert report.plan.distillation is not None
    deep = report.plan.distillation.students[1]
    assert f"{deep.layers} of 32 layers" in page and units.figure(deep.expected.itl_ms) in page and "Llama-3.2-3B" in page
    assert "--student-layers" in page and "--student-layers" not in render(advise(itl_ms=2), form)


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_what_a_made_student_lost_is_what_was_measured(form: Any) -> None:
    asked = pipeline.advise_student(advise(itl_ms=6), None)
    figures = (
        Interval(metric="perplexity_loss_pct", what="student", value=13.14, low=8.93, high=17.46),
        Interval(metric="tokens", what="training", value=3652),
    )
    change = Change(rule="teacher-too-slow/distil-then-quantize", action="distill", gate="passed", training=figures)
    made = asked.model_copy(update={"changes": (change,)})
    before, after = (" ".join(render(one, form).split()) for one in (asked, made))
    assert "1.2–9" in before and "percent of the teacher" in before
    assert "1.2–9" not in after and "13.1 (8.9–17)" in after and "source of what is lost" not in after
    assert "measured at 16 bits against its teacher after distilling on 3,652 tokens" in after
    assert "percent of the perplexity, 95 % between 8.93 and 17.5" in after
