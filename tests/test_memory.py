"""Memory is arithmetic: it is checked against what servers logged, and against sums done by hand."""

from __future__ import annotations

import math

import pytest

from advisor.estimator.memory import (
    GIB,
    activation_bytes,
    kv_bytes,
    kv_bytes_per_token,
    most_sequences,
    parameter_count,
    parts,
    sequence_bytes,
    weight_bytes,
)
from advisor.estimator.shapes import bits_per_element, is_quantized, matrices
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Load, Model, Moe, Quantized, Recurrent, Window

LOGGED = [
    # model, deployment, GiB per GPU, where it was printed, how far it may be off
    ("meta-llama/Llama-3.1-70B", {"weights": "int8_sq"}, 67.7229, "vllm-project/vllm#12569: Loading model weights took", 0.001),
    ("meta-llama/Llama-3.1-8B", {"weights": "fp8"}, 8.46, "NVIDIA/TensorRT-LLM#6294: Rank 0 uses ... for model weights", 0.002),
    ("meta-llama/Llama-2-7b-hf", {"weights": "int8_sq"}, 6683 / 1024, "NVIDIA/TensorRT-LLM#1400: GPU 6683 (MiB)", 0.002),
    (
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"weights": "bf16"}, 58.9,
        "ModelOpt pruning tutorial (vLLM): GiB model loading memory", 0.005,
    ),
    # ModelOpt leaves some attention and Mamba layers of this checkpoint at 16 bits
    (
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", {"weights": "fp8"}, 31.4,
        "ModelOpt pruning tutorial (vLLM): GiB model loading memory", 0.05,
    ),
    # Meta's own FP8 checkpoint leaves attention and the outer layers at 16 bits; only the former can be said here
    (
        "meta-llama/Llama-3.1-405B-Instruct",
        {"weights": "fp8", "tensor_parallel": 8, "keep_high_precision": ("*self_attn*",)},
        57.752, "vllm-project/vllm#6746: Loading model weights took", 0.03,
    ),
    ("meta-llama/Meta-Llama-3-8B", {}, 14.96, "vllm-project/vllm#10511 (H100): model weights take", 0.001),
    ("meta-llama/Meta-Llama-3-8B", {"tensor_parallel": 2}, 7.48, "vllm-project/vllm#10511 (H100): model weights take", 0.001),
    ("Qwen/Qwen3-30B-A3B", {"tensor_parallel": 4}, 14.2474, "vllm-project/vllm#17469 (A10): Model loading took", 0.001),
    # vLLM pads the experts' 2,880 columns to 3,072 for its kernels, and Marlin's a little more
    ("openai/gpt-oss-120b", {"weights": "mxfp4"}, 64.38, "vllm-project/vllm#33155 (H100): Model loading took", 0.06),
    (
        "openai/gpt-oss-20b", {"weights": "mxfp4"}, 13.72,
        "https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/ (A100): Model loading took", 0.07,
    ),
    # the vision tower is served too, and is not among the parameters that profiles/models knows
    (
        "google/gemma-4-26B-A4B", {}, 48.5,
        "https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/ (A100): Model loading took", 0.035,
    ),
]  # fmt: skip

