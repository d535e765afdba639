"""Time of one engine step: decode tokens of running sequences, prompt tokens, or both.

Every operation of the model is a small closed form with constants of the GPU (gemm, attention, moe, network); a step adds
them up over the layers of the slowest pipeline stage, plus the head, plus the host's work per sequence in flight.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.estimator.attention import Attention, attention
from advisor.estimator.constants import Constants
from advisor.estimator.gemm import Gemm, gemm
from advisor.estimator.memory import share
from advisor.estimator.moe import Experts, experts
from advisor.estimator.network import Collective, all_gather, all_reduce
from advisor.estimator.shapes import Matrix, bits_per_element, is_quantized, matrices
from advisor.types import Deployment, Engine, Model

HOST_SECONDS_PER_SEQUENCE = 8e-6
"""host and sampling time per sequence in flight and step, paid by each pipeline stage (facts/estimator.md, section 2)"""
HOST_SECONDS_PER_LAYER = {"tensorrt-llm": 0.0, "vllm": 10e-6, "sglang": 5e-6}
"""facts/estimator_constants.json, runtime.layer_us"""
ELEMENT_SECONDS = 3e-6
ELEMENT_EFFICIENCY = 0.8
"""of one element-wise kernel: aiconfigurator-core 0.12.0 systems/*.yaml"""
ELEMENT_PASSES = 14.0
"""reads and writes of the residual stream per layer: two add-and-norm, rope, activation"""
ELEMENT_KERNELS = 3


class StepParts(NamedTuple):
    """Seconds of one step by what they wait for."""

    gemm: float
    attention: float
    experts: float
    network: float
    elementwise: float
    host: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return sum(self)


class StepTime(NamedTuple):
    """All coefficients of one model in one deployment on one GPU; build with `step_time`."""

    dense: tuple[tuple[Gemm, float], ...]
    head: Gemm
    groups: tuple[tuple[Attention, float], ...]
    moe: Experts | None
    moe_layers: float
    reduce: Collective
    gather: Collective
    collectives: float
    hidden_bytes: float
    layers: float
    element_byte_time: float
    host_layer: float
    host_sequence: float
    width: int
    """ranks that divide the sequences (attention-DP), else 1"""
    stages: int
    stage_copy: float
    """seconds per byte from one pipeline stage to the next"""

    def parts(self, decode: float, context: float, prefill: float, length: float) -> StepParts:
        """One step of one micro-batch through one pipeline stage.

        decode: sequences that produce a token, each with `context` tokens in the cache; prefill: prompt tokens, of prompts
        of `length` tokens. Counted over all attention-DP ranks. Seconds.
        """
        tokens = decode + prefill
        rows = tokens / self.width
        dense = 0.0
        for op, times in self.dense:
            dense += op.seconds(rows) * times
        dense += self.head.seconds((decode + prefill / length) / self.width) / self.stages
        attend = 0.0
        for op_attention, times in self.groups:
            attend += times * (
                op_attention.decode(decode / self.width, context) + op_attention.prefill(prefill / self.width, length)
            )
        routed = self.moe.seconds(tokens) * self.moe_layers if self.moe is not None else 0.0
        size = tokens * self.hidden_bytes
        wire = self.reduce.seconds(size) * self.collectives + 2 * self.gather.seconds(size) * self.moe_layers
        if self.stages > 1:
            wire += size * self.stage_copy
        element = self.layers * (
            ELEMENT_KERNELS * ELEMENT_SECONDS + ELEMENT_PASSES * rows * self.hidden_bytes * self.element_byte_time
        )
        host = self.host_layer + self.host_sequence * decode
        return StepParts(dense, attend, routed, wire, element, host)

    def step(self, decode: float, context: float, prefill: float = 0.0, length: float = 1.0) -> float:
        """Seconds until every one of `decode` running sequences has one more token, with `prefill` prompt tokens beside.

        With pipeline stages the sequences are divided into as many micro-batches, and a token takes all stages in turn;
        each stage pays the host's time for every micro-batch.
        """
        if self.stages == 1:
            return sum(self.parts(decode, context, prefill, length))
        part = self.parts(decode / self.stages, context, prefill / self.stages, length)
        return self.stages * (sum(part) + part.host * (self.stages - 1))

    def prompt(self, tokens: float) -> float:
        """Seconds from the start of one prompt's prefill to its first token, alone on the engine."""
        part = self.parts(0.0, 1.0, tokens * self.width, tokens)
        return self.stages * sum(part) + self.host_sequence


def step_time(constants: Constants, model: Model, deployment: Deployment, engine: Engine) -> StepTime:
    """The coefficients for one model, deployment and engine on the GPU of `constants`."""
    tp, pp, width = deployment.tensor_parallel, deployment.pipeline_parallel, 1
    if deployment.attention_dp:
        width = tp
    heads_over = tp // width
    dense = tuple(
        (_gemm(constants, model, matrix, deployment), matrix.layers / pp)
        for matrix in matrices(model)
        if matrix.group in ("attention", "mlp", "shared", "router", "recurrent")
    )
    head = Matrix("lm_head", "lm_head", model.hidden, model.vocab, 1, "out")
    local = model.window.layers if model.window else 0
    groups = [
        (attention(constants, model, deployment.kv_cache, heads_over, float("inf")), (model.attention_layers - local) / pp)
    ]
    if model.window is not None and local:
        groups.append((attention(constants, model, deployment.kv_cache, heads_over, float(model.window.size)), local / pp))
    routed = None
    if model.moe is not None:
        quantized = is_quantized(
            next(m for m in matrices(model) if m.group == "experts"), model, deployment.weights, deployment.keep_high_precision
        )
        form = deployment.weights if quantized else "bf16"
        ep = max(deployment.expert_parallel, tp if deployment.attention_dp else 1)
        routed = experts(constants, model, model.moe, form, bits_per_element(form), ep, max(1, tp // ep))
    moe_layers = model.moe.layers / pp if model.moe else 0.0
    reduced = (model.attention_layers + model.mlp_layers) / pp if width == 1 else 0.0
    nothing = all_reduce(constants, 1)
    return StepTime(
        dense=dense, head=_gemm(constants, model, head, deployment),
        groups=tuple((op, times) for op, times in groups if times > 0), moe=routed, moe_layers=moe_layers,
        reduce=all_reduce(constants, tp) if width == 1 else nothing, gather=all_gather(constants, tp) if width > 1 else nothing,
        collectives=reduced, hidden_bytes=2.0 * model.hidden, layers=model.layers / pp,
        element_byte_time=1.0 / (constants.bandwidth * ELEMENT_EFFICIENCY),
        host_layer=HOST_SECONDS_PER_LAYER[engine.name] * model.layers / pp, host_sequence=HOST_SECONDS_PER_SEQUENCE,
        width=width, stages=pp, stage_copy=1.0 / (constants.link_bytes or 32e9),
    )  # fmt: skip


def _gemm(constants: Constants, model: Model, matrix: Matrix, deployment: Deployment) -> Gemm:
    part = share(matrix, deployment)
    k = matrix.inputs * (part if matrix.split == "in" else 1.0)
    n = matrix.outputs * (part if matrix.split == "out" else 1.0)
    form = deployment.weights if is_quantized(matrix, model, deployment.weights, deployment.keep_high_precision) else "bf16"
    group_size = model.quantized.group_size if model.quantized else None
    return gemm(constants, form, k, n, bits_per_element(form, group_size))
