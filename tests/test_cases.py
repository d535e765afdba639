"""The answers an expert would give: whole advice on real models and GPUs, judged by what it says."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from advisor import pipeline
from advisor.types import Finding, Rejection, Report


@cache
def _advise(items: tuple[tuple[str, Any], ...]) -> Report:
    return pipeline.advise(pipeline.profile(**dict(items)))


def advise(model: str, **options: Any) -> Report:
    """The report for a model and options, made once a test run."""
    return _advise((("model", model), *sorted(options.items())))


def finding(report: Report, rule: str) -> Finding:
    return next(one for one in report.findings if one.rule.endswith(f"/{rule}"))


def rejected(report: Report, rule: str) -> Rejection:
    return next(one for one in report.plan.rejected if one.rule.endswith(f"/{rule}"))


def chat_8b() -> Report:
    return advise("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", traffic="chat", concurrency=32)


def long_70b(gpu: str = "h100", concurrency: float = 32) -> Report:
    return advise("meta-llama/Llama-3.3-70B-Instruct", gpu=gpu, isl=4096, osl=256, concurrency=concurrency)


class TestChatOn8B:
    def test_it_becomes_fp8_with_an_fp8_cache_and_in_flight_batching(self) -> None:
        plan = chat_8b().plan
        assert (plan.deployment.weights, plan.deployment.kv_cache, plan.deployment.batching) == ("fp8", "fp8", "in-flight")
        assert plan.feasible

    def test_in_flight_batching_is_named_with_the_idle_share_of_static_batches(self) -> None:
        said = finding(chat_8b(), "in-flight-batching")
        assert said.verdict == "fires"
        idle = next(one for one in said.evidence if "static_idle_share" in one.condition)
        assert isinstance(idle.left, float) and 0.05 < idle.left < 1

    def test_int4_is_rejected_with_numbers_at_this_batch(self) -> None:
        said = rejected(chat_8b(), "int4-awq")
        assert said.estimate is not None
        assert "tokens/s" in said.reason and "loss" in said.reason
        assert said.estimate.output_tokens_per_s < chat_8b().plan.expected.output_tokens_per_s  # type: ignore[operator]

    def test_every_step_gains_and_ends_at_the_plan(self) -> None:
        plan = chat_8b().plan
        assert plan.steps[0].before == plan.baseline
        assert plan.steps[-1].after.output_tokens_per_s == pytest.approx(plan.expected.output_tokens_per_s, rel=1e-6)
        for before, after in zip(plan.steps, plan.steps[1:], strict=False):
            assert before.after == after.before


class Test70BOnOne80GB:
    def test_bf16_does_not_fit_and_fp8_holds_too_few(self) -> None:
        report = long_70b()
        assert not report.plan.baseline.fits
        assert report.plan.deployment.weights in ("int4_awq", "int4_gptq", "w4a8_awq")
        assert report.plan.expected.fits and (report.plan.expected.max_concurrency or 0) >= 32

    def test_fp8_would_do_at_a_handful_of_streams(self) -> None:
        said = rejected(long_70b(), "fp8-weights")
        assert said.estimate is not None and said.estimate.max_concurrency is not None
        assert 1 <= said.estimate.max_concurrency <= 16
        assert f"up to {said.estimate.max_concurrency} at once" in said.reason

    def test_nothing_fp8_is_promised_on_ampere(self) -> None:
        plan = long_70b("a100-80gb").plan
        assert plan.deployment.weights in ("int4_awq", "int4_gptq")
        assert plan.deployment.kv_cache == "bf16"
        assert not any("fp8" in str(step.changes) for step in plan.steps)
        for alternative in plan.alternatives:
            assert "fp8" not in (alternative.deployment.weights, alternative.deployment.kv_cache)

    def test_int8_smoothquant_only_where_the_backend_has_it(self) -> None:
        assert finding(long_70b("a100-80gb"), "int8-smoothquant").verdict in ("blocked", "unknown")


class TestLongContext:
    def test_the_cache_is_named_and_fp8_doubles_the_batch(self) -> None:
        report = advise("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", isl=128000, osl=512, concurrency=16)
        assert finding(report, "fp8-kv-cache").verdict == "fires"
        assert report.plan.deployment.kv_cache == "fp8"
        step = next(one for one in report.plan.steps if one.changes.get("kv_cache") == "fp8")
        assert step.after.max_concurrency == pytest.approx(2 * (step.before.max_concurrency or 0), abs=1)

    @pytest.mark.parametrize(("gpu", "verdict"), [("h100", "blocked"), ("l40s", "blocked")])
    def test_nvfp4_cache_only_where_it_is_supported(self, gpu: str, verdict: str) -> None:
        report = advise("meta-llama/Llama-3.1-8B-Instruct", gpu=gpu, isl=64000, osl=512, concurrency=16)
        assert finding(report, "nvfp4-kv-cache").verdict == verdict
        assert report.plan.deployment.kv_cache != "nvfp4"


class TestSingleStream:
    def test_speculation_with_method_draft_length_and_gain(self) -> None:
        report = advise("meta-llama/Llama-3.3-70B-Instruct", gpu="h100", gpus=4, traffic="interactive")
        speculation = report.plan.deployment.speculation
        assert speculation is not None and speculation.draft_len >= 1
        step = next(one for one in report.plan.steps if "speculation" in one.changes)
        assert (step.after.itl_ms or 0) < 0.8 * (step.before.itl_ms or 0)

    def test_at_256_at_once_the_same_rule_says_why_not(self) -> None:
        report = advise("meta-llama/Llama-3.3-70B-Instruct", gpu="h100", gpus=4, isl=1024, osl=256, concurrency=256)
        assert report.plan.deployment.speculation is None
        said = finding(report, "eagle3")
        assert said.verdict == "silent"
        assert any("break_even_concurrency" in one.condition and one.right is not None for one in said.evidence)


class TestStaticBatching:
    def test_mixed_lengths_under_static_batching_become_in_flight(self) -> None:
        report = advise("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", traffic="chat", batching="static")
        step = next(one for one in report.plan.steps if one.changes.get("batching") == "in-flight")
        assert report.plan.baseline_deployment.batching == "static"
        assert (step.after.output_tokens_per_s or 0) > 1.05 * (step.before.output_tokens_per_s or 0)


class TestQuantizedAlready:
    @pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "openai/gpt-oss-120b"])
    def test_a_quantized_checkpoint_is_not_quantized_again(self, model: str) -> None:
        plan = advise(model, gpu="h200", gpus=8, isl=1024, osl=1024, concurrency=32).plan
        assert plan.deployment.weights == plan.baseline_deployment.weights
        assert not any("weights" in step.changes for step in plan.steps)


class TestNothingFits:
    def test_70b_on_a_t4_names_the_nearest_plan_and_what_gives(self) -> None:
        plan = advise("meta-llama/Llama-3.3-70B-Instruct", gpu="t4").plan
        assert not plan.feasible and plan.shortfall
        assert any("memory" in line for line in plan.shortfall)

    def test_a_limit_nobody_can_keep(self) -> None:
        plan = advise("meta-llama/Llama-3.1-8B-Instruct", gpu="h100", itl_ms=0.5).plan
        assert not plan.feasible
        assert any("ITL" in line for line in plan.shortfall)


def test_of_plans_that_break_a_limit_one_that_holds_the_load_is_nearest() -> None:
    """Four replicas of one GPU have the lowest ITL: with the 20 of 64 requests that their caches hold."""
    plan = advise("meta-llama/Llama-3.3-70B-Instruct", gpu="h100", gpus=4, isl=4096, osl=512, concurrency=64, itl_ms=12).plan
    assert not plan.feasible and (plan.expected.max_concurrency or 0) >= 64
    assert (plan.expected.output_tokens_per_s or 0) > (plan.baseline.output_tokens_per_s or 0)


def test_the_same_input_gives_the_same_bytes() -> None:
    question = {"model": "Qwen/Qwen3-32B", "gpu": "l40s", "gpus": 4}
    first, second = (pipeline.advise(pipeline.profile(**question)).model_dump_json() for _ in range(2))
    assert first == second


def test_an_unknown_gpu_still_gets_advice() -> None:
    profile = pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100")
    bare = profile.gpu.model_copy(update={"id": None, "name": "NVIDIA X1", "bandwidth_gb_s": None, "sm": None})
    report = pipeline.advise(profile.model_copy(update={"gpu": bare}))
    assert report.plan.expected.memory_gib.weights > 0
    assert any(one.verdict == "unknown" for one in report.findings)