VLLM_8B = "vllm-project/vllm#10511: available_kv_cache_memory"
ROOM = [
    # model, GPU, deployment, engine, tokens of a step, sequences, share of the memory, GiB left for the cache, where it
    # was printed, how many GiB it may be off, per GPU. vLLM keeps CUDA graphs outside of that share until 0.20, inside since.
    ("meta-llama/Meta-Llama-3-8B", "h100", {}, ("vllm", "0.6.5"), 8192, 256, 0.9, 53.29, VLLM_8B, 1.5),
    (
        "meta-llama/Meta-Llama-3-8B", "h100", {"tensor_parallel": 2}, ("vllm", "0.6.5"), 8192, 256, 0.9,
        71.29 - 7.48 - 3.58 - 1.26, f"{VLLM_8B}, from the parts that it names", 1.5,
    ),
    (
        "meta-llama/Llama-3.1-70B", "h100", {"weights": "int8_sq"}, ("vllm", "0.7.0"), 2048, 256, 0.98,
        1381 * 16 * 327680 / GIB, "vllm-project/vllm#12569: GPU blocks 1381", 1.5,
    ),
    (
        "openai/gpt-oss-20b", "a100-sxm-80gb", {"weights": "mxfp4"}, ("vllm", "0.19.0"), 2048, 1024, 0.65, 36.56,
        "https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/: Available KV cache memory", 1.5,
    ),
    (
        "google/gemma-4-26B-A4B", "a100-sxm-80gb", {}, ("vllm", "0.19.0"), 2048, 1024, 0.9, 21.5,
        "https://myoceane.fr/index.php/ai-vllm-a100-gemma-4/: Available KV cache memory", 1.5,
    ),
    (
        "Qwen/Qwen3-30B-A3B", "a10", {"tensor_parallel": 4}, ("vllm", "0.8.5"), 2048, 1, 0.9, 198784 * 24576 / GIB,
        "vllm-project/vllm#17469: GPU KV cache size: 198,784 tokens", 2.6,
    ),
    (
        "meta-llama/Llama-2-7b-hf", "a100-sxm-80gb", {"weights": "int8_sq"}, ("tensorrt-llm", "0.8.0"), 4096, 1, 0.9,
        69524783104 / GIB, "NVIDIA/TensorRT-LLM#1400: Allocate 69524783104 bytes for k/v cache", 1.5,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "gib", "source", "tolerance"), LOGGED, ids=[f"{x[0]}-{x[1]}" for x in LOGGED])
def test_weights_are_what_servers_logged(
    name: str, fields: dict[str, object], gib: float, source: str, tolerance: float
) -> None:
    model = read_model(name)[0]
    assert weight_bytes(model, Deployment.model_validate(fields)) / GIB == pytest.approx(gib, rel=tolerance), source


@pytest.mark.parametrize(
    ("name", "gpu", "fields", "engine", "tokens", "sequences", "share", "gib", "source", "tolerance"),
    ROOM, ids=[f"{x[0]}-{x[1]}-{x[2]}" for x in ROOM],
)  # fmt: skip
def test_the_room_for_the_cache_is_what_servers_logged(
    name: str, gpu: str, fields: dict[str, object], engine: tuple[str, str], tokens: int, sequences: int, share: float,
    gib: float, source: str, tolerance: float,
) -> None:  # fmt: skip
    deployment = Deployment.model_validate(fields)
    chosen = Engine.model_validate({"name": engine[0], "version": engine[1]})
    memory = parts(read_model(name)[0], find_gpu(gpu, 4)[0], deployment, chosen, tokens, sequences)
    kept = memory.weights + memory.activations + memory.runtime
    assert memory.capacity is not None
    left = share * memory.capacity - kept if chosen.name == "vllm" else share * (memory.capacity - kept)
    assert left / GIB == pytest.approx(gib, abs=tolerance), source


def test_cache_is_what_a_server_allocated() -> None:
    # NVIDIA/TensorRT-LLM#1400: "Allocate 69524783104 bytes for k/v cache. Using 132608 tokens in paged KV cache."
    model = read_model("meta-llama/Llama-2-7b-hf")[0]
    assert kv_bytes_per_token(model, "bf16") * 132608 == pytest.approx(69524783104, rel=1e-3)


def dense(**changes: object) -> Model:
    fields = {
        "name": "test", "architecture": "LlamaForCausalLM", "layers": 4, "hidden": 256, "intermediate": 1024, "vocab": 1000,
        "heads": 8, "kv_heads": 2, "head_dim": 32, "attention": "gqa", "attention_layers": 4, "mlp_layers": 4, **changes,
    }  # fmt: skip
    return Model.model_validate(fields)


def test_a_dense_model_by_hand() -> None:
    attention = 256 * (256 + 2 * 64) + 256 * 256
    mlp = 3 * 256 * 1024
    embeddings = 2 * 1000 * 256
    assert parameter_count(dense()) == 4 * (attention + mlp) + embeddings
    assert weight_bytes(dense(), Deployment()) == 2 * parameter_count(dense())
    assert weight_bytes(dense(), Deployment(weights="fp8")) == 4 * (attention + mlp) + 2 * embeddings
    quarter = 4 * (attention + mlp) * (0.5 + 2 / 128)
    assert weight_bytes(dense(), Deployment(weights="int4_awq")) == pytest.approx(quarter + 2 * embeddings)


def test_tied_embeddings_are_counted_once() -> None:
    assert parameter_count(dense()) - parameter_count(dense(tied_embeddings=True)) == 256 * 1000


