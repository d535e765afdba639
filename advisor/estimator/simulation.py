"""A discrete-event simulation of a deployment: percentiles, queues, KV use, preemptions; in flight or in static batches."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from advisor.errors import NotPossible
from advisor.estimator.arrivals import Request, drawn
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import busy_replicas, check
from advisor.estimator.drafting import Speculating, draft_weight_bytes, speculating
from advisor.estimator.engines import runtime_of
from advisor.estimator.inflight import InFlight
from advisor.estimator.memory import most_sequences, parts, ranks, sequence_bytes
from advisor.estimator.replica import Outcome, Server, Step, StepCosts, share, shared_tokens, takes
from advisor.estimator.step_time import step_time
from advisor.estimator.trtllm_bench import as_built, builds, running
from advisor.types import Deployment, Engine, Gpu, Load, Model, Percentiles, Simulated

COUNT = 2000
TURNS = 20
"""requests that are drawn when the load names no number of its own: at least COUNT, and so many for each user of a closed
loop, so that the start, when all users ask at once, does not rule the percentiles"""


def simulate(
    model: Model,
    gpu: Gpu,
    deployment: Deployment,
    load: Load,
    engine: Engine | None = None,
    *,
    requests: Sequence[Request] | None = None,
    seed: int = 0,
) -> Simulated:
    """Simulate one replica of a deployment and scale throughput to all of them.

    requests: a trace (arrivals.from_trace), dealt to the replicas in turn. Without one, load.requests requests (none named:
    COUNT or more) with lengths drawn from load.lengths (or all of the mean length) arrive at load.rate as a Poisson process;
    without a rate load.concurrency users ask again as soon as they are answered; without either all are there at the start.

    Raises NotPossible when the weights leave no room for a cache or the GPU's speed is not known.
    """
    engine = engine or Engine()
    step, server = _replica(model, gpu, deployment, load, engine)
    users = None
    replicas = busy_replicas(deployment, load) if requests is None and load.rate is None else deployment.replicas
    if requests is None:
        lengths = load.lengths or ((round(load.isl), round(load.osl)),)
        if load.rate is None and load.concurrency is not None:
            users = max(1, round(load.concurrency / replicas))
        count = math.ceil(load.requests / replicas) if load.requests else max(COUNT, TURNS * (users or 0))
        requests = drawn(lengths, count, rate=load.rate / replicas if load.rate is not None else None, seed=seed)
    else:
        requests = requests[::replicas]
    handling = runtime_of(engine, gpu.id).request_ms * 1e-3
    return replay(requests, step, server, concurrency=users, replicas=replicas, handling=handling)


def _replica(model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine) -> tuple[Step, Server]:
    """What one replica's steps cost, and how it is set up."""
    check(model, gpu, deployment)
    constants = constants_of(gpu)
    if constants is None:
        raise NotPossible(
            "bandwidth or 16-bit peak of this GPU is not known: times cannot be simulated",
            where=gpu.name,
            hint="name a known GPU",
        )
    host = runtime_of(engine, gpu.id)
    built = builds(host, deployment, load)
    if built:
        deployment = as_built(model, gpu, deployment, load)
    tokens, slots = deployment.max_num_tokens or host.tokens, deployment.max_batch_size or host.batch
    width = deployment.tensor_parallel if deployment.attention_dp else 1
    step = speculating(step_time(constants, model, deployment, engine), model, deployment)
    memory = parts(model, gpu, deployment, engine, tokens, slots)
    cache = memory.cache
    if cache is not None and deployment.speculation is not None:
        cache -= draft_weight_bytes(model, deployment.speculation) / ranks(deployment)
    if cache is not None and cache <= 0:
        raise NotPossible("the weights leave no room for the KV cache", where=gpu.name, hint="more GPUs or fewer bits")
    if built and (fit := most_sequences(memory, load, deployment)) is not None:
        slots = min(slots, running(fit))
    whole = cache * width if cache is not None else None
    server = Server(
        slots=slots * width,
        budget=tokens * width,
        batching=deployment.batching,
        chunked=deployment.chunked_prefill,
        evicts=deployment.scheduler_policy == "max_utilization",
        cache_share=None if whole is None else (lambda length: sequence_bytes(memory, length) / whole),
        shared_prefix=load.shared_prefix if deployment.prefix_reuse else 0.0,
        tokens_per_step=step.tokens if isinstance(step, Speculating) else 1.0,
        rows=step.draft_len + 1 if isinstance(step, Speculating) else 1,
        wait_steps=0 if deployment.attention_dp else deployment.batch_wait_steps,
        wait_fill=deployment.batch_wait_fill,
        poll_steps=deployment.poll_steps,
    )
    return step.whole if isinstance(step, Speculating) else step.step, server


