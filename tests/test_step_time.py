"""Step times: the forms behave as the hardware does, and as their tables say."""

from __future__ import annotations

import itertools
import math

import pytest

from advisor.estimator.attention import attention
from advisor.estimator.constants import Constants, constants_of, donor
from advisor.estimator.deployment import estimate
from advisor.estimator.engines import runtime, runtime_of
from advisor.estimator.gemm import gemm
from advisor.estimator.moe import experts
from advisor.estimator.network import all_gather, all_reduce
from advisor.estimator.shapes import matrices
from advisor.estimator.step_time import StepTime, step_time
from advisor.library import profile_names
from advisor.profiler.gpu import find_gpu, gpu_names
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Load, TensorRates

FITTED = profile_names("constants")
HOST = runtime_of(Engine(), "h100-sxm-80gb")


def constants(name: str) -> Constants:
    found = constants_of(find_gpu(name)[0])
    assert found is not None
    return found


def steps(
    model: str = "meta-llama/Llama-3.1-8B", gpu: str = "h100-sxm-80gb", engine: str = "1.2.1", **fields: object
) -> StepTime:
    deployment = Deployment.model_validate(fields)
    return step_time(constants(gpu), read_model(model)[0], deployment, Engine(version=engine))


def test_nine_gpus_are_fitted_and_every_other_has_a_donor() -> None:
    assert len(FITTED) == 9
    for name in gpu_names():
        gpu = find_gpu(name)[0]
        assert donor(gpu) in FITTED
        found = constants_of(gpu)
        assert found is not None and found.fitted == (name in FITTED)


def test_a_gpu_without_bandwidth_has_no_times() -> None:
    gpu = find_gpu("h100-sxm-80gb")[0]
    unknown = gpu.model_copy(update={"id": None, "bandwidth_gb_s": None})
    assert constants_of(unknown) is None
    assert constants_of(gpu.model_copy(update={"id": None, "tflops": TensorRates()})) is None


def test_a_donors_constants_are_used_with_the_gpus_own_peaks() -> None:
    found = constants("h100-pcie-80gb")
    assert found.gpu == "h100-sxm-80gb" and not found.fitted
    assert found.bandwidth == find_gpu("h100-pcie-80gb")[0].bandwidth_gb_s * 1e9  # type: ignore[operator]


@pytest.mark.parametrize("gpu", FITTED)
@pytest.mark.parametrize("weights", ["bf16", "fp8", "fp8_block", "int8_sq", "int8_wo", "int4_awq", "w4a8_awq", "nvfp4"])
def test_multiplications_take_longer_with_more_rows_and_are_never_faster_than_the_hardware(gpu: str, weights: str) -> None:
    found = constants(gpu)
    bits = {"bf16": 16, "int4_awq": 4.1, "w4a8_awq": 4.1, "nvfp4": 4.5}.get(weights, 8)
    op = gemm(found, HOST, weights, 8192, 8192, bits)  # type: ignore[arg-type]
    times = [op.seconds(m) for m in (1, 2, 4, 8, 32, 128, 512, 2048, 8192)]
    assert all(a <= b * 1.0001 for a, b in itertools.pairwise(times))
    assert times[0] > 8192 * 8192 * bits / 8 / found.bandwidth / 1.2  # L2 and rounding of the fit allow for some
    fastest = max(peak for peak in found.peaks.values() if peak)
    assert times[-1] > 2 * 8192**3 / fastest


def test_published_ratios_of_int4_over_bf16_come_out() -> None:
    # ModelOpt benchmark.md, H200, TensorRT-LLM 0.15, Llama-3.1-8B: INT4 AWQ beats BF16 at a batch of 1, not at 8 and 64
    found = constants("h200-sxm-141gb")
    old = runtime("tensorrt-llm", "0.15", "x86")
    sixteen, four = (gemm(found, old, form, 4096, 28672, bits) for form, bits in (("bf16", 16), ("int4_awq", 4.125)))  # type: ignore[arg-type]
    assert four.seconds(1) < 0.6 * sixteen.seconds(1)
    assert four.seconds(8) > sixteen.seconds(8)
    assert four.seconds(16384) > 1.2 * sixteen.seconds(16384)