def test_tensor_parallel_divides_and_copies_kv_heads_when_there_are_too_few() -> None:
    whole, halves = weight_bytes(dense(), Deployment()), weight_bytes(dense(), Deployment(tensor_parallel=2))
    assert halves == whole / 2
    # four ranks, two kv heads: each rank holds one K and one V head, so two of them are held twice
    fours = weight_bytes(dense(), Deployment(tensor_parallel=4))
    assert fours == pytest.approx((whole + 2 * 4 * 256 * 2 * 2 * 32) / 4)


def test_attention_dp_copies_all_but_the_experts() -> None:
    model = dense(moe=Moe(experts=8, active=2, intermediate=512, layers=4), params=None)
    tp, dp = Deployment(tensor_parallel=2), Deployment(tensor_parallel=2, attention_dp=True)
    experts = 4 * 8 * 3 * 256 * 512 * 2
    rest = weight_bytes(model, Deployment()) - experts
    router = 4 * 256 * 8 * 2
    assert weight_bytes(model, tp) == (experts + rest - router) / 2 + router
    assert weight_bytes(model, dp) == experts / 2 + rest


def test_attention_dp_keeps_room_for_every_ranks_tokens() -> None:
    model = read_model("Qwen/Qwen3-235B-A22B")[0]
    tp, dp = Deployment(tensor_parallel=8), Deployment(tensor_parallel=8, attention_dp=True)
    assert model.moe is not None
    # 8 ranks x 8192 tokens x 8 choices, each with its hidden state and gate, up and product of a whole expert, 16 bits
    rows = 8 * 8192 * 8 * (model.hidden + 3 * model.moe.intermediate) * 2
    assert activation_bytes(model, dp, 8192, 64, gathers=True) > rows > 5 * activation_bytes(model, tp, 8192, 64, gathers=True)


def test_experts_of_many_ranks_work_in_chunks_before_the_cache_goes_without() -> None:
    model, gpu = read_model("deepseek-ai/DeepSeek-R1-0528")[0], find_gpu("h200", 64)[0]
    wide = Deployment(tensor_parallel=64, attention_dp=True, weights="fp8_block", kv_cache="fp8")
    # 64 x 8192 tokens at once would take 106 GB of 141
    assert activation_bytes(model, wide, 8192, 64, gathers=True) > 100e9
    assert (parts(model, gpu, wide, Engine(), 8192, 64).cache or 0) > 20e9


def test_sglang_takes_the_share_that_the_weights_need() -> None:
    model, gpu = read_model("deepseek-ai/DeepSeek-R1-0528")[0], find_gpu("b200", 8)[0]
    asked = model, gpu, Deployment(tensor_parallel=4, weights="fp8_block", kv_cache="fp8")
    # InferenceX served it so; vLLM's fixed share would not hold it
    assert (parts(*asked, Engine(name="sglang", version="0.5.9"), 8192, 64).cache or 0) > 0
    assert (parts(*asked, Engine(name="vllm", version="0.11.0"), 8192, 64).cache or 0) < 0


def test_pipeline_stages_hold_their_layers() -> None:
    layers = weight_bytes(dense(), Deployment()) - 2 * 2 * 1000 * 256
    assert weight_bytes(dense(), Deployment(pipeline_parallel=2)) == layers / 2 + 2 * 1000 * 256


def test_kept_modules_stay_at_sixteen_bits() -> None:
    mlp_only = weight_bytes(dense(), Deployment(weights="fp8", keep_high_precision=("*self_attn*",)))
    attention = 4 * (256 * (256 + 2 * 64) + 256 * 256)
    assert mlp_only - weight_bytes(dense(), Deployment(weights="fp8")) == attention


def test_a_checkpoint_in_the_asked_format_has_its_exact_size() -> None:
    exact = 1234567
    quantized = Quantized(weights="nvfp4", method="modelopt")
    model = dense(weight_bytes=exact, quantized=quantized)
    assert weight_bytes(model, Deployment(weights="nvfp4")) == pytest.approx(exact)
    assert weight_bytes(model, Deployment(weights="bf16")) != pytest.approx(exact)