def replay(
    requests: Sequence[Request],
    step: Step,
    server: Server,
    *,
    concurrency: int | None = None,
    replicas: int = 1,
    handling: float = 0.0,
) -> Simulated:
    """Serve `requests` on one replica. concurrency: a closed loop of so many users, arrival times not used.

    The result depends on nothing but the arguments. Requests must be in order of arrival. replicas: throughput and
    concurrency are scaled to so many replicas, each with requests of its own. handling: seconds of HTTP, tokenisation and
    scheduling that each request spends outside of the steps and of the queue for them.
    """
    costs = StepCosts(step)
    if server.batching == "static":
        outcome = static(requests, costs, server, concurrency)
    else:
        outcome = InFlight(requests, costs, server, concurrency).run()
    return summary(outcome, replicas, handling, closed=concurrency is not None)


def summary(outcome: Outcome, replicas: int = 1, handling: float = 0.0, *, closed: bool = False) -> Simulated:
    """Percentiles and shares of what happened; ms. closed: the users of a closed loop are always in the system."""
    served = [index for index in outcome.ended if index in outcome.first]
    requests, arrived = outcome.requests, outcome.arrived
    start = min((arrived[index] for index in served), default=0.0)
    seconds = max((outcome.ended[index] for index in served), default=0.0) - start
    each = [
        (1e3 * (outcome.first[i] - arrived[i] + handling), 1e3 * (outcome.ended[i] - arrived[i] + handling)) for i in served
    ]
    whole = seconds or math.inf
    notes = []
    if outcome.refused:
        notes.append(
            f"{len(outcome.refused)} of {len(requests)} requests are refused: longer than max_num_tokens without chunked "
            "prefill, or than the whole KV cache"
        )
    return Simulated(
        requests=len(served),
        refused=len(outcome.refused),
        seconds=seconds,
        ttft_ms=percentiles([(ttft, 1.0) for ttft, _ in each]),
        itl_ms=percentiles([(1e3 * gap, count) for gap, count in outcome.gaps.items()]),
        latency_ms=percentiles([(latency, 1.0) for _, latency in each]),
        queue_ms=percentiles([(1e3 * (outcome.started[i] - arrived[i]), 1.0) for i in served]),
        output_tokens_per_s=replicas * sum(requests[i].osl for i in served) / whole,
        requests_per_s=replicas * len(served) / whole,
        concurrency=replicas * (outcome.present + (0.0 if closed else handling * len(served))) / whole,
        batch=outcome.batch_time / outcome.busy if outcome.busy else 0.0,
        busy_share=min(1.0, outcome.busy / whole),
        idle_share=outcome.idle_steps / outcome.slot_steps if outcome.slot_steps else 0.0,
        queue_peak=outcome.queue_peak,
        kv_share=outcome.held_time / whole,
        kv_peak=outcome.held_peak,
        preemptions=outcome.preemptions,
        notes=tuple(notes),
    )


