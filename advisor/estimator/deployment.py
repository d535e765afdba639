"""What a deployment would give: memory, TTFT, ITL, throughput, each with its basis and an 80 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from advisor.errors import NotPossible
from advisor.estimator import batching
from advisor.estimator.answer import Case, answer, only_memory, too_large
from advisor.estimator.batching import Steps
from advisor.estimator.constants import Constants, constants_of
from advisor.estimator.drafting import Speculating, draft_weight_bytes, with_draft
from advisor.estimator.engines import Runtime, runtime, runtime_of
from advisor.estimator.first_token import TURNS, FirstToken, Prompts, closed_loop, drained, gathered, open_loop
from advisor.estimator.intervals import Spread, spread_of
from advisor.estimator.memory import Parts, most_sequences, parts, ranks
from advisor.estimator.network import pair_over_pcie
from advisor.estimator.step_time import StepTime, step_time
from advisor.estimator.trtllm_bench import as_built, builds, expected_tokens, running, settings
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Model, Speculation

DEFAULT_TOKENS = 8192
"""tokens per step: TensorRT-LLM 1.x max_num_tokens=8192; vLLM max_num_batched_tokens=8192 on these GPUs"""
DEFAULT_BATCH = 2048
"""sequences per step: TensorRT-LLM max_batch_size=2048"""
CACHED: dict[tuple[object, ...], Prepared] = {}
CACHE_SIZE = 512


@dataclass(frozen=True)
class Prepared:
    """What does not depend on the load."""

    model: Model
    gpu: Gpu
    memory: Parts
    constants: Constants | None
    step: Callable[[], Steps | None]
    """None: the GPU's speed is not known; made when it is asked first, which for a deployment that does not fit it never is"""
    spread: Spread | None
    host: Runtime
    tokens: int
    batch: int
    room: float = 0.0
    """tokens for which a benchmark that captures CUDA graphs expects memory; 0 where none does or it is not known"""


def estimate(model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine | None = None) -> Estimate:
    """Memory, latency and throughput of a deployment under a load.

    load.concurrency and load.rate both None: as many requests as memory holds (offline throughput); load.requests makes
    the run finite. A rate is turned into a concurrency by Little's law at the latency it itself causes.
    Raises NotPossible where no engine could do it; a deployment that does not fit is an Estimate with fits=False.
    """
    engine = engine or Engine()
    ready, deployment, slots = _placed(model, gpu, deployment, load, engine)
    notes: list[str] = []
    memory = ready.memory
    if slots is None:
        notes.append("the memory of this GPU is not known: whether the deployment fits cannot be said")
    elif slots < 1:
        return too_large(memory, load, notes)
    most = None if slots is None else slots * deployment.replicas
    width = deployment.tensor_parallel if deployment.attention_dp else 1
    limit = ready.batch * width
    if slots is not None and slots < limit:
        limit = slots
    if slots is not None and builds(ready.host, deployment, load):
        limit = min(limit, running(slots))
    step = ready.step()
    if step is None:
        notes.append("bandwidth or 16-bit peak of this GPU is not known: times cannot be estimated")
        return only_memory(memory, load, most, limit, notes)
    assert ready.constants is not None and ready.spread is not None
    if pair_over_pcie(ready.constants, deployment.tensor_parallel) and not ready.host.pcie_pair_ms:
        known = runtime("tensorrt-llm", "0.15", "x86").pcie_pair_ms
        notes.append(
            f"two A100 over PCIe waited {known:g} ms a step under TensorRT-LLM 0.15 (fitted on published throughputs); under "
            "this engine and release nobody published any: taken not to wait"
        )
    flow, first = _flow(ready, step, deployment, load, limit, notes)
    case = Case(deployment, load, ready.constants, memory, step, ready.spread)
    return answer(case, flow, first, most, busy_replicas(deployment, load), notes)


class Held(NamedTuple):
    """What memory says of a deployment under a load, without its times; None: the memory of this GPU is not known."""

    most: int | None
    """requests of this length whose cache fits at once, over all replicas; 0: not even one"""
    weight_share: float | None
    """weights of one GPU over its memory"""


