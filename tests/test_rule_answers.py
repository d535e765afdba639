"""What the rules say about real models on real GPUs under real traffic, through the profiler, the tables and the estimator."""

from __future__ import annotations

from typing import Any

import pytest
import sample_profiles as samples

from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.profiler.traffic import adjust, read_traffic
from advisor.reasoner.condition import parse
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.facts import CALIBRATION_SENSITIVE, gather_facts
from advisor.reasoner.rulebook import Rulebook, load_rules
from advisor.types import Engine, Finding, Goal, Profile, Quantized, Scalar, Traffic

SMALL = "meta-llama/Llama-3.1-8B-Instruct"
LARGE = "meta-llama/Llama-3.3-70B-Instruct"
FP8 = "weights-slow-decode/fp8-weights"
INT8 = "weights-slow-decode/int8-smoothquant"
NVFP4 = "weights-slow-decode/nvfp4-weights"
INT4 = "memory-barely-fits/int4-awq"
W4A8 = "memory-barely-fits/w4a8-awq"
KV_FP8 = "kv-cache-starves-batch/fp8-kv-cache"
KV_INT8 = "kv-cache-starves-batch/int8-kv-cache"
KV_NVFP4 = "kv-cache-starves-batch/nvfp4-kv-cache"
IN_FLIGHT = "static-batching-idles/in-flight-batching"
EAGLE = "single-stream-slow/eagle3"
VLLM = Engine(name="vllm", version="0.32.0")
PROMPTS_OF_4K = samples.traffic(4096, 256, concurrency=32)


@pytest.fixture(scope="module")
def rulebook() -> Rulebook:
    return load_rules()


def profile(model: str, gpu: str, count: int = 1, traffic: str | Traffic = "chat", **changes: Any) -> Profile:
    """traffic: a profile's name, or the traffic itself. concurrency among the changes overrides a named profile's."""
    declared = (traffic, {}) if isinstance(traffic, Traffic) else read_traffic(traffic)
    if "concurrency" in changes:
        declared = adjust(*declared, concurrency=changes.pop("concurrency"))
    return Profile(gpu=find_gpu(gpu, count)[0], model=read_model(model)[0], traffic=declared[0], **changes)


def judged(profile: Profile, rulebook: Rulebook) -> dict[str, Finding]:
    return {finding.rule: finding for finding in diagnose(profile, rulebook)}


def verdicts(profile: Profile, rulebook: Rulebook) -> dict[str, str]:
    return {rule: finding.verdict for rule, finding in judged(profile, rulebook).items()}


def left(finding: Finding, fact: str) -> Scalar:
    return next(one.left for one in finding.evidence if one.condition.startswith(f"{fact} "))


def test_chat_on_one_hopper_gpu(rulebook: Rulebook) -> None:
    found = verdicts(profile(SMALL, "h100"), rulebook)
    assert {found[rule] for rule in (FP8, KV_FP8, IN_FLIGHT, "quantization-route/ptq-first")} == {"fires"}
    assert {found[rule] for rule in (INT4, W4A8, EAGLE, "few-streams-read-all-weights/int4-awq")} == {"silent"}
    assert {found[rule] for rule in (INT8, NVFP4, KV_INT8, KV_NVFP4)} == {"blocked"}


def test_seventy_billion_on_one_80_gb_hopper(rulebook: Rulebook) -> None:
    found = judged(profile(LARGE, "h100", traffic=PROMPTS_OF_4K), rulebook)
    assert {found[rule].verdict for rule in (INT4, W4A8, FP8, KV_FP8)} == {"fires"}
    assert 0.8 < left(found[INT4], "fit.native.weight_share") < 0.9  # type: ignore[operator]
    assert 0 < left(found[INT4], "fit.native.coverage") < 0.25, "FP8 would do for a handful of streams"  # type: ignore[operator]
    assert found["int4-at-high-batch/add-a-gpu"].verdict == "fires"
    handful = verdicts(profile(LARGE, "h100", traffic=samples.traffic(4096, 256, concurrency=3)), rulebook)
    assert handful[INT4] == "silent" and handful[FP8] == "fires"