def test_static_fp8_is_faster_than_dynamic() -> None:
    found = constants("h100-sxm-80gb")
    static, dynamic = (gemm(found, HOST, form, 4096, 4096, 8) for form in ("fp8", "fp8_rowwise"))  # type: ignore[arg-type]
    assert static.seconds(16) < dynamic.seconds(16)


@pytest.mark.parametrize("gpu", FITTED)
@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_decode_attention_reads_its_cache_at_most_at_the_bandwidth(gpu: str, kv: str) -> None:
    found, model = constants(gpu), read_model("meta-llama/Llama-3.1-8B")[0]
    op = attention(found, HOST, model, kv, 1, math.inf)  # type: ignore[arg-type]
    read = 512 * 4096 * 2 * 8 * 128 * (2 if kv == "bf16" else 1)
    assert read / found.bandwidth < op.decode(512, 4096) < 3 * read / found.bandwidth
    assert op.decode(1, 128) < op.decode(1, 8192) < op.decode(64, 8192)
    assert op.decode(0, 1000) == 0.0


def test_prefill_attention_grows_with_the_square_of_the_prompt_and_windows_cap_it() -> None:
    found, model = constants("h100-sxm-80gb"), read_model("meta-llama/Llama-3.1-8B")[0]
    whole = attention(found, HOST, model, "bf16", 1, math.inf)
    window = attention(found, HOST, model, "bf16", 1, 1024.0)
    assert 3 < whole.prefill(32768, 32768) / whole.prefill(16384, 16384) < 4.2
    assert window.prefill(32768, 32768) < 0.3 * whole.prefill(32768, 32768)
    assert window.prefill(512, 512) == pytest.approx(whole.prefill(512, 512))


def test_chunked_layers_attend_within_their_chunk() -> None:
    found, model = constants("b200"), read_model("meta-llama/Llama-4-Maverick-17B-128E-Instruct")[0]
    assert model.window is not None and model.window.chunked and model.window.size == 8192
    whole, window, chunk = (
        attention(found, HOST, model, "bf16", 1, size, chunked)
        for size, chunked in ((math.inf, False), (8192.0, False), (8192.0, True))
    )
    assert chunk.prefill(8192, 8192) == pytest.approx(whole.prefill(8192, 8192))
    quadratic = [op.prefill(32768, 32768) - op.prefill_t0 - 32768 * op.prefill_token for op in (window, chunk)]
    assert quadratic[1] / quadratic[0] == pytest.approx(4096 / (8192 - 1024), rel=0.01)  # half a chunk, or nearly a window
    assert chunk.decode(64, 2000) == pytest.approx(whole.decode(64, 2000))
    assert chunk.decode(64, 1e6) == pytest.approx(whole.decode(64, 4096), rel=0.01)
    assert chunk.decode(64, 1e6) < window.decode(64, 1e6)


def test_experts_are_touched_as_tokens_come() -> None:
    found, model = constants("b200"), read_model("Qwen/Qwen3-30B-A3B")[0]
    assert model.moe is not None
    op = experts(found, HOST, model, model.moe, "nvfp4", 4.5, 1, 1)
    times = [op.seconds(m) for m in (1, 4, 16, 64, 256, 1024, 4096)]
    assert all(a < b for a, b in itertools.pairwise(times))
    assert (times[2] - op.t0) / (times[0] - op.t0) > 4  # sixteen tokens wake many more experts than one
    assert times[5] / times[4] < 3  # then all are awake


@pytest.mark.parametrize("gpu", FITTED)
def test_collectives_grow_with_their_bytes(gpu: str) -> None:
    found = constants(gpu)
    for collective in (all_reduce(found, 4, HOST), all_gather(found, 4, HOST)):
        times = [collective.seconds(size) for size in (1e4, 1e6, 1e8)]
        assert times[0] < times[1] < times[2]
    assert steps(gpu=gpu).wires == () and len(steps(gpu=gpu, tensor_parallel=4).wires) == 1


