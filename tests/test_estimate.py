"""The one verb: what it answers, refuses and says."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import NotPossible
from advisor.estimator.answer import NOTHING
from advisor.estimator.deployment import estimate, held
from advisor.estimator.memory import GIB
from advisor.profiler.gpu import find_gpu, gpu_names
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Memory, Model

CHAT = Load(isl=1024, osl=512, concurrency=32)
TIMES = ("ttft_ms", "itl_ms", "output_tokens_per_s", "output_tokens_per_s_per_gpu", "request_latency_ms")


def llama() -> Model:
    return read_model("meta-llama/Llama-3.1-8B")[0]


def big() -> Model:
    return read_model("meta-llama/Llama-3.3-70B-Instruct")[0]


def h100(count: int = 1) -> Gpu:
    return find_gpu("h100-sxm-80gb", count)[0]


def of(deployment: Deployment | None = None, load: Load = CHAT, model: Model | None = None, gpu: Gpu | None = None) -> Estimate:
    return estimate(model or llama(), gpu or h100(), deployment or Deployment(), load)


def test_the_numbers_fit_together() -> None:
    made = of()
    assert made.fits and made.itl_ms and made.ttft_ms and made.output_tokens_per_s and made.request_latency_ms
    assert made.output_tokens_per_s == pytest.approx(32 / made.itl_ms * 1e3)
    assert made.request_latency_ms == pytest.approx(made.ttft_ms + 511 * made.itl_ms)
    memory = made.memory_gib
    assert memory.total == pytest.approx(memory.weights + memory.kv_cache + memory.activations + memory.runtime)
    assert memory.total <= memory.capacity


@pytest.mark.parametrize("release", ["1.2.1", "0.17.0"])
@pytest.mark.parametrize("load", [CHAT, Load(isl=1024, osl=512, requests=1000), Load(isl=100_000, osl=512)])
@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
def test_what_is_held_is_what_the_estimate_says(tensor: int, load: Load, release: str) -> None:
    asked = big(), h100(8), Deployment(tensor_parallel=tensor, replicas=8 // tensor), load, Engine(version=release)
    made, found = estimate(*asked), held(*asked)
    assert (found.most, bool(found.most)) == (made.max_concurrency, made.fits)
    assert found.weight_share == pytest.approx(made.memory_gib.weights / made.memory_gib.capacity, rel=1e-12)


def test_every_number_has_a_basis_and_an_interval_around_it() -> None:
    made = of()
    for name in TIMES:
        value = getattr(made, name)
        low, high = made.range[name]
        assert low < value < high
        assert made.basis[name] == "published"
    assert made.basis["memory_gib"] == made.basis["max_concurrency"] == "arithmetic"


def test_intervals_widen_outside_what_was_measured() -> None:
    def width(made: Estimate) -> float:
        low, high = made.range["output_tokens_per_s"]
        return high / low

    fitted = width(of())
    assert width(of(Deployment(weights="int4_awq"))) > fitted  # no engine's INT4 throughput was published
    assert width(of(gpu=find_gpu("h100-pcie-80gb")[0])) > fitted
    assert width(of(model=llama().model_copy(update={"known": False}))) > fitted


def test_it_validates_as_the_type_says() -> None:
    made = of()
    assert Estimate.model_validate(made.model_dump()) == made


def test_the_quick_constructor_knows_every_field() -> None:
    assert list(NOTHING) == list(Estimate.model_fields)
    assert set(of().memory_gib.__dict__) == set(Memory.model_fields)


def test_fp8_is_faster_than_bf16_and_holds_more() -> None:
    plain, small = of(), of(Deployment(weights="fp8", kv_cache="fp8"))
    assert small.itl_ms < plain.itl_ms  # type: ignore[operator]
    assert small.max_concurrency > 2 * plain.max_concurrency  # type: ignore[operator]


def test_int4_wins_alone_and_loses_in_a_crowd() -> None:
    def rate(weights: str, concurrency: float) -> float:
        load = CHAT.model_copy(update={"concurrency": concurrency})
        return of(Deployment.model_validate({"weights": weights}), load).output_tokens_per_s or 0.0

    assert rate("int4_awq", 1) > rate("fp8", 1) > rate("bf16", 1)
    assert rate("int4_awq", 128) < rate("fp8", 128)


def test_seventy_billion_on_one_h100() -> None:
    load = Load(isl=4096, osl=512, concurrency=32)
    bf16 = of(model=big(), load=load)
    assert not bf16.fits and bf16.max_concurrency == 0 and bf16.itl_ms is None
    assert "are missing" in bf16.notes[-1]
    fp8 = of(Deployment(weights="fp8", kv_cache="fp8"), load, big())
    assert fp8.fits and fp8.max_concurrency is not None and 1 <= fp8.max_concurrency < 32
    assert fp8.concurrency == fp8.max_concurrency
    assert any("want a slot" in note for note in fp8.notes)
    int4 = of(Deployment(weights="int4_awq", kv_cache="fp8"), load, big())
    assert int4.max_concurrency is not None and int4.max_concurrency > 32


def test_replicas_share_the_load() -> None:
    one, two = of(gpu=h100(2)), of(Deployment(replicas=2), gpu=h100(2))
    half = of(load=CHAT.model_copy(update={"concurrency": 16}))
    assert two.itl_ms == pytest.approx(half.itl_ms)
    assert two.output_tokens_per_s == pytest.approx(2 * half.output_tokens_per_s)  # type: ignore[operator]
    assert two.max_concurrency == 2 * one.max_concurrency  # type: ignore[operator]
    assert two.output_tokens_per_s_per_gpu == pytest.approx(half.output_tokens_per_s)


def test_offline_fills_the_memory() -> None:
    made = of(load=Load(isl=1024, osl=512))
    assert made.concurrency == made.max_concurrency
    finite = of(load=Load(isl=1024, osl=512, requests=1000))
    assert finite.output_tokens_per_s < made.output_tokens_per_s  # type: ignore[operator]


def test_a_rate_becomes_the_concurrency_that_it_causes() -> None:
    made = of(load=Load(isl=1024, osl=512, rate=4.0))
    assert made.output_tokens_per_s == pytest.approx(4 * 512)
    latency = made.request_latency_ms or 0.0
    assert made.concurrency == pytest.approx(4 * latency / 1e3, rel=0.05)  # Little's law; the wait before a slot is not in it
    assert any("Poisson" in note for note in made.notes)


def test_a_rate_beyond_reach_is_called_saturated_with_what_is_achievable() -> None:
    made = of(load=Load(isl=1024, osl=512, rate=1000.0))
    assert made.ttft_ms is None and made.request_latency_ms is None
    assert made.output_tokens_per_s and made.output_tokens_per_s < 1000 * 512
    assert any("saturated: at most" in note for note in made.notes)
    few, many = (of(load=Load(isl=1024, osl=512, rate=1000.0, requests=n)) for n in (100, 100_000))
    reached, slots = made.output_tokens_per_s / 512, made.max_concurrency or 0
    assert few.ttft_ms is not None and many.ttft_ms is not None and slots > 100, "few requests all have a slot at once"
    assert many.ttft_ms - few.ttft_ms > 1e3 * (100_000 - slots) / 2 * (1 / reached - 1 / 1000)


def test_the_arrival_protocol_is_named() -> None:
    assert any("closed loop" in note for note in of().notes)


def test_static_batching_idles() -> None:
    load = Load(isl=500, osl=300, concurrency=64, lengths=tuple((500, osl) for osl in (50, 100, 200, 850)))
    flying, still = of(load=load), of(Deployment(batching="static"), load)
    assert still.output_tokens_per_s < 0.6 * flying.output_tokens_per_s  # type: ignore[operator]


def test_prefix_reuse_spares_prefill() -> None:
    load = Load(isl=8000, osl=200, concurrency=16, shared_prefix=0.9)
    plain, reuse = of(load=load), of(Deployment(prefix_reuse=True), load)
    assert reuse.ttft_ms < 0.4 * plain.ttft_ms  # type: ignore[operator]


def test_an_unknown_gpu_still_has_its_memory() -> None:
    gpu = Gpu(id=None, name="NVIDIA Future", memory_gib=80.0, count=1)
    made = of(gpu=gpu)
    assert made.fits and made.memory_gib.weights * GIB > 1e9 and made.itl_ms is None
    assert any("times cannot be estimated" in note for note in made.notes)
    nothing = of(gpu=gpu.model_copy(update={"memory_gib": None}))
    assert nothing.max_concurrency is None and math.isnan(nothing.memory_gib.capacity)


@pytest.mark.parametrize(
    ("fields", "model", "what"),
    [
        ({"tensor_parallel": 3}, "meta-llama/Llama-3.1-8B", "heads"),
        ({"pipeline_parallel": 64}, "meta-llama/Llama-3.1-8B", "stages"),
        ({"tensor_parallel": 2, "expert_parallel": 2}, "meta-llama/Llama-3.1-8B", "without experts"),
        ({"tensor_parallel": 4, "expert_parallel": 3}, "mistralai/Mixtral-8x7B-v0.1", "divide"),
        ({"tensor_parallel": 0}, "meta-llama/Llama-3.1-8B", "at least 1"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(fields: dict[str, object], model: str, what: str) -> None:
    with pytest.raises(NotPossible) as caught:
        of(Deployment.model_validate(fields), model=read_model(model)[0], gpu=h100(64))
    assert what in str(caught.value)


def test_fewer_kv_heads_than_ranks_is_possible() -> None:
    model = read_model("Qwen/Qwen3-235B-A22B")[0]  # four kv heads
    assert of(Deployment(weights="fp8", tensor_parallel=8), model=model, gpu=h100(8)).fits


def test_more_gpus_than_there_are_is_refused() -> None:
    with pytest.raises(NotPossible, match="8 GPUs are needed, 4 are there"):
        of(Deployment(tensor_parallel=8), gpu=h100(4))
    four, known = h100(4), llama()
    assert of(Deployment(tensor_parallel=2), model=known, gpu=four).fits
    with pytest.raises(NotPossible, match="8 GPUs are needed, 4 are there"):  # also where the replica is known already
        of(Deployment(tensor_parallel=2, replicas=4), model=known, gpu=four)


def test_fp8_of_a_block_scaled_checkpoint_means_that_checkpoint() -> None:
    model = read_model("deepseek-ai/DeepSeek-R1")[0]
    gpu = find_gpu("h200-sxm-141gb", 8)[0]
    fp8, block = (
        of(Deployment.model_validate({"weights": w, "tensor_parallel": 8}), model=model, gpu=gpu) for w in ("fp8", "fp8_block")
    )
    assert fp8.itl_ms == block.itl_ms


@pytest.mark.parametrize("name", gpu_names())
def test_every_gpu_gets_an_estimate(name: str) -> None:
    made = estimate(
        read_model("meta-llama/Llama-3.2-1B")[0], find_gpu(name)[0], Deployment(), Load(isl=512, osl=128, concurrency=8)
    )
    assert made.fits and made.output_tokens_per_s and made.output_tokens_per_s > 0


@settings(max_examples=60, deadline=None)
@given(
    isl=st.floats(1, 1e5), osl=st.floats(1, 1e4), concurrency=st.one_of(st.none(), st.floats(1, 5000)),
    weights=st.sampled_from(["bf16", "fp8", "int4_awq", "w4a8_awq", "nvfp4", "int8_sq"]), tp=st.sampled_from([1, 2, 4, 8]),
    engine=st.sampled_from([Engine(), Engine(version="0.17"), Engine(name="vllm"), Engine(name="sglang")]),
)  # fmt: skip
def test_no_load_breaks_it(isl: float, osl: float, concurrency: float | None, weights: str, tp: int, engine: Engine) -> None:
    deployment = Deployment.model_validate({"weights": weights, "tensor_parallel": tp})
    made = estimate(llama(), h100(8), deployment, Load(isl=isl, osl=osl, concurrency=concurrency), engine)
    if made.fits:
        for name in TIMES:
            value = getattr(made, name)
            assert value is not None and math.isfinite(value) and value > 0
    else:
        assert made.max_concurrency == 0 and made.itl_ms is None


@settings(max_examples=40, deadline=None)
@given(st.floats(1, 200), st.floats(1.05, 4))
def test_more_concurrency_never_lowers_throughput_nor_latency(concurrency: float, factor: float) -> None:
    less, more = (of(load=CHAT.model_copy(update={"concurrency": c})) for c in (concurrency, concurrency * factor))
    assert more.output_tokens_per_s >= less.output_tokens_per_s * 0.999  # type: ignore[operator]
    assert more.itl_ms >= less.itl_ms * 0.999  # type: ignore[operator]