@pytest.mark.parametrize("engine", [Engine(), VLLM], ids=lambda engine: engine.name)
def test_nothing_fp8_fires_on_ampere(engine: Engine, rulebook: Rulebook) -> None:
    found = verdicts(profile(LARGE, "a100", traffic=PROMPTS_OF_4K, engine=engine), rulebook)
    assert found[INT4] == "fires"
    assert {found[rule] for rule in (FP8, "weights-slow-decode/fp8-block-weights", W4A8, NVFP4)} == {"blocked"}
    assert found[KV_FP8] == "unknown", "listed by one source and denied by others: not chosen unasked"
    assert found[INT8] == ("fires" if engine is VLLM else "blocked"), "only where the backend has it"


def test_the_doubt_about_an_fp8_cache_on_ampere_names_both_sources(rulebook: Rulebook) -> None:
    finding = judged(profile(SMALL, "a100"), rulebook)[KV_FP8]
    told = "".join(one.find_out for one in finding.evidence)
    assert "1.2.1" in told and "Hopper and later" in told and "listed and unverified" in told


def test_a_context_of_128k(rulebook: Rulebook) -> None:
    found = judged(profile(SMALL, "h100", traffic="long-context"), rulebook)
    assert found[KV_FP8].verdict == "fires" and found[KV_NVFP4].verdict == "blocked"
    assert left(found[KV_FP8], "baseline.cache_to_weights") > 5  # type: ignore[operator]
    facts = gather_facts(profile(SMALL, "h100", traffic="long-context"))
    held = facts["baseline.max_concurrency"]
    assert facts["fit.kv_fp8.max_concurrency"] in (2 * held, 2 * held + 1)  # type: ignore[operator]
    assert verdicts(profile(LARGE, "b200", 4, traffic="long-context"), rulebook)[KV_NVFP4] == "fires"
    assert verdicts(profile(LARGE, "rtx-pro-6000-blackwell-server", 4, traffic="long-context"), rulebook)[KV_NVFP4] == "blocked"


@pytest.mark.parametrize(("gpu", "count"), [("h100", 1), ("h100", 2), ("h200", 1)])
def test_one_stream_speculates(gpu: str, count: int, rulebook: Rulebook) -> None:
    here = profile(LARGE, gpu, count, traffic="interactive", goal=Goal(objective="latency"))
    finding = judged(here, rulebook)[EAGLE]
    assert finding.verdict == "fires" and left(finding, "speculation.gain") > 1.5  # type: ignore[operator]
    assert gather_facts(here)["speculation.best_method"] == "eagle3"


def test_256_streams_do_not_and_the_rule_says_from_where_on(rulebook: Rulebook) -> None:
    for count in (2, 4, 8):
        finding = judged(profile(LARGE, "h100", count, concurrency=256), rulebook)[EAGLE]
        assert finding.verdict == "silent"
        turn = next(one for one in finding.evidence if one.condition.endswith("speculation.break_even_concurrency"))
        assert turn.right is not None and turn.right > 1  # type: ignore[operator]


def test_mixed_lengths_under_static_batching(rulebook: Rulebook) -> None:
    for batching in (None, "static", "in-flight"):
        finding = judged(profile(SMALL, "h100", engine=Engine(batching=batching)), rulebook)[IN_FLIGHT]  # type: ignore[arg-type]
        assert finding.verdict == "fires"
        assert 0.4 < left(finding, "traffic.static_idle_share") < 0.8  # type: ignore[operator]


def test_a_quantized_checkpoint_is_not_quantized_again(rulebook: Rulebook) -> None:
    plain = profile(SMALL, "h100")
    fp8 = plain.model.model_copy(update={"quantized": Quantized(weights="fp8", method="modelopt", kv_cache="fp8")})
    found = judged(plain.model_copy(update={"model": fp8}), rulebook)
    quantizing = [rule.id for rule in rulebook.rules if "weights" in rule.applies.deployment]
    assert [rule for rule in quantizing if found[rule].verdict == "fires"] == []
    assert found[KV_FP8].verdict == "silent"
    assert found["checkpoint-already-quantized/keep-format"].verdict == "fires"
    nvfp4 = plain.model.model_copy(update={"quantized": Quantized(weights="nvfp4", method="modelopt")})
    assert verdicts(plain.model_copy(update={"model": nvfp4}), rulebook)["checkpoint-not-supported/other-checkpoint"] == "fires"
    with_vllm = plain.model_copy(update={"model": nvfp4, "engine": VLLM})
    assert verdicts(with_vllm, rulebook)["checkpoint-falls-back/expect-16-bit-speed"] == "fires"