def test_pcie_is_far_slower_than_nvlink() -> None:
    nvlink, pcie = (all_reduce(constants(name), 4, HOST).seconds(32e6) for name in ("h100-sxm-80gb", "l40s"))
    assert pcie > 10 * nvlink


def test_a_step_is_the_sum_of_its_parts() -> None:
    step = steps()
    part = step.parts(64, 2000, 0, 1)
    assert part.gpu == pytest.approx(part.gemm + part.attention + part.experts + part.network + part.elementwise)
    assert step.step(64, 2000) >= max(part.gpu, part.host)
    assert step.step(64, 2000) <= part.gpu + part.host + 1e-9
    assert step.step(64, 2000, 1000, 1000) > step.step(64, 2000)


def test_tensor_parallel_speeds_up_but_less_than_linearly() -> None:
    one, eight = (steps("meta-llama/Llama-3.1-70B", "h200-sxm-141gb", weights="fp8", tensor_parallel=n) for n in (1, 8))
    assert 1.5 < one.step(64, 1000) / eight.step(64, 1000) < 8


def test_pipeline_stages_do_not_speed_up_a_single_stream_but_carry_more() -> None:
    one, four = (steps("meta-llama/Llama-3.1-70B", "h100-sxm-80gb", weights="fp8", pipeline_parallel=n) for n in (1, 4))
    assert four.step(4, 1000) > 0.9 * one.step(4, 1000)
    assert four.step(512, 1000) < one.step(512, 1000)  # each stage works on a quarter of the sequences at a time


def test_attention_dp_divides_the_sequences_and_gathers_tokens() -> None:
    tp = steps("deepseek-ai/DeepSeek-R1", "b200", weights="nvfp4", tensor_parallel=8)
    dp = steps("deepseek-ai/DeepSeek-R1", "b200", weights="nvfp4", tensor_parallel=8, attention_dp=True)
    assert dp.width == 8 and tp.width == 1
    assert dp.parts(2048, 4000, 0, 1).attention < tp.parts(2048, 4000, 0, 1).attention


def test_without_cuda_graphs_a_small_batch_waits_for_launches() -> None:
    model = "deepseek-ai/DeepSeek-R1"
    graphs, eager = (steps(model, "b200", weights="nvfp4", tensor_parallel=8, cuda_graphs=on) for on in (True, False))
    # TensorRT-LLM tech blog 1: 7.22 times at a batch of one
    assert 3 < eager.step(1, 2048) / graphs.step(1, 2048) < 12


def test_releases_take_the_last_entry_that_they_reach() -> None:
    old, new = runtime("tensorrt-llm", "0.17", "x86"), runtime("tensorrt-llm", "1.2.1", "x86")
    assert old.block == 64 and new.block == 32
    assert runtime("tensorrt-llm", "0.21.0rc1", "x86") == runtime("tensorrt-llm", "1.0", "x86") != new
    assert runtime("tensorrt-llm", "1.1.0", "x86").gen_moe != new.gen_moe == runtime("tensorrt-llm", "1.2.0rc6", "x86").gen_moe
    assert runtime("tensorrt-llm", "gpt-oss-dev", "x86") == new
    assert runtime("tensorrt-llm", "0.17", "grace").sequence_us > old.sequence_us


def test_attention_dp_sends_tokens_in_their_experts_format() -> None:
    # all-gather of FP4 and its scales (4.5 of 16 bits), reduce-scatter of 16 bits
    fields = {"model": "Qwen/Qwen3-30B-A3B", "gpu": "b200", "tensor_parallel": 8, "attention_dp": True}
    nvfp4, bf16 = steps(weights="nvfp4", **fields), steps(weights="bf16", **fields)
    there, back = (wire.byte_time for wire in nvfp4.wires)
    assert there == pytest.approx(4.5 / 16 * back) and [wire.byte_time for wire in bf16.wires] == [2 * back]
    assert nvfp4.parts(4096, 1024, 0, 1).network < 0.8 * bf16.parts(4096, 1024, 0, 1).network


