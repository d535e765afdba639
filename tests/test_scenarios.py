"""What an expert would answer, and why: whole questions to the advisor, checked against published practice.

`facts/…` are the collected sources that the repository's knowledge rests on; each expectation names its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from advisor import pipeline
from advisor.errors import InputError
from advisor.reasoner.choice import aim, violations, worth
from advisor.reasoner.decision import Search, decide
from advisor.reasoner.diagnosis import diagnose, find_firing
from advisor.reasoner.rejection import describe
from advisor.reasoner.support import lookup
from advisor.types import Plan, Report

L8 = "meta-llama/Llama-3.1-8B-Instruct"
L70 = "meta-llama/Llama-3.3-70B-Instruct"
L405 = "meta-llama/Llama-3.1-405B-Instruct"
R1 = "deepseek-ai/DeepSeek-R1-0528"
OSS = "openai/gpt-oss-120b"


@cache
def ask(model: str, **question: Any) -> Report:
    return pipeline.advise(pipeline.profile(model, **question))


class Expected(NamedTuple):
    """A question and the values that a field of the chosen deployment may have."""

    why: str
    model: str
    question: dict[str, Any]
    answer: Mapping[str, tuple[object, ...]]


FP8: dict[str, tuple[object, ...]] = {"weights": ("fp8",), "kv_cache": ("fp8",)}
NVFP4: dict[str, tuple[object, ...]] = {"weights": ("nvfp4",), "kv_cache": ("fp8",)}
INT4: dict[str, tuple[object, ...]] = {"weights": ("int4_awq", "int4_gptq"), "kv_cache": ("bf16",)}
SCENARIOS = (
    Expected("Hopper: FP8 weights and cache first (ModelOpt ptq.md)", L8, {"gpu": "h100", "traffic": "chat"}, FP8),
    Expected("Ada computes FP8 (TensorRT-LLM 1.2.1 table, SM89)", L8, {"gpu": "l40s", "traffic": "chat"}, FP8),
    Expected("Ada, consumer card", L8, {"gpu": "rtx-4090", "traffic": "chat", "concurrency": 16}, FP8),
    Expected(
        "1 H200 holds a 70B in FP8 (perf-overview pick)",
        L70,
        {"gpu": "h200", "isl": 1000, "osl": 1000, "concurrency": 256},
        FP8,
    ),
    Expected(
        "2 H100: FP8 with TP2 (perf-overview pick)",
        L70,
        {"gpu": "h100", "gpus": 2, "isl": 1000, "osl": 1000, "concurrency": 256},
        FP8 | {"tensor_parallel": (2,)},
    ),
    Expected(
        "Blackwell starts from FP4 (perf-overview pick, 1 B200)",
        L70,
        {"gpu": "b200", "isl": 1024, "osl": 1024, "concurrency": 64},
        NVFP4 | {"tensor_parallel": (1,)},
    ),
    Expected("1 GB200 (perf-overview pick)", L70, {"gpu": "gb200", "isl": 1000, "osl": 1000, "concurrency": 128}, NVFP4),
    Expected(
        "an FP8 cache comes first, NVFP4 is for long contexts",
        L70,
        {"gpu": "b200", "isl": 2048, "osl": 2048, "concurrency": 512},
        {"kv_cache": ("fp8",)},
    ),
    Expected("short chats never need a 4-bit cache", L8, {"gpu": "b200", "traffic": "chat"}, {"kv_cache": ("fp8",)}),
    Expected(
        "128k contexts on B200 may have it",
        L8,
        {"gpu": "b200", "isl": 120000, "osl": 1000, "concurrency": 32},
        {"kv_cache": ("fp8", "nvfp4")},
    ),
    Expected(
        "A100 has no FP8 and its FP8 cache is disputed: W4A16",
        L70,
        {"gpu": "a100-80gb", "isl": 4096, "osl": 512, "concurrency": 32},
        INT4,
    ),
    Expected(
        "A100, one stream: weight-only pays at batch 4 and below", L8, {"gpu": "a100-80gb", "traffic": "interactive"}, INT4
    ),
    Expected(
        "A100 at 64 at once: weight-only is slower than 16 bits (AutoAWQ 71)",
        L8,
        {"gpu": "a100-80gb", "traffic": "chat", "concurrency": 64},
        {"weights": ("bf16",), "kv_cache": ("bf16",)},
    ),
    Expected(
        "INT8 SmoothQuant where the backend has it: vLLM on A100",
        L8,
        {"gpu": "a100-80gb", "traffic": "chat", "engine": "vllm"},
        {"weights": ("int8_sq", "bf16")},
    ),
    Expected(
        "405B on 8 A100: only 4 bits fit",
        L405,
        {"gpu": "a100-80gb", "gpus": 8, "isl": 1000, "osl": 1000, "concurrency": 32},
        INT4,
    ),
    Expected(
        "405B on 8 H100: FP8 over all of them",
        L405,
        {"gpu": "h100", "gpus": 8, "isl": 1000, "osl": 1000, "concurrency": 32},
        {"weights": ("fp8",), "tensor_parallel": (8,)},
    ),
    Expected(
        "MXFP4 stays MXFP4 (TensorRT-LLM curated configs)",
        OSS,
        {"gpu": "h200", "isl": 1000, "osl": 1000, "concurrency": 64},
        {"weights": ("mxfp4",), "tensor_parallel": (1,)},
    ),
    Expected(
        "R1 in its own block scales, attention-DP with EP (curated throughput config)",
        R1,
        {"gpu": "b200", "gpus": 8, "isl": 1024, "osl": 2048, "concurrency": 3072},
        {"weights": ("fp8_block",), "attention_dp": (True,), "expert_parallel": (8,)},
    ),
    Expected(
        "R1 alone: MTP over all GPUs, no attention-DP (best practice on B200)",
        R1,
        {"gpu": "b200", "gpus": 8, "isl": 1024, "osl": 2048, "concurrency": 1, "objective": "latency"},
        {"attention_dp": (False,), "tensor_parallel": (8,), "speculation": ("mtp",)},
    ),
    Expected(
        "a trained EAGLE-3 head before a draft model (speculative-decoding.md)",
        L70,
        {"gpu": "h100", "gpus": 2, "traffic": "interactive", "objective": "latency"},
        {"weights": ("fp8",), "speculation": ("eagle3",), "tensor_parallel": (2,)},
    ),
    Expected(
        "at 256 at once speculation does not pay",
        L70,
        {"gpu": "h100", "gpus": 4, "traffic": "chat", "concurrency": 256},
        FP8 | {"speculation": (None,)},
    ),
    Expected(
        "many chats on 8 GPUs: replicas, no sharding of an 8B",
        L8,
        {"gpu": "h100", "gpus": 8, "traffic": "chat", "concurrency": 512},
        FP8 | {"tensor_parallel": (1,), "replicas": (8,)},
    ),
    Expected(
        "no loss allowed: 16-bit weights",
        L8,
        {"gpu": "h100", "traffic": "chat", "accuracy_budget_pct": 0},
        {"weights": ("bf16",)},
    ),
    Expected("repeated prefixes are reused", L8, {"gpu": "h100", "traffic": "agent"}, {"prefix_reuse": (True,)}),
    Expected(
        "a 135M loses too much at 4 bits",
        "HuggingFaceTB/SmolLM2-135M",
        {"gpu": "b200", "traffic": "chat"},
        {"weights": ("bf16", "fp8")},
    ),
    Expected("an FP8 checkpoint stays FP8", "nvidia/Llama-3.1-8B-Instruct-FP8", {"gpu": "h100", "traffic": "chat"}, FP8),
)


@pytest.mark.parametrize("expected", SCENARIOS, ids=lambda one: one.why)
def test_an_expert_would_choose(expected: Expected) -> None:
    profile, rulebook = pipeline.profile(expected.model, **expected.question), pipeline.rules()
    firing = find_firing(profile, rulebook)
    assert [one.rule for one in firing] == [one.rule for one in diagnose(profile, rulebook) if one.verdict == "fires"]
    decision = decide(profile, rulebook, firing)
    chosen = decision.chosen.deployment
    values = chosen.model_dump() | {"speculation": chosen.speculation and chosen.speculation.method}
    assert decision.feasible
    wrong = {field: values[field] for field, allowed in expected.answer.items() if values[field] not in allowed}
    assert not wrong, describe(chosen)
    again = decide(profile, rulebook, firing, Search(profile, fitting=True))
    assert (again.chosen.deployment, again.feasible) == (chosen, True), "what does not fit decides nothing"


def test_what_fits_nowhere_is_no_plan_however_it_is_searched() -> None:
    profile, rulebook = pipeline.profile(L405, gpu="h100", gpus=2), pipeline.rules()
    firing = find_firing(profile, rulebook)
    assert not any(decide(profile, rulebook, firing, Search(profile, fitting=fitting)).feasible for fitting in (False, True))


@pytest.mark.parametrize("expected", SCENARIOS[::4], ids=lambda one: one.why)
def test_a_plan_holds_together(expected: Expected) -> None:
    report = ask(expected.model, **expected.question)
    plan, profile = report.plan, report.profile
    assert_memory_adds_up(plan)
    deployment, before = plan.baseline_deployment, plan.baseline
    for step in plan.steps:
        assert step.before == before
        deployment, before = deployment.model_copy(update=step.changes), step.after
    assert (deployment, before) == (plan.deployment, plan.expected)
    own = profile.model.quantized
    for kind, name, given in (
        ("weights", deployment.weights, own and own.weights),
        ("kv_cache", deployment.kv_cache, own and own.kv_cache),
    ):
        support, _ = lookup(profile.engine.name, profile.engine.version, profile.gpu.sm, kind, name)  # type: ignore[arg-type]
        assert support == "native" or name in ("bf16", given)
    assert not violations(plan.expected, profile.goal)


def assert_memory_adds_up(plan: Plan) -> None:
    for estimate in (plan.baseline, plan.expected, *(one.estimate for one in plan.alternatives)):
        memory = estimate.memory_gib
        parts = memory.weights + memory.kv_cache + memory.activations + memory.runtime
        assert memory.total == pytest.approx(parts, abs=0.01)
        assert not estimate.fits or memory.total <= memory.capacity + 1e-6


@pytest.mark.parametrize("expected", SCENARIOS[::4], ids=lambda one: one.why)
def test_what_was_left_out_is_explained_truly(expected: Expected) -> None:
    report = ask(expected.model, **expected.question)
    goal, verdicts = aim(report.profile), {one.rule: one.verdict for one in report.findings}
    for one in report.plan.rejected:
        assert one.reason.strip()
        if one.estimate is None or violations(one.estimate, goal):
            continue
        times = worth(one.estimate, goal) / worth(report.plan.expected, goal)
        assert ("within the estimator's error" in one.reason) <= (0.96 < times < 1.04)
        assert verdicts[one.rule] != "fires" or times < 1.04  # what may be had and is better is taken


class TestArrivals:
    def test_more_than_can_be_served_is_no_plan(self) -> None:
        plan = ask(L8, gpu="l4", isl=2000, osl=500, rate=50).plan
        assert not plan.feasible and "keeps up with the load" in plan.verdict
        assert any("requests/s of the 50 that arrive" in line for line in plan.shortfall)
        more = next(line for line in plan.shortfall if " x " in line)
        gpus = int(more.split()[0])
        assert ask(L8, gpu="l4", gpus=gpus, isl=2000, osl=500, rate=50).plan.feasible
        lower = next(line for line in plan.shortfall if "(now 50)" in line)
        assert ask(L8, gpu="l4", isl=2000, osl=500, rate=float(lower.split()[0])).plan.feasible

    def test_a_rate_that_is_served_anyhow_leaves_latency_to_gain(self) -> None:
        plan = ask(L8, gpu="h100", isl=1000, osl=200, rate=5).plan
        assert plan.deployment.weights == "fp8"
        assert (plan.expected.itl_ms or 0) < 0.6 * (plan.baseline.itl_ms or 0)
        assert {flip.fact for flip in plan.flips} >= {"traffic.rate"}


class TestLimits:
    def test_the_looser_limit_that_is_named_is_enough(self) -> None:
        plan = ask(L70, gpu="h100", traffic="chat", concurrency=32, itl_ms=2).plan
        said = next(line for line in plan.shortfall if "ITL of" in line)
        enough = float(said.split("ITL of ")[1].split(" ms")[0])
        assert ask(L70, gpu="h100", traffic="chat", concurrency=32, itl_ms=enough).plan.feasible

    @pytest.mark.parametrize("question", [{"gpu": "h100", "isl": 4096, "osl": 512}, {"gpu": "a100", "isl": 1024, "osl": 128}])
    def test_at_the_memory_of_a_flip_the_plan_is_another(self, question: dict[str, Any]) -> None:
        report = ask(L70, **question, concurrency=32)
        flips = [flip for flip in report.plan.flips if flip.fact == "gpu.memory_gib"]
        assert flips
        for flip in flips:
            gpu = report.profile.gpu.model_copy(update={"memory_gib": flip.at})
            there = pipeline.advise(report.profile.model_copy(update={"gpu": gpu})).plan
            if flip.then == "no plan keeps every limit":
                assert not there.feasible
            else:
                assert there.deployment != report.plan.deployment

    @pytest.mark.parametrize("question", [{"gpu": "h100"}, {"gpu": "l40s", "concurrency": 8}])
    def test_the_budget_of_a_flip_rules_the_plan_out(self, question: dict[str, Any]) -> None:
        plan = ask(L8, **question).plan
        at = next(flip.at for flip in plan.flips if flip.fact == "goal.accuracy_budget_pct")
        assert ask(L8, **question, accuracy_budget_pct=at).plan.deployment != plan.deployment
        assert ask(L8, **question, accuracy_budget_pct=at * 1.02).plan.deployment == plan.deployment


class TestSpeculation:
    def test_it_is_judged_at_the_batch_that_the_plan_leads_to(self) -> None:
        question = {"gpu": "gb200", "gpus": 8, "traffic": "chat", "objective": "cost"}
        plan = ask(L8, **question).plan
        batch = (plan.expected.concurrency or 0) / plan.deployment.replicas
        assert plan.deployment.speculation is None or batch < 16

    def test_a_small_target_gets_no_draft_model(self) -> None:
        """A 135M draft slowed a 1.7B target by 30 % (vllm-project/vllm issue 15025)."""
        report = ask("HuggingFaceTB/SmolLM2-1.7B", gpu="h100", traffic="interactive")
        assert report.plan.deployment.speculation is None
        said = next(one for one in report.findings if one.rule == "single-stream-slow/draft-model")
        assert said.verdict == "blocked"


class TestDoubts:
    def test_a_gpu_that_the_engine_does_not_list(self) -> None:
        said = " ".join(ask("meta-llama/Llama-3.2-3B", gpu="v100-sxm2-32gb").plan.warnings)
        assert "is unknown" in said and "FP16" in said

    def test_chunked_prefill_stays_where_nothing_else_changes(self) -> None:
        plan = ask(L8, gpu="a100-80gb", isl=120000, osl=1000, concurrency=8).plan
        assert plan.deployment.weights == "bf16" and plan.deployment.chunked_prefill

    def test_figures_of_the_impossible_are_not_promised(self) -> None:
        report = ask("nvidia/Qwen3-32B-NVFP4", gpu="h100", traffic="chat")
        said = next(one for one in report.plan.rejected if one.rule == "kv-cache-starves-batch/nvfp4-kv-cache")
        assert said.estimate is None

    def test_speculation_is_not_planned_over_pipeline_stages(self) -> None:
        plan = ask(L70, gpu="gh200-144gb", gpus=8, isl=512, osl=64, concurrency=1, objective="latency").plan
        assert plan.deployment.pipeline_parallel == 1 or plan.deployment.speculation is None


MEASURED: tuple[tuple[dict[str, Any], set[str]], ...] = (
    ({"scheme": "nvfp4", "accuracy_loss_pct": 4.0, "recalibrated": False}, {"accuracy-missed/recalibrate"}),
    (
        {
            "scheme": "nvfp4",
            "accuracy_loss_pct": 4.0,
            "recalibrated": True,
            "mixed_precision_tried": False,
            "sensitive_layer_share": 0.6,
        },
        {"accuracy-missed/mixed-precision"},
    ),
    (
        {"scheme": "nvfp4", "accuracy_loss_pct": 4.0, "recalibrated": True, "mixed_precision_tried": True, "qat_tried": False},
        {"accuracy-missed/qat", "accuracy-missed/qad"},
    ),
    ({"scheme": "nvfp4", "accuracy_loss_pct": 0.4}, set()),
)


@pytest.mark.parametrize(("measured", "fires"), MEASURED)
def test_rows_that_wait_for_a_measurement(measured: dict[str, Any], fires: set[str], tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(measured))
    report = ask(L8, gpu="b200", traffic="chat", accuracy_budget_pct=1.0, measured=str(file))
    assert {one.rule for one in report.findings if one.verdict == "fires" and one.rule.startswith("accuracy-missed/")} == fires


@pytest.mark.parametrize(
    ("question", "where"),
    [
        ({"engine_version": "new"}, "--engine-version"),
        ({"accuracy_metric": "perplexty"}, "--accuracy-metric"),
        ({"itl_ms": 0.0}, "--itl-ms"),
        ({"isl": -5}, "--isl"),
        ({"gpu": "h1000"}, "--gpu"),
    ],
)
def test_input_that_cannot_be(question: dict[str, Any], where: str) -> None:
    with pytest.raises(InputError) as caught:
        ask(L8, **({"gpu": "h100"} | question))
    assert where in caught.value.where and caught.value.hint


def test_control_characters_of_a_path_do_not_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        ask(L8, gpu="h100", measured=str(tmp_path / "\x1b[31m\u202e"))
    assert "\x1b" not in str(caught.value) and "\u202e" not in str(caught.value)
