"""Memory of one GPU, by part, in bytes. All of it is arithmetic from the architecture; the runtime's share is published."""

from __future__ import annotations

import math
from dataclasses import dataclass

from advisor.errors import NotPossible
from advisor.estimator.engines import runtime_of
from advisor.estimator.remembering import by_identity
from advisor.estimator.shapes import PLAIN_LINEAR, Matrix, bits_per_element, is_quantized, matrices
from advisor.types import Deployment, Engine, Gpu, KvFormat, Load, Model

GIB = float(2**30)
KV_BYTES: dict[str, float] = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5 + 1 / 16}
COLLECTIVE_BYTES = 0.36e9
"""NCCL buffers of one group of 2 to 8 GPUs: aiconfigurator-core 0.12.0 systems/*.yaml nccl_mem (358612992 to 411041792)"""


@dataclass(frozen=True)
class Parts:
    """Bytes of the fullest GPU of one replica."""

    weights: float
    activations: float
    runtime: float
    capacity: float | None
    cache: float | None
    """what is left for KV cache and states; None when the capacity is not known; negative: how much is missing"""
    per_token: float
    """KV bytes per token of a global attention layer's context, on one GPU"""
    per_token_local: float
    """the same of the sliding-window layers, which keep at most `window` tokens"""
    per_sequence: float
    """recurrent state of one sequence"""
    window: float
    block: int


@by_identity(64)
def parameter_count(model: Model) -> int:
    """All parameters: the checkpoint's own count, else the sum of the matrices."""
    return model.params or sum(matrix.elements for matrix in matrices(model))


def ranks(deployment: Deployment) -> int:
    """GPUs of one replica."""
    return deployment.tensor_parallel * deployment.pipeline_parallel


def share(matrix: Matrix, deployment: Deployment) -> float:
    """Part of a matrix that one tensor-parallel rank holds, before pipeline stages divide the layers.

    Under attention-DP every rank holds the whole attention, dense MLP, shared experts, embedding and head; the experts
    are always divided over all ranks (expert x tensor parallel = tensor_parallel).
    """
    tp = deployment.tensor_parallel
    if matrix.split == "none" or tp == 1:
        return 1.0
    if matrix.group == "experts":
        return 1.0 / tp
    return 1.0 if deployment.attention_dp else 1.0 / tp


@by_identity(512, values=1)
def weight_bytes(model: Model, deployment: Deployment) -> float:
    """Bytes of weights on the fullest GPU (the first or last pipeline stage), scales included.

    When the checkpoint already has the asked format its exact size is used and divided in the same proportions.
    """
    kept = deployment.keep_high_precision
    group_size = model.quantized.group_size if model.quantized else None
    everything, mine = 0.0, 0.0
    pp = deployment.pipeline_parallel
    stage = math.ceil(model.layers / pp) / model.layers
    for matrix in matrices(model):
        quantized = is_quantized(matrix, model, deployment.weights, kept)
        size = matrix.elements * (bits_per_element(deployment.weights, group_size) if quantized else 16.0) / 8
        everything += size
        in_layers = matrix.group not in ("embedding", "lm_head", "other")
        mine += size * (_kv_replication(matrix, model, deployment) * share(matrix, deployment)) * (stage if in_layers else 1.0)
        if pp > 1 and matrix.group == "embedding":
            mine -= size * share(matrix, deployment)
    exact = _exact_bytes(model, deployment)
    return mine * (exact / everything if exact else 1.0)


def _kv_replication(matrix: Matrix, model: Model, deployment: Deployment) -> float:
    """K and V heads are copied when there are fewer of them than tensor-parallel ranks."""
    tp = 1 if deployment.attention_dp else deployment.tensor_parallel
    if not matrix.name.endswith("qkv_proj") or tp <= model.kv_heads:
        return 1.0
    return (model.heads + 2 * tp) / (model.heads + 2 * model.kv_heads)


def _exact_bytes(model: Model, deployment: Deployment) -> float | None:
    if model.weight_bytes is None or deployment.keep_high_precision:
        return None
    if model.quantized is not None:
        return float(model.weight_bytes) if model.quantized.weights == deployment.weights else None
    return float(model.weight_bytes) if deployment.weights == "bf16" and model.dtype in ("bfloat16", "float16") else None


def kv_bytes_per_token(model: Model, kv_format: KvFormat) -> float:
    """Bytes that one token adds to the cache over all layers and GPUs (each head once), while it is inside every window."""
    return _global_bytes(model, kv_format) + _local_bytes(model, kv_format)


def kv_bytes(model: Model, kv_format: KvFormat, tokens: float, *, block: int = 1) -> float:
    """Bytes of cache and state of one sequence of `tokens` tokens, rounded up to blocks; windowed layers keep their window."""
    whole = _round(tokens, block)
    kept = _round(min(tokens, model.window.size + block), block) if model.window else 0.0
    return _global_bytes(model, kv_format) * whole + _local_bytes(model, kv_format) * kept + state_bytes(model)


def state_bytes(model: Model) -> float:
    """Bytes of recurrent state of one sequence; the convolution's state has 16 bits."""
    recurrent = model.recurrent
    if recurrent is None:
        return 0.0
    wide = 4.0 if recurrent.state_dtype == "float32" else 2.0
    return recurrent.layers * (wide * recurrent.state_elements + 2.0 * recurrent.conv_elements)