def test_windows_keep_only_their_tokens_where_the_engine_does_so() -> None:
    model = dense(window=Window(size=100, layers=2))
    each = 2 * 2 * 32 * 2
    assert kv_bytes(model, "bf16", 1000) == each * (2 * 1000 + 2 * 101)
    gpu = find_gpu("h100-sxm-80gb")[0]
    trt = parts(model, gpu, Deployment(), Engine(), 8192, 64)
    vllm = parts(model, gpu, Deployment(), Engine(name="vllm"), 8192, 64)
    assert sequence_bytes(trt, 960) == each * 4 * 960  # TensorRT-LLM keeps all unless max_attention_window is set
    assert sequence_bytes(vllm, 960) < sequence_bytes(trt, 960)


def test_latent_attention_is_copied_on_every_rank() -> None:
    model = read_model("deepseek-ai/DeepSeek-R1")[0]
    assert kv_bytes_per_token(model, "bf16") == 61 * (512 + 64) * 2
    gpu = find_gpu("h200-sxm-141gb", 8)[0]
    eight = parts(model, gpu, Deployment(weights="fp8", tensor_parallel=8), Engine(), 8192, 64)
    assert eight.per_token == 61 * (512 + 64) * 2


def test_recurrent_layers_have_a_state_of_fixed_size() -> None:
    recurrent = Recurrent(kind="mamba2", layers=3, state_elements=1000, conv_elements=10, params_per_layer=5000)
    model = dense(attention_layers=1, recurrent=recurrent)
    state = 3 * (4 * 1000 + 2 * 10)
    assert kv_bytes(model, "bf16", 500) - kv_bytes(model, "bf16", 400) == 100 * 2 * 2 * 32 * 2
    assert kv_bytes(model, "bf16", 0) == state


@pytest.mark.parametrize("kv_format", ["bf16", "fp8", "int8", "nvfp4"])
def test_more_sequences_fit_in_a_smaller_format(kv_format: str) -> None:
    model, gpu = read_model("meta-llama/Llama-3.1-8B")[0], find_gpu("h100-sxm-80gb")[0]
    load = Load(isl=1000, osl=500)

    def fits(name: str) -> int:
        deployment = Deployment.model_validate({"kv_cache": name})
        found = most_sequences(parts(model, gpu, deployment, Engine(), 8192, 64), load, deployment)
        assert found is not None
        return found

    factor = {"bf16": 1.0, "fp8": 2.0, "int8": 2.0, "nvfp4": 2 / 0.5625}[kv_format]
    assert fits(kv_format) == pytest.approx(factor * fits("bf16"), rel=0.01)


def test_blocks_are_rounded_up() -> None:
    gpu = find_gpu("h100-sxm-80gb")[0]
    memory = parts(dense(), gpu, Deployment(), Engine(name="vllm"), 8192, 64)
    assert sequence_bytes(memory, 17) == sequence_bytes(memory, 32)


def test_a_shared_prefix_is_stored_once_when_prefixes_are_reused() -> None:
    model, gpu = read_model("meta-llama/Llama-3.1-8B")[0], find_gpu("h100-sxm-80gb")[0]
    load = Load(isl=4000, osl=100, shared_prefix=0.9)
    plain, reuse = Deployment(), Deployment(prefix_reuse=True)
    memory = parts(model, gpu, plain, Engine(), 8192, 64)
    few, many = most_sequences(memory, load, plain), most_sequences(memory, load, reuse)
    assert few is not None and many is not None and many > 5 * few


def test_formats_quantize_what_their_recipes_do() -> None:
    gpt_oss = read_model("openai/gpt-oss-120b")[0]
    groups = {m.group for m in matrices(gpt_oss) if is_quantized(m, gpt_oss, "mxfp4")}
    assert groups == {"experts"}
    deepseek = read_model("deepseek-ai/DeepSeek-R1")[0]
    assert "attention" not in {m.group for m in matrices(deepseek) if is_quantized(m, deepseek, "nvfp4")}
    assert not any(is_quantized(m, gpt_oss, "bf16") for m in matrices(gpt_oss))


def test_scales_cost_what_their_groups_say() -> None:
    assert bits_per_element("nvfp4") == 4.5
    assert bits_per_element("mxfp4") == 4.25
    assert bits_per_element("int4_awq", 64) - bits_per_element("int4_awq", 128) == 0.125
    assert math.isclose(bits_per_element("fp8_block"), 8.0, rel_tol=1e-3)