def test_ranks_that_write_to_each_other_exchange_faster_than_they_gather() -> None:
    fields = {"model": "Qwen/Qwen3-30B-A3B", "tensor_parallel": 8, "attention_dp": True, "weights": "nvfp4"}
    old, new = (steps(gpu="b200", engine=release, **fields).wires for release in ("1.1.0", "1.2.1"))
    assert all(now.seconds(1e6) < before.seconds(1e6) for before, now in zip(old, new, strict=True))
    wired = [steps(gpu="rtx-pro-6000-blackwell-server", engine=release, **fields).wires for release in ("1.1.0", "1.2.1")]
    assert wired[0] == wired[1], "over PCIe nothing changed"


def test_block_scaled_experts_run_generated_kernels_from_1_2() -> None:
    fields = {"model": "deepseek-ai/DeepSeek-R1-0528", "gpu": "b200", "weights": "fp8_block", "tensor_parallel": 8}
    old, new = (steps(engine=release, **fields).moe for release in ("1.1.0", "1.2.1"))
    assert old is not None and new is not None and (old.form, new.form) == ("fp8_block", "fp8_block_gen")
    # InferenceX, 4 at a time: 14.6 ms a token with 1.1 and 10.3 with 1.2
    assert new.seconds(4) < old.seconds(4)


def test_shapes_of_the_tables_have_factors_of_their_own() -> None:
    model = read_model("meta-llama/Llama-4-Scout-17B-16E-Instruct")[0]
    other = model.model_copy(update={"moe": model.moe.model_copy(update={"experts": 15})}) if model.moe else model
    assert model.moe is not None and other.moe is not None
    known, unknown = (
        experts(constants("b200"), HOST, m, m.moe, "nvfp4", 4.5, 1, 1) for m in (model, other) if m.moe is not None
    )
    few, many = constants("b200").ops["moe"]["nvfp4"]["shapes"]["5120x8192x16"]
    assert known.row_time == pytest.approx(many * unknown.row_time)
    assert known.expert_time == pytest.approx(few * unknown.expert_time)


def on_b200(model: str, version: str = "0.5.10", **fields: object) -> StepTime:
    deployment = Deployment.model_validate({"tensor_parallel": 8, "kv_cache": "fp8", **fields})
    return step_time(constants("b200"), read_model(model)[0], deployment, Engine(name="sglang", version=version))


def test_sglang_runs_prompts_in_steps_of_their_own() -> None:
    apart, mixed = on_b200("deepseek-ai/DeepSeek-R1", weights="nvfp4"), steps(tensor_parallel=8, gpu="b200")
    assert apart.step(64, 2000, 1024, 1024) == apart.step(64, 2000) + apart.step(0, 1, 1024, 1024)
    assert mixed.step(64, 2000, 1024, 1024) < mixed.step(64, 2000) + mixed.step(0, 1, 1024, 1024)


def test_a_recurrent_layer_has_two_projections_and_an_all_reduce() -> None:
    model = read_model("Qwen/Qwen3.5-397B-A17B")[0]
    first, second = (matrix for matrix in matrices(model) if matrix.group == "recurrent")
    # gated delta net: queries, keys, values, their gates in; 64 heads of 128 values out
    assert (second.inputs, second.outputs, second.split) == (pytest.approx(64 * 128, rel=0.01), 4096, "in")
    assert first.elements + second.elements == pytest.approx(45 * 118014208, rel=1e-3)
    one, all_of_them = all_reduce(constants("b200"), 8, runtime_of(Engine(name="sglang"), "b200")), on_b200(model.name).wires
    assert all_of_them[0].seconds(1e6) == pytest.approx((15 + 45 + 60) * one.seconds(1e6))