def held(model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine) -> Held:
    """As `estimate` has it. Raises NotPossible as `estimate`."""
    ready, deployment, slots = _placed(model, gpu, deployment, load, engine)
    most, memory = None if slots is None else slots * deployment.replicas, ready.memory
    return Held(most, memory.weights / memory.capacity if memory.capacity else None)


def plain_step(model: Model, gpu: Gpu, deployment: Deployment, engine: Engine) -> StepTime | None:
    """The step times of a deployment without speculation; None when the GPU's speed is not known. Raises NotPossible."""
    step = _prepare(model, gpu, deployment, engine).step()
    assert not isinstance(step, Speculating)
    return step


def _placed(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine
) -> tuple[Prepared, Deployment, int | None]:
    """What is known before the load, the deployment as it runs, and how many of the load's sequences one replica holds."""
    ready = _prepare(model, gpu, deployment, engine)
    if builds(ready.host, deployment, load):
        deployment = as_built(model, gpu, deployment, load)
        ready = _prepare(model, gpu, deployment, engine)
    return ready, deployment, most_sequences(ready.memory, load, deployment)


def _prepare(model: Model, gpu: Gpu, deployment: Deployment, engine: Engine) -> Prepared:
    """What does not depend on the load. A draft is put before a plain deployment's steps, of which there are far fewer."""
    key = (
        id(model), id(gpu), deployment.tensor_parallel, deployment.pipeline_parallel, deployment.expert_parallel,
        deployment.attention_dp, deployment.weights, deployment.kv_cache, deployment.max_batch_size,
        deployment.max_num_tokens, deployment.keep_high_precision, _drafts(deployment.speculation), engine.name, engine.version,
        deployment.cuda_graphs,
    )  # fmt: skip
    found = CACHED.get(key)
    if found is not None:  # the entry keeps model and gpu alive, so their ids cannot be taken by others
        if deployment.replicas > 1:
            check_count(gpu, deployment)
        return found
    if deployment.speculation is None:
        made = _plain(model, gpu, deployment, engine)
    else:
        plain = deployment.model_copy(update={"speculation": None})
        made = _drafting(_prepare(model, gpu, plain, engine), model, as_published(model, deployment), deployment.speculation)
    if len(CACHED) >= CACHE_SIZE:
        CACHED.clear()
    CACHED[key] = made
    return made


def _drafts(speculation: Speculation | None) -> tuple[object, ...] | None:
    """What of a speculation a step depends on: not the concurrency at which it is switched off."""
    if speculation is None:
        return None
    return tuple(getattr(speculation, name) for name in Speculation.model_fields if name != "max_concurrency")


def _plain(model: Model, gpu: Gpu, deployment: Deployment, engine: Engine) -> Prepared:
    check(model, gpu, deployment)
    deployment = as_published(model, deployment)
    host = runtime_of(engine, gpu.id)
    tokens = deployment.max_num_tokens or host.tokens
    batch = deployment.max_batch_size or host.batch
    constants = constants_of(gpu)
    spread = None if constants is None else spread_of(model, constants, deployment.weights, engine)
    step = cache(lambda: None if constants is None else step_time(constants, model, deployment, engine))
    memory = parts(model, gpu, deployment, engine, tokens, batch)
    known = host.pads and model.mla is None and gpu.memory_gib is not None
    room = expected_tokens(model, gpu.memory_gib or 0.0, deployment) if known else 0.0
    return Prepared(model, gpu, memory, constants, step, spread, host, tokens, batch, room)


def _drafting(plain: Prepared, model: Model, deployment: Deployment, speculation: Speculation) -> Prepared:
    """With the draft's weights, cut as the model's are; its cache is small and not counted."""
    undrafted = plain.step()
    assert not isinstance(undrafted, Speculating)
    step = None if undrafted is None else with_draft(undrafted, model, deployment.weights, speculation)
    draft, memory = draft_weight_bytes(model, speculation) / ranks(deployment), plain.memory
    cache = None if memory.cache is None else memory.cache - draft
    return replace(plain, step=lambda: step, memory=replace(memory, weights=memory.weights + draft, cache=cache))


def busy_replicas(deployment: Deployment, load: Load) -> int:
    """Replicas that have work: fewer requests than replicas leave some idle."""
    if load.concurrency is None or deployment.replicas == 1:
        return deployment.replicas
    return max(1, min(deployment.replicas, math.ceil(load.concurrency)))