def percentiles(weighted: Sequence[tuple[float, float]]) -> Percentiles:
    """Mean and percentiles of (value, weight) pairs: the least value that at least that share of the weight does not exceed."""
    ordered = sorted(pair for pair in weighted if pair[1] > 0)
    total = sum(weight for _, weight in ordered)
    if not ordered:
        return Percentiles(mean=0.0, p50=0.0, p90=0.0, p95=0.0, p99=0.0, max=0.0)
    found, below, place = [], 0.0, 0
    for target in (0.5, 0.9, 0.95, 0.99):
        while place < len(ordered) - 1 and below + ordered[place][1] < target * total * (1 - 1e-12):
            below += ordered[place][1]
            place += 1
        found.append(ordered[place][0])
    mean = sum(value * weight for value, weight in ordered) / total
    return Percentiles(mean=mean, p50=found[0], p90=found[1], p95=found[2], p99=found[3], max=ordered[-1][0])


def static(requests: Sequence[Request], costs: StepCosts, server: Server, concurrency: int | None) -> Outcome:
    """Static batching of one replica: as many requests as wait and fit are prefilled, then decoded until the longest ends."""
    outcome = Outcome(requests)
    now, following, ended = 0.0, 0, 0
    waiting: deque[int] = deque()
    gain = server.tokens_per_step
    while True:
        while following < len(requests):
            arrival = requests[following].arrival if concurrency is None else 0.0
            if arrival > now or (concurrency is not None and following - ended >= concurrency):
                break
            if takes(server, requests[following]):
                outcome.arrived[following] = arrival if concurrency is None else now
                outcome.present += now - outcome.arrived[following]
                waiting.append(following)
            else:
                outcome.refused.append(following)
                ended += 1
            following += 1
        outcome.queue_peak = max(outcome.queue_peak, len(waiting))
        if not waiting:
            if following >= len(requests):
                return outcome
            now = requests[following].arrival
            continue
        batch: list[int] = []
        held = 0.0
        while waiting and len(batch) < server.slots:
            request = requests[waiting[0]]
            at_end = share(server, request.isl + request.osl)
            if batch and held + at_end > 1.0:
                break
            held += at_end
            batch.append(waiting.popleft())
        began = now
        for prompts in _rounds(batch, requests, server):
            work = sum(tokens for _, tokens in prompts)
            now += costs.mixed(0, 1.0, work, sum(tokens**2 for _, tokens in prompts) / work)
            for index, _ in prompts:
                outcome.started[index], outcome.first[index] = began, now
        context = sum(requests[index].isl for index in batch) / len(batch) + 1.0
        step, useful = 0, 0
        for index in sorted(batch, key=lambda index: requests[index].osl):
            last = math.ceil((requests[index].osl - 1) / gain)
            steps = last - step
            seconds = costs.decode(len(batch), context + (steps - 1) * gain / 2)
            outcome.gap(seconds / gain, steps * gain * sum(requests[other].osl - 1 > step * gain for other in batch))
            now += steps * seconds
            context += steps * gain
            step, useful = last, useful + last
            outcome.ended[index] = now
        ended += len(batch)
        outcome.present += sum(outcome.ended[index] - began for index in batch) + (now - began) * len(waiting)
        outcome.busy += now - began
        outcome.batch_time += (now - began) * len(batch)
        outcome.held_time += (now - began) * held
        outcome.held_peak = max(outcome.held_peak, held)
        outcome.slot_steps += step * len(batch)
        outcome.idle_steps += step * len(batch) - useful


def _rounds(batch: Sequence[int], requests: Sequence[Request], server: Server) -> list[list[tuple[int, int]]]:
    """The prompts of a static batch in steps of at most `budget` tokens: (request, tokens) of each step."""
    rounds: list[list[tuple[int, int]]] = []
    room = 0
    for index in batch:
        tokens = requests[index].isl - shared_tokens(server, requests[index])
        if tokens > room or not rounds:
            rounds.append([])
            room = server.budget
        rounds[-1].append((index, tokens))
        room -= tokens
    return rounds
