"""What trtllm-bench sets for an offline run: the published tables of TensorRT-LLM 0.15 to 0.17 ran engines built by it.

`trtllm-bench build --dataset` takes the largest batch and the tokens of a step from the memory that it expects to be left and
from the mean lengths (NVIDIA/TensorRT-LLM tensorrt_llm/bench/build/tuning.py), and `trtllm-bench throughput` lets the engine
choose a smaller batch while it runs (dynamic_max_batch_size of tensorrt_llm/bench/benchmark/throughput.py, chosen by
cpp/tensorrt_llm/executor/dynamicBatchTuner.cpp). docs/source/performance/perf-overview.md @258c7540 has the commands.
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
    pp = deployment.pipeline_parallel
    heads = max(deployment.tensor_parallel, model.kv_heads)
    token = 2 * model.layers * heads * model.head_dim * KV_BYTES[deployment.kv_cache] / GIB
    weights = parameter_count(model) / 1e9 * WEIGHT_BITS[deployment.weights] / 8  # "GB", beside GiB, as the source has it
    left = (gpu.memory_gib * ranks(deployment) - weights) * CACHE_SHARE
    sequences = min(max(left / token / (load.isl + load.osl), 1.0), MOST_SEQUENCES) / pp
    tokens = min(sequences * (1 + load.isl / load.osl), MOST_TOKENS)
    batch = deployment.max_batch_size or max(LEAST_SEQUENCES, _rounded(sequences, *GRAINS)) * pp
    step = deployment.max_num_tokens or max(LEAST_TOKENS, _rounded(tokens, *TOKEN_GRAINS))
    return deployment.model_copy(update={"max_batch_size": batch, "max_num_tokens": step, "chunked_prefill": True})


def running(capacity: int) -> int:
    """How many sequences the engine runs at once when the cache has room for `capacity`."""
    for least, batch in CAPACITIES:
        if capacity < least:
            return batch
    below = capacity // STEP * STEP
    return below if capacity < below + NEAR else capacity


def _rounded(value: float, grains: tuple[tuple[int, int], ...], largest: int) -> int:
    grain = next((grain for below, grain in grains if value < below), largest)
    return grain * math.ceil(value / grain)