def as_published(model: Model, deployment: Deployment) -> Deployment:
    """FP8 of a model whose own checkpoint has FP8 block scales means that checkpoint: its weights are not quantized again."""
    if deployment.weights == "fp8" and model.quantized is not None and model.quantized.weights == "fp8_block":
        return deployment.model_copy(update={"weights": "fp8_block"})
    return deployment


def check(model: Model, gpu: Gpu, deployment: Deployment) -> None:
    """Raise NotPossible for a deployment that cannot exist."""
    tp, pp, ep = deployment.tensor_parallel, deployment.pipeline_parallel, deployment.expert_parallel
    if min(tp, pp, ep, deployment.replicas) < 1:
        raise NotPossible("parallel sizes and replicas are at least 1", where="tensor_parallel, pipeline_parallel, ...")
    if pp > model.layers:
        raise NotPossible(
            f"{pp} pipeline stages for {model.layers} layers", where="pipeline_parallel", hint=f"at most {model.layers}"
        )
    if not deployment.attention_dp and model.attention_layers and model.heads % tp:
        raise NotPossible(
            f"{model.heads} attention heads cannot be divided over {tp} GPUs",
            where="tensor_parallel",
            hint=f"use a divisor of {model.heads}",
        )
    if ep > 1 and model.moe is None:
        raise NotPossible("expert parallelism without experts", where="expert_parallel", hint="use tensor parallelism")
    if ep > 1 and tp % ep:
        raise NotPossible(
            f"{ep} expert-parallel ranks do not divide the {tp} ranks of a stage",
            where="expert_parallel",
            hint="expert_parallel divides tensor_parallel",
        )
    if model.moe is not None and ep > model.moe.experts:
        raise NotPossible(f"{ep} ranks for {model.moe.experts} experts", where="expert_parallel")
    check_count(gpu, deployment)


def check_count(gpu: Gpu, deployment: Deployment) -> None:
    """Raise NotPossible for more replicas than the GPUs hold: the one limit that what _prepare keeps says nothing of."""
    if ranks(deployment) * deployment.replicas > gpu.count > 1:
        raise NotPossible(
            f"{ranks(deployment) * deployment.replicas} GPUs are needed, {gpu.count} are there",
            where="tensor_parallel x pipeline_parallel x replicas",
            hint="lower one of them",
        )


