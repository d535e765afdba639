"""The ratios that decide advice, by the public estimate, against printed ones: FP8, INT8, INT4, W4A8 by batch, FP8 KV."""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from advisor.estimator.deployment import estimate
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Estimate, Load

BLOG = "NVIDIA/TensorRT-LLM docs/source/blogs/quantization-in-TRT-LLM.md @2ee99e8a"
MODELOPT = "NVIDIA/Model-Optimizer examples/benchmark.md @a2fbac7b"
GPT_J, LLAMA_2 = "EleutherAI/gpt-j-6b", "meta-llama/Llama-2-7b-hf"
LLAMA_8B, LLAMA_70B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct"
PRINTED = [
    # model, GPU, release, weights, cache, batch -> throughput per GPU over that of BF16, whose 70B takes two GPUs; source
    (GPT_J, "h100", "0.9", "fp8", "fp8", {1: 1.40, 8: 1.44}, BLOG),
    (LLAMA_2, "h100", "0.9", "fp8", "fp8", {1: 1.51, 8: 1.40}, BLOG),
    (GPT_J, "h100", "0.9", "int8_sq", "bf16", {1: 1.40, 8: 1.30}, BLOG),
    (LLAMA_8B, "h200", "0.15", "fp8", "fp8", {1: 1.41, 8: 1.31, 64: 1.30}, MODELOPT),
    (LLAMA_8B, "h200", "0.15", "w4a8_awq", "fp8", {1: 1.38, 8: 1.00, 64: 1.15}, MODELOPT),
    (LLAMA_70B, "h200", "0.15", "int4_awq", "bf16", {1: 1.93, 8: 1.03, 64: 0.88}, MODELOPT),
    (LLAMA_70B, "h200", "0.15", "w4a8_awq", "fp8", {1: 2.02, 8: 1.53, 64: 1.72}, MODELOPT),
]
CLOSE = 0.02
"""printed ratios this near to 1 are right on either side"""


def of(model: str, gpu: str, release: str, load: Load, **fields: Any) -> Estimate:
    return estimate(read_model(model)[0], find_gpu(gpu, 8)[0], Deployment(**fields), load, Engine(version=release))


def per_gpu(model: str, gpu: str, release: str, batch: int, **fields: Any) -> float:
    isl = 2048 if gpu == "h200" else 1024
    found = of(model, gpu, release, Load(isl=isl, osl=128, concurrency=batch), batching="static", **fields)
    return found.output_tokens_per_s_per_gpu or 0.0


def test_formats_gain_by_batch_what_was_printed() -> None:
    pairs = []
    for model, gpu, release, weights, cache, by_batch, _source in PRINTED:
        for batch, printed in by_batch.items():
            plain = per_gpu(model, gpu, release, batch, tensor_parallel=2 if model == LLAMA_70B else 1)
            treated = per_gpu(model, gpu, release, batch, weights=weights, kv_cache=cache)
            pairs.append((printed, treated / plain))
    errors = [abs(ours / printed - 1) for printed, ours in pairs]
    wrong = [pair for pair in pairs if abs(pair[0] - 1) > CLOSE and (pair[0] > 1) != (pair[1] > 1)]
    assert statistics.fmean(errors) <= 0.10 and max(errors) <= 0.32
    assert len(wrong) <= 1, wrong  # of 18


def test_int4_wins_alone_and_loses_in_company() -> None:
    """H200, 70B: printed 1.93 times per GPU at a batch of 1, 0.88 times at 64 (two GPUs against one)."""
    gains = [
        per_gpu(LLAMA_70B, "h200", "0.15", batch, weights="int4_awq") / per_gpu(LLAMA_70B, "h200", "0.15", batch, weights="fp8")
        for batch in (1, 8, 64, 256)
    ]
    assert gains[0] > 1.0 > gains[-1] and gains[0] == max(gains)


def test_an_fp8_cache_gains_by_the_requests_that_then_fit() -> None:
    """TensorRT-LLM 0.16's tuning guide: Llama-3.3-70B FP8 on 4 x H100, 2,048 in and out: 3,390 to 5,300 tokens/s."""
    load = Load(isl=2048, osl=2048, requests=1000)
    plain, eight = (
        of("meta-llama/Llama-3.3-70B-Instruct", "h100", "0.16", load, weights="fp8", kv_cache=cache, tensor_parallel=4)
        for cache in ("bf16", "fp8")
    )
    assert plain.output_tokens_per_s and eight.output_tokens_per_s and plain.max_concurrency and eight.max_concurrency
    assert eight.output_tokens_per_s / plain.output_tokens_per_s == pytest.approx(1.5635, rel=0.1)
    assert eight.max_concurrency == pytest.approx(2 * plain.max_concurrency, abs=2)


def test_an_fp8_cache_of_deepseek_r1() -> None:
    """TensorRT-LLM tech blog 3: 1.06 times at one concurrency; best practice page: 3,072 to 7,168 requests, 1.19 times."""
    layout = {"weights": "nvfp4", "tensor_parallel": 8, "expert_parallel": 8, "attention_dp": True}
    model = "deepseek-ai/DeepSeek-R1"

    def gain(load: Load) -> tuple[float, float]:
        plain, eight = (of(model, "b200", "1.0", load, kv_cache=cache, **layout) for cache in ("bf16", "fp8"))
        assert plain.output_tokens_per_s and eight.output_tokens_per_s and plain.max_concurrency and eight.max_concurrency
        return eight.output_tokens_per_s / plain.output_tokens_per_s, eight.max_concurrency / plain.max_concurrency

    assert gain(Load(isl=1024, osl=2048, concurrency=3072))[0] == pytest.approx(1.06, abs=0.05)
    throughput, requests = gain(Load(isl=1024, osl=2048))
    assert throughput == pytest.approx(1.186, abs=0.1) and requests == pytest.approx(7168 / 3072, rel=0.16)
