"""What trtllm-bench sets for an offline run: the published tables of TensorRT-LLM 0.15 to 0.17 ran engines built by it.

`trtllm-bench build --dataset` takes the largest batch and the tokens of a step from the memory that it expects to be left and
from the mean lengths (NVIDIA/TensorRT-LLM tensorrt_llm/bench/build/tuning.py), and `trtllm-bench throughput` lets the engine
choose a smaller batch while it runs (dynamic_max_batch_size of tensorrt_llm/bench/benchmark/throughput.py, chosen by
cpp/tensorrt_llm/executor/dynamicBatchTuner.cpp). docs/source/performance/perf-overview.md @258c7540 has the commands. From
0.19 nothing is built, but `trtllm-bench throughput` takes the batch and the tokens from the same formula; models with latent
attention are left out, whose cache it counts as if each head kept keys and values.
"""

from __future__ import annotations

import math

from advisor.estimator.engines import Runtime
from advisor.estimator.memory import GIB, KV_BYTES, parameter_count, ranks
from advisor.estimator.shapes import WEIGHT_BITS
from advisor.types import Deployment, Gpu, Load, Model

CACHE_SHARE = 0.95
MOST_SEQUENCES, MOST_TOKENS = 4096, 32768
LEAST_SEQUENCES, LEAST_TOKENS = 64, 2048
GRAINS = ((256, 32), (1024, 128)), 256
"""sequences below 256 are rounded up to a multiple of 32, below 1,024 of 128, the others of 256"""
TOKEN_GRAINS = ((4096, 256), (8192, 512)), 1024
CAPACITIES = ((144, 128), (336, 256), (672, 512), (832, 768), (1280, 1024), (1664, 1536))
"""sequences that fit, up to which so many run at once"""
STEP, NEAR = 512, 128
"""beyond: less than NEAR above a multiple of STEP, that multiple"""


def builds(host: Runtime, deployment: Deployment, load: Load) -> bool:
    """Whether this is an offline run of a release that is measured so."""
    return host.built and load.concurrency is None and load.rate is None and deployment.batching == "in-flight"


def as_built(model: Model, gpu: Gpu, deployment: Deployment, load: Load) -> Deployment:
    """The deployment with the largest batch (of all pipeline stages) and the tokens per step that `trtllm-bench build` sets."""
    if gpu.memory_gib is None:
        return deployment
    batch, step = settings(expected_tokens(model, gpu.memory_gib, deployment), deployment.pipeline_parallel, load.isl, load.osl)
    batch, step = deployment.max_batch_size or batch, deployment.max_num_tokens or step
    return deployment.model_copy(update={"max_batch_size": batch, "max_num_tokens": step, "chunked_prefill": True})


def expected_tokens(model: Model, memory_gib: float, deployment: Deployment) -> float:
    """Tokens for which trtllm-bench expects the GPUs of one replica to have room."""
    heads = max(deployment.tensor_parallel, model.kv_heads)
    token = 2 * model.layers * heads * model.head_dim * KV_BYTES[deployment.kv_cache] / GIB
    weights = parameter_count(model) / 1e9 * WEIGHT_BITS[deployment.weights] / 8  # "GB", beside GiB, as the source has it
    return (memory_gib * ranks(deployment) - weights) * CACHE_SHARE / token


def settings(room: float, stages: int, isl: float, osl: float) -> tuple[int, int]:
    """The largest batch, of all pipeline stages, and the tokens per step that it sets for these lengths."""
    sequences = room / (isl + osl)
    sequences = (1.0 if sequences < 1.0 else sequences if sequences < MOST_SEQUENCES else MOST_SEQUENCES) / stages
    tokens = sequences * (1 + isl / osl)
    batch = LEAST_SEQUENCES if sequences <= LEAST_SEQUENCES else _rounded(sequences, *GRAINS)
    if tokens <= LEAST_TOKENS:
        return batch * stages, LEAST_TOKENS
    return batch * stages, _rounded(tokens if tokens < MOST_TOKENS else MOST_TOKENS, *TOKEN_GRAINS)


def running(capacity: int) -> int:
    """How many sequences the engine runs at once when the cache has room for `capacity`."""
    for least, batch in CAPACITIES:
        if capacity < least:
            return batch
    below = capacity // STEP * STEP
    return below if capacity < below + NEAR else capacity


def _rounded(value: float, grains: tuple[tuple[int, int], ...], largest: int) -> int:
    for below, grain in grains:
        if value < below:
            return grain * math.ceil(value / grain)
    return largest * math.ceil(value / largest)
