"""The facts of a profile: every one of the vocabulary, by hand where it can be counted, None where it is not known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from sample_profiles import gpu, large_model, model, profile, traffic

from advisor.errors import InputError, UnknownName
from advisor.estimator.deployment import estimate
from advisor.reasoner import estimated
from advisor.reasoner.baseline import baseline_deployment, load_of
from advisor.reasoner.estimated import ESTIMATED, with_measured_acceptance
from advisor.reasoner.facts import OF_PROFILE, check_measured, gather_facts
from advisor.reasoner.vocabulary import FACTS, GROUPS, misfit
from advisor.types import Deployment, Draft, Engine, Goal, Moe, Quantized, Scalar, TensorRates, Window


def fact(name: str, **changes: Any) -> Scalar:
    return gather_facts(profile(**changes))[name]


def test_every_fact_of_the_vocabulary_is_computed_and_no_other() -> None:
    assert set(OF_PROFILE) | set(ESTIMATED) == set(FACTS)
    assert not set(OF_PROFILE) & set(ESTIMATED)


@pytest.mark.parametrize("name", FACTS)
def test_every_fact_is_described(name: str) -> None:
    described = FACTS[name]
    assert described.doc and described.find_out and "\n" not in described.doc
    assert described.kind in ("number", "bool", "enum", "string") and (described.kind == "enum") == bool(described.values)
    assert described.group in GROUPS and not (described.unit and described.kind != "number")


VARIANTS: dict[str, dict[str, Any]] = {
    "8B on H100": {},
    "70B on H100": {"model": large_model()},
    "70B on four": {"model": large_model(), "gpu": gpu(count=4)},
    "nothing known of the GPU": {
        "gpu": gpu(id=None, sm=None, memory_gib=None, bandwidth_gb_s=None, tflops=TensorRates(), link=None, link_gb_s=None)
    },
    "rate": {"traffic": traffic(concurrency=None, rate=2.0)},
    "offline": {"traffic": traffic(concurrency=None)},
    "MoE": {"model": model(moe=Moe(experts=8, active=2, intermediate=14336, layers=32), params=46_702_792_704)},
    "window": {"model": model(window=Window(size=4096, layers=16))},
    "fp8 checkpoint": {"model": model(quantized=Quantized(weights="fp8", method="modelopt", kv_cache="fp8"))},
    "strange checkpoint": {
        "model": model(quantized=Quantized(weights=None, method="bitsandbytes"), weight_bytes=4_100_000_000)
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_value_is_of_its_facts_type_and_finite(name: str) -> None:
    facts = gather_facts(profile(**VARIANTS[name]))
    for described in FACTS.values():
        value = facts[described.name]
        assert misfit(described, value) == ""
        assert not isinstance(value, float) or math.isfinite(value)
        if value is None:
            assert facts.find_out(described.name)
        if described.whole and value is not None:
            assert value == int(value)  # type: ignore[arg-type]
    assert len(facts) == len(FACTS) and list(facts) == list(FACTS)


def test_a_fact_that_nobody_knows_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        gather_facts(profile())["no.fact"]


def test_the_same_profile_gives_the_same_facts() -> None:
    first, second = (dict(gather_facts(profile())) for _ in range(2))
    assert first == second and repr(first) == repr(second)


def test_nothing_is_estimated_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return estimate(*arguments)

    monkeypatch.setattr(estimated, "estimate", counted)
    facts = gather_facts(profile())
    assert facts["gpu.sm"] == 90 and facts["traffic.concurrency"] == 32 and facts["support.kv_cache.fp8"] is not False
    assert calls == []
    facts["baseline.itl_ms"]
    once = len(calls)
    facts["baseline.ttft_ms"], facts["baseline.itl_ms"], facts["fit.bf16.fits"]
    assert once == len(calls) == 1, "the baseline is estimated once, and bf16 is the baseline"


COUNTED = [
    ("gpu.known", True),
    ("gpu.ridge_flops_per_byte", 989.4e12 / 3350e9),
    ("model.params_b", 8.030261248),
    ("model.active_params_b", 8.030261248),
    ("model.weight_bits", 16),
    ("model.bf16_gib", 8030261248 * 2 / 2**30),
    ("model.kv_bytes_per_token", 2 * 32 * 8 * 128 * 2),
    ("model.group_size", 128),
    ("model.experts", 0),
    ("model.is_moe", False),
    ("model.quantized_weights", "bf16"),
    ("model.quantized_kv_cache", "bf16"),
    ("traffic.context_mean", 1024 + 128),
    ("traffic.prefill_token_share", 0.8),
    ("baseline.tensor_parallel", 1),
    ("baseline.fits", True),
    ("baseline.batch", 32),
    ("goal.objective", "throughput"),
    ("engine.version", Engine().version),
]


@pytest.mark.parametrize(("name", "value"), COUNTED)
def test_counted_by_hand(name: str, value: Scalar) -> None:
    assert fact(name) == (pytest.approx(value) if isinstance(value, float) else value)


def test_shares_of_the_memory() -> None:
    weights = 8030261248 * 2 / 2**30 / 79.6
    assert fact("baseline.weight_share") == pytest.approx(weights, rel=1e-3)
    assert fact("baseline.one_gpu_weight_share") == fact("baseline.weight_share")
    request = 131072 * 1280 / 2**30
    assert fact("baseline.kv_share") == pytest.approx(32 * request / 79.6, rel=1e-6)
    assert fact("baseline.kv_share", traffic=traffic(131072, 1280)) == pytest.approx(
        32 * 131072 * (131072 + 1280) / 2**30 / 79.6, rel=1e-6
    ), "above 1 it still says how much the load needs"
    assert fact("baseline.cache_to_weights") == pytest.approx(32 * 131072 * 1152 / (8030261248 * 2), rel=1e-3)


def test_concurrency_where_none_is_declared() -> None:
    assert fact("traffic.concurrency", traffic=traffic(concurrency=None)) == fact("baseline.max_concurrency")
    assert fact("baseline.concurrency_share", traffic=traffic(concurrency=None)) == 1.0
    by_rate = traffic(concurrency=None, rate=2.0)
    here = profile(traffic=by_rate)
    found = estimate(here.model, here.gpu, baseline_deployment(here), load_of(by_rate), here.engine)
    assert fact("traffic.concurrency", traffic=by_rate) == found.concurrency
    assert found.concurrency == pytest.approx(2.0 * (found.ttft_ms + 256 * found.itl_ms) / 1e3, rel=0.05)  # type: ignore[operator]


def test_a_gain_is_at_the_same_requests_in_flight_even_under_a_rate() -> None:
    by_rate = fact("gain.fp8", traffic=traffic(concurrency=None, rate=8.0))
    assert isinstance(by_rate, float) and by_rate > 1.05, "at a fixed rate every deployment gives the same tokens per second"


def test_what_does_not_fit() -> None:
    here = {"model": large_model()}
    assert fact("baseline.fits", **here) is False
    assert fact("baseline.weight_share", **here) == pytest.approx(70553706496 * 2 / 2**30 / 79.6, rel=1e-3)
    assert fact("baseline.max_concurrency", **here) == 0
    assert fact("gain.fp8", **here) is None and fact("baseline.itl_ms", **here) is None
    assert fact("fit.int4_awq.fits", **here) is True
    assert fact("fit.native.weights", **here) == "fp8"
    assert 0.8 < fact("fit.native.weight_share", **here) < 0.95  # type: ignore[operator]
    assert "do not fit" in gather_facts(profile(**here)).find_out("baseline.itl_ms")


def test_an_unknown_memory_is_unknown_and_not_too_small() -> None:
    here = {"gpu": gpu(memory_gib=None)}
    for name in ("baseline.fits", "baseline.weight_share", "baseline.kv_share", "baseline.max_concurrency", "fit.bf16.fits"):
        assert fact(name, **here) is None


def test_support_comes_from_the_table_and_says_from_whom() -> None:
    facts = gather_facts(profile())
    assert facts["support.weights.fp8"] == "native"
    assert gather_facts(profile(gpu=gpu(sm=80)))["support.weights.fp8"] in ("impossible", "fallback")
    nowhere = gather_facts(profile(engine=Engine(version="nightly")))
    assert nowhere["support.weights.fp8"] is None
    assert "'nightly' is not a version number" in nowhere.find_out("support.weights.fp8")


def test_the_checkpoint_as_it_is() -> None:
    fp8 = model(quantized=Quantized(weights="fp8", method="modelopt", kv_cache="fp8"), weight_bytes=9_000_000_000)
    here = profile(model=fp8)
    assert baseline_deployment(here) == Deployment(weights="fp8", kv_cache="fp8")
    facts = gather_facts(here)
    assert (facts["model.weight_bits"], facts["model.is_quantized"], facts["gain.fp8"]) == (8, True, 1.0)
    assert facts["support.checkpoint"] == facts["support.weights.fp8"]


def test_a_checkpoint_in_a_format_that_is_not_known() -> None:
    strange = model(quantized=Quantized(weights=None, method="bitsandbytes"), weight_bytes=4_100_000_000)
    facts = gather_facts(profile(model=strange))
    assert facts["model.weight_bits"] == 4 and facts["model.is_quantized"] is True
    assert facts["model.quantized_weights"] is None and facts["baseline.fits"] is None and facts["support.checkpoint"] is None
    assert facts["fit.bf16.fits"] is True


LAYOUTS = [
    (model(), gpu(count=4), (1, 1, 4)),
    (large_model(), gpu(count=4), (2, 1, 2)),
    (large_model(), gpu(count=8), (2, 1, 4)),
    (large_model(), gpu(count=3), (2, 1, 1)),
    (large_model(layers=480, attention_layers=480, mlp_layers=480), gpu(count=16), (8, 2, 1)),
    (model(heads=7, kv_heads=7, attention="mha", layers=320, attention_layers=320, mlp_layers=320), gpu(count=4), (1, 2, 2)),
]


@pytest.mark.parametrize(("one", "gpus", "expected"), LAYOUTS)
def test_the_baseline_takes_as_few_gpus_a_replica_as_fit(one: Any, gpus: Any, expected: tuple[int, int, int]) -> None:
    here = profile(model=one.model_copy(update={"params": None}), gpu=gpus, traffic=traffic(concurrency=1.0))
    found = baseline_deployment(here)
    assert (found.tensor_parallel, found.pipeline_parallel) == expected[:2]
    assert found.replicas == gpus.count // (expected[0] * expected[1])


def test_where_nothing_fits_the_baseline_takes_all_gpus() -> None:
    here = profile(model=large_model(), gpu=gpu(memory_gib=16.0, count=2))
    assert baseline_deployment(here).tensor_parallel == 2


def test_group_size_is_what_divides_every_matrix() -> None:
    assert fact("model.group_size", model=model(intermediate=14336 + 64)) == 64
    assert fact("model.group_size", model=model(intermediate=14336 + 8)) == 0


MEASURED: list[tuple[dict[str, Scalar], str, Scalar]] = [
    ({}, "calibration_sensitive", None),
    ({"scheme": "nvfp4"}, "calibration_sensitive", True),
    ({"scheme": "fp8"}, "calibration_sensitive", False),
    ({"scheme": "fp8", "calibration_sensitive": True}, "calibration_sensitive", True),
    ({"scheme": "nvfp4"}, "recalibration_left", None),
    ({"scheme": "nvfp4", "recalibrated": False}, "recalibration_left", True),
    ({"scheme": "nvfp4", "recalibrated": True}, "recalibration_left", False),
    ({"recalibrated": True}, "recalibration_left", False),
    ({"scheme": "fp8"}, "recalibration_left", False),
    ({"ttft_ms": 300.0, "itl_ms": 10.0}, "limit_ratio", 1.5),
    ({"itl_ms": 10.0}, "limit_ratio", 0.5),
    ({"output_tokens_per_s": 10.0}, "limit_ratio", None),
]


@pytest.mark.parametrize(("measured", "name", "value"), MEASURED)
def test_what_follows_from_measurements(measured: dict[str, Scalar], name: str, value: Scalar) -> None:
    assert fact(f"measured.{name}", measured=measured, goal=Goal(ttft_ms=200, itl_ms=20)) == value


def test_a_measured_fact_that_is_none_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown measured fact") as caught:
        check_measured({"accuracy_loss": 3.0}, where="m.json")
    assert "accuracy_loss_pct" in caught.value.hint and caught.value.where == "m.json"
    with pytest.raises(InputError, match="is a number, not 'much'"):
        gather_facts(profile(measured={"accuracy_loss_pct": "much"}))
    check_measured({"accuracy_loss_pct": None, "recalibrated": True, "scheme": "fp8"})


EAGLE = Draft(method="eagle3", id="someone/EAGLE3-8B", draft_len=3, acceptance_length=2.5)


def test_speculation_needs_a_draft() -> None:
    alone = traffic(concurrency=1.0)
    assert fact("speculation.gain", traffic=alone) is None
    drafted = {"traffic": alone, "model": model(drafts=(EAGLE,))}
    assert fact("speculation.best_method", **drafted) == "eagle3"
    gain = fact("speculation.gain", **drafted)
    assert isinstance(gain, float) and gain > 1.2
    assert fact("speculation.batch", **drafted) == 1.0
    crowded = fact("speculation.gain", model=model(drafts=(EAGLE,)), traffic=traffic(concurrency=256.0))
    assert isinstance(crowded, float) and crowded < gain


def test_n_grams_count_once_their_acceptance_is_measured() -> None:
    alone = traffic(concurrency=1.0)
    assert fact("speculation.best_method", traffic=alone, measured={"ngram_acceptance": 0.7}) == "ngram"
    often = fact("speculation.gain", traffic=alone, measured={"ngram_acceptance": 0.7})
    rarely = fact("speculation.gain", traffic=alone, measured={"ngram_acceptance": 0.1})
    assert often > 1.5 > 1.2 > rarely  # type: ignore[operator]


def test_a_measured_acceptance_replaces_the_published_one() -> None:
    alone = traffic(concurrency=1.0)
    drafted = {"traffic": alone, "model": model(drafts=(EAGLE,))}
    assert fact("speculation.gain", **drafted, measured={"acceptance": 0.05}) < fact("speculation.gain", **drafted)  # type: ignore[operator]
    changed = with_measured_acceptance(model(mtp_layers=1, drafts=(EAGLE,)), {"acceptance": 0.5})
    assert [(draft.method, draft.acceptance_length) for draft in changed.drafts] == [("eagle3", 1.5), ("mtp", 1.5)]
    assert with_measured_acceptance(model(drafts=(EAGLE,)), {}) == model(drafts=(EAGLE,))


def test_speculation_is_judged_where_the_model_fits() -> None:
    one = {"model": large_model(drafts=(EAGLE,)), "traffic": traffic(concurrency=1.0)}
    assert fact("baseline.fits", **one) is False
    assert fact("speculation.gain", **one) > 1.2  # type: ignore[operator]