def test_a_scan_takes_a_prompts_chunks_one_after_the_other() -> None:
    # of sglang/0.5.14/gdn_perf.parquet on B200: 8 of 64 heads, one prompt; 64 heads, one prompt
    for parts, tokens, table in ((8, 1024, 74.5e-6), (8, 8192, 343e-6), (1, 8192, 1066e-6)):
        scan = on_b200("Qwen/Qwen3.5-397B-A17B", tensor_parallel=parts).scan
        assert scan is not None
        assert scan.seconds(0, tokens, tokens) == pytest.approx(table, rel=0.2)
        assert scan.seconds(0, 8 * tokens, tokens) < 8 * scan.seconds(0, tokens, tokens)


def test_sparse_prefill_over_16_bits_multiplies_twice_the_heads_on_blackwell() -> None:
    wide, narrow = (on_b200("zai-org/GLM-5", kv_cache=kv).groups[0][0].prefill(8192, 8192) for kv in ("bf16", "fp8"))
    assert wide > 2 * narrow
    # GLM-5.2's layers without an indexer, on 8 of 64 heads: 3.8 and 1.5 ms with projections of about 0.5
    assert (wide, narrow) == (pytest.approx(3.3e-3, rel=0.2), pytest.approx(1.0e-3, rel=0.4))


def test_sglangs_experts_on_hopper_are_its_own_kernels() -> None:
    deployment = Deployment(weights="fp8_block", tensor_parallel=8)
    own, other = (
        step_time(constants("h200-sxm-141gb"), read_model("zai-org/GLM-5")[0], deployment, Engine(name=name)).moe
        for name in ("sglang", "tensorrt-llm")
    )
    assert own is not None and other is not None
    assert own.seconds(4) == pytest.approx(71e-6, rel=0.2) and own.seconds(8192) < 0.7 * other.seconds(8192)


def test_deepgemms_experts_scattered_tokens_before_1_2() -> None:
    fields = {"tensor_parallel": 8, "weights": "fp8_block"}
    before, after = (steps("deepseek-ai/DeepSeek-R1", "b200", version, **fields).moe for version in ("1.1", "1.2"))
    assert before is not None and after is not None
    assert before.t0 > after.t0 + runtime("tensorrt-llm", "1.1", "x86").scatter_us * 1e-6
    assert before.token_time > 4 * after.token_time
    assert (before.form, after.form) == ("fp8_block", "fp8_block_gen")


def test_block_scales_launch_a_kernel_before_each_multiplication() -> None:
    block, plain = (steps(weights=weights).launches for weights in ("fp8_block", "fp8"))
    assert block - plain == pytest.approx(32 * 4 * runtime("tensorrt-llm", "1.2.1", "x86").eager_block_us * 1e-6)


@pytest.mark.parametrize("name", ["meta-llama/Llama-3.1-70B", "mistralai/Mixtral-8x7B-v0.1"])
def test_two_a100_over_pcie_wait_once_a_step(name: str) -> None:
    def waits(n: int, release: str) -> float:
        deployment, engine = Deployment(tensor_parallel=n), Engine(version=release)
        made = step_time(constants("a100-pcie-80gb"), read_model(name)[0], deployment, engine)
        return sum(wire.t0 for wire in made.wires)

    assert waits(2, "0.15") > 0.04 and waits(2, "0.15") - 0.04 < waits(4, "0.15")  # a ring of four passes three times as many
    assert waits(2, "1.2") < 0.02


def test_a_wait_that_nobody_published_is_said_not_to_be_known() -> None:
    def notes(n: int, release: str, gpu: str = "a100-pcie-80gb") -> str:
        found, _ = find_gpu(gpu, n)
        load, deployment = Load(isl=1000, osl=100, concurrency=8), Deployment(tensor_parallel=n)
        return " ".join(
            estimate(read_model("mistralai/Mixtral-8x7B-v0.1")[0], found, deployment, load, Engine(version=release)).notes
        )

    said = "two A100 over PCIe waited 42 ms a step under TensorRT-LLM 0.15"
    assert said in notes(2, "1.2.1") and said not in notes(2, "0.15") + notes(4, "1.2.1") + notes(2, "1.2.1", "a100-sxm-80gb")