def _flow(
    ready: Prepared, step: Steps, deployment: Deployment, load: Load, limit: int, notes: list[str]
) -> tuple[batching.Flow, FirstToken | None]:
    """The steady state of one replica and its TTFT by cause; None when no mean exists (saturated)."""
    replicas, tokens, request = busy_replicas(deployment, load), ready.tokens, ready.host.request_ms * 1e-3
    isl = load.isl * (1 - load.shared_prefix) if deployment.prefix_reuse else load.isl
    isl, osl = isl if isl > 1.0 else 1.0, load.osl if load.osl > 1.0 else 1.0
    if deployment.batching == "static":
        sequences = min(limit, (load.concurrency or limit * replicas) / replicas)
        idle = batching.static_idle_share(load, sequences)
        if not load.lengths:
            notes.append("static batching: all outputs taken to be equally long, so no idle slots are counted")
        flow = batching.static(step, sequences, isl, osl, tokens, idle)
        return flow, FirstToken(request, flow.first_token, 0.0, 0.0, 0.0)
    if load.rate is not None:
        if load.requests is not None:
            limit = min(limit, math.ceil(load.requests / replicas))
        return _at_rate(step, load, replicas, limit, isl, osl, tokens, request, notes)
    if load.concurrency is not None:
        wanted = load.concurrency / replicas
        turns = load.requests / load.concurrency if load.requests else TURNS
        abreast = max(1.0, tokens // isl) if deployment.max_num_tokens is not None else 1.0
        wait = 0 if deployment.attention_dp else deployment.batch_wait_steps
        prompts = Prompts(isl, osl, tokens, abreast, wait, deployment.batch_wait_fill, deployment.poll_steps)
        sequences = max(1.0, min(float(limit), wanted))
        flow = batching.in_flight(step, sequences, isl, osl, tokens, together=gathered(prompts, sequences / osl)[1])
        first = closed_loop(step, flow, flow.sequences, prompts, request, turns)
        if wanted > limit:
            slot = (wanted - limit) * osl / flow.tokens_per_s * drained(limit / wanted, turns)
            notes.append(f"{wanted:g} requests want a slot, {limit} fit: each waits {slot * 1e3:,.0f} ms for one")
            first = first._replace(slot=slot)
        notes.append(
            f"TTFT: {wanted:g} at a time in a closed loop, {turns:g} requests each: {first.prefill * 1e3:,.0f} ms prefill, "
            f"{first.waiting * 1e3:,.0f} ms behind other prompts, {first.burst * 1e3:,.0f} ms from all starting at once, "
            f"{first.request * 1e3:,.0f} ms handling"
        )
        return flow, first
    if load.requests is not None:
        largest, tokens = _benchmarked(ready, deployment, isl, osl)
        flow = batching.run(step, float(limit), load.requests / replicas, isl, osl, tokens, largest)
        notes.append(f"offline: a run of {load.requests} requests, the last of which fill only some of the slots")
    else:
        flow = batching.in_flight(step, float(limit), isl, osl, tokens)
    notes.append("offline: TTFT is that of a request once it has a slot")
    return flow, open_loop(step, flow, request)


def _benchmarked(ready: Prepared, deployment: Deployment, isl: float, osl: float) -> tuple[int, int]:
    """The batch for which an offline run captures CUDA graphs, 0 where that is not known, and the tokens of its steps."""
    if not ready.room:
        return 0, ready.tokens
    largest, fewer = settings(ready.room, deployment.pipeline_parallel, isl, osl)
    if deployment.attention_dp or deployment.max_num_tokens is not None:
        return largest, ready.tokens
    return largest, fewer if fewer > isl else math.ceil(isl)


def _at_rate(
    step: Steps, load: Load, replicas: int, limit: int, isl: float, osl: float, tokens: int, request: float, notes: list[str]
) -> tuple[batching.Flow, FirstToken | None]:
    """Requests arriving at a rate: the concurrency whose latency x rate is itself (Little's law), by bisection.

    Beyond what is achievable an endless run has no mean; in a finite one requests that find no slot wait for those before them.
    """
    assert load.rate is not None
    rate = load.rate / replicas
    top = batching.in_flight(step, float(limit), isl, osl, tokens)
    best = top.tokens_per_s / osl
    if rate >= best:
        said = f"saturated: at most {best:.2f} requests/s per replica are achievable, {rate:g} arrive"
        if load.requests is None:
            notes.append(f"{said}; queues grow without bound")
            return top, None
        wait = max(0.0, load.requests / replicas - limit) / 2 * (1 / best - 1 / rate)
        notes.append(f"{said}; of {load.requests} requests in all each waits {wait * 1e3:,.0f} ms for a slot on average")
        mean = batching.filling(step, rate, load.requests / replicas, limit, isl, osl, tokens)
        flow = batching.in_flight(step, max(mean, 1e-3), isl, osl, tokens, top.alone)
        return flow._replace(tokens_per_s=top.tokens_per_s), open_loop(step, flow, request)._replace(slot=wait)
    low, high = 0.0, float(limit)
    for _ in range(20):
        middle = (low + high) / 2
        flow = batching.in_flight(step, max(middle, 1e-3), isl, osl, tokens, top.alone)
        if rate * (flow.first_token + osl * flow.seconds_per_token) > middle:
            low = middle
        else:
            high = middle
    if load.requests is not None:
        high = min(high, batching.filling(step, rate, load.requests / replicas, limit, isl, osl, tokens))
    flow = batching.in_flight(step, max(high, 1e-3), isl, osl, tokens, top.alone)
    first = open_loop(step, flow, request)
    notes.append(
        f"TTFT: Poisson arrivals: {first.prefill * 1e3:,.0f} ms prefill, {first.waiting * 1e3:,.0f} ms behind the step under "
        f"way and other prompts (M/D/1), {first.request * 1e3:,.0f} ms handling"
    )
    return flow._replace(tokens_per_s=rate * osl), first