def _cache_elements(model: Model) -> float:
    if model.kv_elements is not None:
        return model.kv_elements
    if model.mla is not None:
        return model.mla.kv_lora_rank + model.mla.qk_rope_head_dim
    return 2 * model.kv_heads * model.head_dim


def _global_bytes(model: Model, kv_format: KvFormat) -> float:
    """Bytes per token of all layers that keep the whole context, each head once."""
    layers = model.attention_layers - (model.window.layers if model.window else 0)
    return layers * (_cache_elements(model) * KV_BYTES[kv_format] + model.indexer_bytes)


def _local_bytes(model: Model, kv_format: KvFormat) -> float:
    """Bytes per token of all sliding-window layers."""
    if model.window is None:
        return 0.0
    elements = model.window.kv_elements if model.window.kv_elements is not None else _cache_elements(model)
    return model.window.layers * (elements * KV_BYTES[kv_format] + model.indexer_bytes)


def _round(tokens: float, block: int) -> float:
    return math.ceil(tokens / block) * block if block > 1 else tokens


@by_identity(256, values=1)
def _widest(model: Model, tp: int) -> float:
    """Inputs and outputs of the widest projection, on one of `tp` ranks."""
    return max(matrix.inputs / (tp if matrix.split == "in" else 1) + matrix.outputs / (tp if matrix.split == "out" else 1)
               for matrix in matrices(model) if matrix.group in PLAIN_LINEAR)  # fmt: skip


def activation_bytes(model: Model, deployment: Deployment, tokens: int, sequences: int, gathers: bool = False) -> float:
    """Peak live activations of a step of `tokens` tokens and `sequences` logits rows.

    Two residual copies, the widest pair of projections (16 bits), FP32 logits and their softmax. gathers: experts' buffers hold
    the tokens of all attention-DP ranks at once.
    """
    tp = 1 if deployment.attention_dp else deployment.tensor_parallel
    widest = _widest(model, tp)
    if model.moe is not None:
        gathered = deployment.tensor_parallel if deployment.attention_dp and gathers else 1
        width = model.moe.intermediate * gathered / deployment.tensor_parallel
        routed = gathered * model.moe.active * (model.hidden + 3 * width)
        widest = max(widest, 2.0 * model.hidden + routed)
    return 2.0 * tokens * (2 * model.hidden + widest) + 8.0 * sequences * model.vocab / tp


def parts(model: Model, gpu: Gpu, deployment: Deployment, engine: Engine, max_num_tokens: int, max_batch: int) -> Parts:
    """The memory ledger of one GPU of one replica."""
    weights = weight_bytes(model, deployment)
    host = runtime_of(engine, gpu.id)
    rows = min(max_batch, host.logits_rows)
    activations = activation_bytes(model, deployment, max_num_tokens, rows, host.gathers)
    runtime = host.runtime_gib * GIB + (COLLECTIVE_BYTES if ranks(deployment) > 1 else 0.0)
    capacity = gpu.memory_gib * GIB if gpu.memory_gib is not None else None
    if capacity is not None and host.gathers and activations > (capacity - weights - runtime) / 2:
        # the experts then work in chunks (moe_max_num_tokens), rather than that the cache goes without
        chunked = activation_bytes(model, deployment, max_num_tokens, rows)
        activations = max(chunked, min(activations, (capacity - weights - runtime) / 2))
    cache = None
    if capacity is not None:
        if host.shares_left:
            left = capacity - weights - activations - runtime
            cache = left * host.cache_share if left > 0 else left
        else:
            cache = capacity * host.cache_share - weights - activations - runtime
            if cache <= 0 and host.share_grows:
                cache = capacity - weights - activations - runtime
    tp, pp = (1 if deployment.attention_dp else deployment.tensor_parallel), deployment.pipeline_parallel
    heads = 1.0 if model.mla is not None else math.ceil(model.kv_heads / tp) / model.kv_heads
    mine = heads * (math.ceil(model.layers / pp) / model.layers)
    return Parts(
        weights, activations, runtime, capacity, cache,
        _global_bytes(model, deployment.kv_cache) * mine,
        _local_bytes(model, deployment.kv_cache) * mine,
        state_bytes(model) / tp / pp,
        float(model.window.size) if model.window and host.window_cache else math.inf, host.block,
    )  # fmt: skip


def sequence_bytes(memory: Parts, tokens: float) -> float:
    """Cache bytes of one sequence of `tokens` tokens on one GPU."""
    whole = math.ceil(tokens / memory.block) * memory.block
    most = memory.window + memory.block
    kept = whole if whole < most else most
    return memory.per_token * whole + memory.per_token_local * kept + memory.per_sequence


def most_sequences(memory: Parts, load: Load, deployment: Deployment) -> int | None:
    """Sequences of the load's full length whose cache fits in one replica; None when the capacity is not known.

    A shared prefix is stored once. Under attention-DP each rank holds its own sequences.
    """
    if memory.cache is None:
        return None
    shared = load.shared_prefix * load.isl if deployment.prefix_reuse else 0.0
    each = sequence_bytes(memory, load.isl + load.osl - shared)
    room = memory.cache - (sequence_bytes(memory, shared) if shared else 0.0)
    if room < each:
        return 0
    if each <= 0:
        raise NotPossible("this model keeps no cache and no state", where="model", hint="check config.json")
    return int(room // each) * (deployment.tensor_parallel if deployment.attention_dp else 1)