def test_an_offline_job_counts_as_more_than_memory_holds(rulebook: Rulebook) -> None:
    found = verdicts(profile(LARGE, "a100", traffic="batch"), rulebook)
    assert found[INT4] == "fires", "as many as memory holds: the 16-bit weights do not even fit"
    assert verdicts(profile(LARGE, "h100", traffic="batch"), rulebook)[KV_FP8] == "fires"
    assert verdicts(profile(SMALL, "h100", traffic="batch"), rulebook)[INT4] == "silent", "8B does not barely fit"


def test_a_rate_is_judged_even_where_the_baseline_does_not_fit(rulebook: Rulebook) -> None:
    here = profile(LARGE, "a100", traffic=samples.traffic(2048, 256, concurrency=None, rate=0.2))
    assert gather_facts(here)["traffic.concurrency"] is not None
    assert verdicts(here, rulebook)[INT4] == "fires"


ESCALATION: list[tuple[dict[str, Scalar], str, set[str]]] = [
    ({"scheme": "int8_sq", "recalibrated": False}, "int8_sq", {"recalibrate"}),
    ({"scheme": "int8_sq", "recalibrated": True}, "int8_sq, recalibrated", {"mixed-precision"}),
    ({"scheme": "fp8", "recalibrated": False}, "fp8", {"mixed-precision"}),
    ({"scheme": "int4_awq", "recalibrated": False}, "int4_awq", {"mixed-precision"}),
    ({"scheme": "int4_awq", "recalibrated": False, "mixed_precision_tried": True}, "int4_awq, mixed", {"qad", "qat"}),
    ({"scheme": "int8_sq", "recalibrated": False, "mixed_precision_tried": True}, "mixed, not recalibrated", {"recalibrate"}),
    ({"scheme": "fp8", "recalibrated": False, "mixed_precision_tried": True, "qat_tried": True}, "all tried", set()),
]


@pytest.mark.parametrize(("measured", "name", "expected"), ESCALATION, ids=lambda one: one if isinstance(one, str) else "")
def test_the_rules_carry_the_order_of_escalation(
    measured: dict[str, Scalar], name: str, expected: set[str], rulebook: Rulebook
) -> None:
    del name
    over = {"accuracy_loss_pct": 4.0, "sensitive_layer_share": 0.5, "mixed_precision_tried": False, "qat_tried": False}
    here = profile(SMALL, "h100", goal=Goal(accuracy_budget_pct=2.0), measured={**over, **measured})
    found = verdicts(here, rulebook)
    assert {
        rule.split("/")[1] for rule, verdict in found.items() if rule.startswith("accuracy-missed/") and verdict == "fires"
    } == expected


def test_before_a_measurement_the_rows_that_need_one_say_how_to_find_out(rulebook: Rulebook) -> None:
    found = judged(profile(SMALL, "h100", goal=Goal(accuracy_budget_pct=2.0)), rulebook)
    asking = [rule for rule in found if rule.startswith(("accuracy-missed/", "teacher-too-slow/"))]
    assert len(asking) == 5
    for rule in asking:
        assert found[rule].verdict == "unknown"
        assert any("advise apply" in one.find_out for one in found[rule].evidence if one.holds is None)


def test_the_schemes_that_recalibration_helps_are_the_same_everywhere(rulebook: Rulebook) -> None:
    asked = next(
        line for line in rulebook.rule("accuracy-missed/recalibrate").requires if line.startswith("measured.scheme in")
    )
    assert parse(asked).right == CALIBRATION_SENSITIVE


def test_no_rule_hard_wires_a_compute_capability(rulebook: Rulebook) -> None:
    for rule in rulebook.rules:
        for line in (*rule.when, *rule.requires):
            assert not line.startswith(("gpu.sm", "gpu.architecture", "gpu.name", "gpu.id")), (
                f"{rule.id}: ask the support table"
            )
