"""Time of one engine step: decode tokens of running sequences, prompt tokens, or both.

Every operation of the model is a small closed form with constants of the GPU (gemm, attention, moe, network); a step adds
them up over the layers of the slowest pipeline stage, plus the head, plus what the engine itself costs (engines).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from advisor.estimator.attention import Attention, attention
from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime, runtime_of
from advisor.estimator.gemm import Gemm, Run, gemm, in_runs, total_seconds
from advisor.estimator.memory import share
from advisor.estimator.moe import Experts, experts
from advisor.estimator.network import Collective, all_gather, all_reduce, link_rate, waiting
from advisor.estimator.recurrent import Scan, scan
from advisor.estimator.remembering import by_identity
from advisor.estimator.shapes import PLAIN_LINEAR, Matrix, bits_per_element, is_quantized, matrices
from advisor.estimator.sparse import TOP, Indexer, indexer
from advisor.types import Deployment, Engine, Model

SENT = {"fp8": 8 / 16, "nvfp4": 4.5 / 16, "nvfp4_gen": 4.5 / 16, "mxfp4_fp8": 8.25 / 16}
"""activations that TensorRT-LLM quantizes before it gathers them (tensorrt_llm/_torch/modules/fused_moe/fused_moe_cutlass.py,
release 1.1: "gather inputs from other parallel ranks" stands after the quantization of x)"""
ELEMENT_EFFICIENCY = 0.8
"""bandwidth share that an element-wise kernel reaches: aiconfigurator-core 0.12.0 systems/*.yaml"""


class StepParts(NamedTuple):
    """Seconds of one step of one pipeline stage by what they wait for; host and GPU may overlap."""

    gemm: float
    attention: float
    experts: float
    network: float
    elementwise: float
    host: float

    @property
    def gpu(self) -> float:
        """What the GPU does."""
        return self.gemm + self.attention + self.experts + self.network + self.elementwise


class Pace(NamedTuple):
    """How long a step takes through all stages, and why."""

    seconds: float
    parts: StepParts
    """of one micro-batch through one stage"""


@dataclass(frozen=True, slots=True)
class StepTime:
    """All coefficients of one model in one deployment on one GPU; build with `step_time`."""

    dense: tuple[Run, ...]
    first: Gemm
    """of `dense`"""
    head: tuple[Run, ...]
    """and sampling, one stage's share"""
    groups: tuple[tuple[Attention, float], ...]
    indexer: Indexer | None
    indexed_layers: float
    scan: Scan | None
    scan_layers: float
    moe: Experts | None
    moe_layers: float
    wires: tuple[Collective, ...]
    """what one stage's step sends, for the size of all its tokens"""
    hidden_bytes: float
    """of one token at 16 bits"""
    gaps: float
    """seconds of one stage's step between kernels"""
    element_time: float
    """seconds of one token in all passes over the residual stream"""
    launches: float
    """seconds to launch the kernels of one stage's step one by one"""
    uncompiled: float
    """the same with CUDA graphs and compilation off"""
    cold: float
    """times that a lone prompt's kernels take longer to launch"""
    graphs: bool
    """whether steps without prompts run as CUDA graphs"""
    host_step: float
    host_sequence: float
    host_lookup: float
    host_lookup_sequence: float
    host_draft: float
    """seconds that drafts add on the host: n-grams a step and a sequence, a draft model a token"""
    overlap: float
    width: int
    """ranks that divide the sequences (attention-DP), else 1"""
    balance: float
    """steps that a prompt waits for the other attention-DP ranks'"""
    stages: int
    apart: bool
    """whether prompts run in steps of their own"""

    def parts(self, decode: float, context: float, prefill: float, length: float) -> StepParts:
        """One step of one micro-batch through one pipeline stage.

        decode: sequences that produce a token, each with `context` tokens in the cache; prefill: prompt tokens, of prompts
        of `length` tokens. Counted over all attention-DP ranks. Seconds.
        """
        tokens = decode + prefill
        running, mine, rows = decode / self.width, prefill / self.width, tokens / self.width
        dense = total_seconds(self.dense, rows) + total_seconds(self.head, (decode + prefill / length) / self.width)
        attend = routed = wire = 0.0
        for op, times in self.groups:
            attend += times * (op.decode(running, context) + op.prefill(mine, length))
        if self.indexer is not None:
            attend += self.indexed_layers * self.indexer.seconds(running, context, mine, length)
        if self.scan is not None:
            attend += self.scan_layers * self.scan.seconds(running, mine, length)
        if self.moe is not None:
            routed = self.moe_layers * self.moe.seconds(tokens)
        for sent in self.wires:
            wire += sent.seconds(tokens * self.hidden_bytes)
        element, host = self.gaps + rows * self.element_time, self.host_step + decode * self.host_sequence
        # StepParts(...) itself would be 3 % of an estimate, which asks for four to eight steps
        return tuple.__new__(StepParts, (dense, attend, routed, wire, element, host))

    def filled(self, part: StepParts, each: float, size: float) -> float:
        """Seconds that the step `part` of `each` sequences a rank takes longer if it multiplies `size` rows."""
        idle = size - each
        longer = _multiplied(self, size) - part[0] + idle * self.element_time
        if self.moe is not None:
            longer += self.moe_layers * self.moe.seconds(each * self.width, idle * self.width) - part[2]
        return longer * self.stages

    def step(self, decode: float, context: float, prefill: float = 0.0, length: float = 1.0) -> float:
        """Seconds until every one of `decode` running sequences has one more token, with `prefill` prompt tokens beside.

        With pipeline stages the sequences are divided into as many micro-batches, and a token takes all stages in turn;
        each stage pays the host's time for its micro-batch, and a part of it for all the others. Where prompts run in steps
        of their own, it is the time of both.
        """
        stages = self.stages
        if self.apart and prefill > 0.0 and decode > 0.0:
            return self.step(decode, context) + self.step(0.0, 1.0, prefill, length)
        part = self.parts(decode / stages, context, prefill / stages, length)
        return self.total(part, prefill > 0.0)

    def total(self, part: StepParts, prompts: bool) -> float:
        """Seconds of a step through all stages, from the parts of one stage; `prompts`: whether the step carries any."""
        gemm, attend, routed, wire, element, host = part
        gpu = gemm + attend + routed + wire + element
        if not self.graphs:
            gpu = max(gpu, self.uncompiled)
        elif prompts and gpu < self.launches:
            gpu = self.launches
        if self.overlap == 1.0:
            return self.stages * (gpu + host)
        return float(self.stages * (gpu**self.overlap + host**self.overlap) ** (1 / self.overlap))

    def pace(self, decode: float, context: float) -> Pace:
        """A step without prompts, as `step`."""
        part = self.parts(decode / self.stages, context, 0.0, 1.0)
        return Pace(self.total(part, False), part)

    def prompt(self, tokens: float) -> Pace:
        """From the start of one prompt's prefill to its first token, alone on the engine."""
        part = self.parts(0.0, 1.0, tokens * self.width, tokens)
        gpu, launching = part.gpu, self.cold * self.launches
        return Pace(self.stages * (gpu if gpu > launching else launching) + part.host, part)


@by_identity(64, values=1)
def _multiplied(step: StepTime, rows: float) -> float:
    """Seconds of one stage's matrices outside the experts: graphs are captured for few numbers of rows."""
    return total_seconds(step.dense, rows) + total_seconds(step.head, rows)


def step_time(constants: Constants, model: Model, deployment: Deployment, engine: Engine) -> StepTime:
    """The coefficients for one model, deployment and engine on the GPU of `constants`."""
    return _step_time(constants, runtime_of(engine, constants.own), model, deployment)


@by_identity(512, values=1)
def _step_time(constants: Constants, host: Runtime, model: Model, deployment: Deployment) -> StepTime:
    tp, pp = deployment.tensor_parallel, deployment.pipeline_parallel
    width = tp if deployment.attention_dp else 1
    dense = tuple(
        _gemm(constants, host, model, matrix, deployment, matrix.layers / pp)
        for matrix in matrices(model)
        if matrix.group in PLAIN_LINEAR | {"router"}
    )
    moe_layers = model.moe.layers if model.moe else 0
    recurrent = model.recurrent.layers if model.recurrent else 0
    routed = _experts(constants, host, model, deployment)
    beside = moe_layers * host.eager_moe_us + (model.attention_layers * host.eager_mla_us if model.mla else 0.0)
    if deployment.weights == "fp8_block":  # tokens are quantized before each of these
        beside += host.eager_block_us * sum(matrix.layers for matrix in matrices(model) if matrix.group in PLAIN_LINEAR)
    return StepTime(
        dense=in_runs(dense),
        first=dense[0],
        head=in_runs((_head(constants, host, model, deployment),)),
        groups=_attention(constants, host, model, deployment, tp // width),
        indexer=indexer(constants, host, model),
        indexed_layers=model.attention_layers / pp,
        scan=scan(constants, host, model, tp // width),
        scan_layers=recurrent / pp,
        moe=routed,
        moe_layers=moe_layers / pp,
        wires=_wires(constants, host, model, deployment, routed),
        hidden_bytes=2.0 * model.hidden,
        gaps=1e-6 / pp * (model.layers * host.layer_us + moe_layers * host.moe_layer_us + recurrent * host.scan_layer_us),
        launches=1e-6 / pp * (model.layers * host.eager_layer_us + beside),
        uncompiled=1e-6 / pp * (model.layers * host.uncompiled_layer_us + beside),
        cold=host.cold_launches,
        graphs=deployment.cuda_graphs,
        element_time=_element_bytes(host, model, deployment) / pp / (constants.bandwidth * ELEMENT_EFFICIENCY),
        host_step=host.step_us * 1e-6,
        host_sequence=1e-6 * (host.sequence_us + host.waiting_us * pp + host.pipeline_us * min(pp - 1, 2)),
        host_lookup=host.lookup_us * 1e-6,
        host_lookup_sequence=host.lookup_sequence_us * 1e-6,
        host_draft=host.draft_us * 1e-6,
        overlap=host.overlap,
        width=width,
        balance=host.balance_steps if width > 1 else 0.0,
        stages=pp,
        apart=host.prompts_apart,
    )


def _element_bytes(host: Runtime, model: Model, deployment: Deployment) -> float:
    """Bytes of one token that element-wise kernels move on a rank: its residual stream, which no rank divides, and what lies
    between matrices that the ranks divide, written by the first and read by the second."""
    between = 0.0
    for matrix in matrices(model):
        if matrix.group in PLAIN_LINEAR:
            between += matrix.layers * share(matrix, deployment) * (matrix.inputs if matrix.split == "in" else matrix.outputs)
    return 2.0 * (host.passes * model.hidden * model.layers + host.wide * between)


def _head(constants: Constants, host: Runtime, model: Model, deployment: Deployment) -> Gemm:
    """The output head, and the sampling of a token from its logits; the last stage's, of which each bears its share."""
    matrix, stages = Matrix("lm_head", "lm_head", model.hidden, model.vocab, 1, "out"), deployment.pipeline_parallel
    sampling = host.sampling * 4.0 * model.vocab / (constants.bandwidth * ELEMENT_EFFICIENCY)
    made = _gemm(constants, host, model, matrix, deployment, 1 / stages)
    return made._replace(linear=made.linear + sampling)


def _wires(
    constants: Constants, host: Runtime, model: Model, deployment: Deployment, routed: Experts | None
) -> tuple[Collective, ...]:
    """What one stage's step sends: sums over the ranks, or tokens to all ranks' experts and back; and all to the next stage."""
    tp, pp = deployment.tensor_parallel, deployment.pipeline_parallel
    found = []
    if tp > 1 and not deployment.attention_dp:
        summed = model.attention_layers + model.mlp_layers + (model.recurrent.layers if model.recurrent else 0)
        found.append(all_reduce(constants, tp, host).repeated(summed / pp))
        found += waiting(constants, tp, host, pp)
    elif tp > 1 and model.moe is not None and routed is not None:
        gather = all_gather(constants, tp, host).repeated(model.moe.layers / pp)
        sent = SENT.get(routed.form, 1.0) if host.quantized_gather else 1.0
        found += [gather.repeated(1, sent), gather] if sent < 1.0 else [gather.repeated(2)]
    if pp > 1:
        found.append(Collective(0.0, host.stage_messages / link_rate(constants, host), 0.0, 1.0))
    return tuple(found)


def _attention(
    constants: Constants, host: Runtime, model: Model, deployment: Deployment, parts: int
) -> tuple[tuple[Attention, float], ...]:
    pp, local = deployment.pipeline_parallel, model.window.layers if model.window and host.window_attention else 0
    found = []
    if model.attention_layers > local:
        whole = attention(constants, host, model, deployment.kv_cache, parts, TOP if model.indexer_bytes else float("inf"))
        found.append((whole, (model.attention_layers - local) / pp))
    if model.window is not None and local:
        size, chunked = float(model.window.size), model.window.chunked
        found.append((attention(constants, host, model, deployment.kv_cache, parts, size, chunked), local / pp))
    return tuple(found)


def _experts(constants: Constants, host: Runtime, model: Model, deployment: Deployment) -> Experts | None:
    if model.moe is None:
        return None
    example = next(matrix for matrix in matrices(model) if matrix.group == "experts")
    quantized = is_quantized(example, model, deployment.weights, deployment.keep_high_precision)
    form = deployment.weights if quantized else "bf16"
    tp = deployment.tensor_parallel
    ep = tp if deployment.attention_dp else deployment.expert_parallel
    return experts(constants, host, model, model.moe, form, bits_per_element(form), ep, max(1, tp // ep))


def _gemm(constants: Constants, host: Runtime, model: Model, matrix: Matrix, deployment: Deployment, times: float) -> Gemm:
    part = share(matrix, deployment)
    k = matrix.inputs * (part if matrix.split == "in" else 1.0)
    n = matrix.outputs * (part if matrix.split == "out" else 1.0)
    form = deployment.weights if is_quantized(matrix, model, deployment.weights, deployment.keep_high_precision) else "bf16"
    group_size = model.quantized.group_size if model.quantized else None
    return gemm(constants, host, form, k, n, bits_per_element(form, group_size), times)
