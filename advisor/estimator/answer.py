"""From the steady state of one replica to the Estimate: memory by part, totals, what bounds each phase, basis and intervals."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple, TypeVar

from advisor.estimator.batching import Flow, Steps
from advisor.estimator.constants import Constants
from advisor.estimator.drafting import Speculating
from advisor.estimator.first_token import FirstToken
from advisor.estimator.intervals import Spread, ranges
from advisor.estimator.memory import GIB, Parts, ranks, sequence_bytes
from advisor.estimator.step_time import StepParts, StepTime
from advisor.types import Basis, Bound, BoundBy, Deployment, Estimate, Load, Memory, Value

Some = TypeVar("Some", bound=Value)
_set = object.__setattr__
MEMORY_BASIS: dict[str, Basis] = {"memory_gib": "arithmetic", "max_concurrency": "arithmetic"}
SATURATED_BASIS: dict[str, Basis] = {
    **MEMORY_BASIS, "itl_ms": "published", "output_tokens_per_s": "published", "output_tokens_per_s_per_gpu": "published",
}  # fmt: skip
BASIS: dict[str, Basis] = {**SATURATED_BASIS, "ttft_ms": "published", "request_latency_ms": "published"}
BOUNDS: tuple[Bound, ...] = ("compute", "memory", "network", "overhead")


class Case(NamedTuple):
    """What was asked, with what is known of it."""

    deployment: Deployment
    load: Load
    constants: Constants
    memory: Parts
    step: Steps
    spread: Spread


def made(kind: type[Some], fields: dict[str, Any]) -> Some:
    """A value from fields that are known to be right, all of them given: what model_construct does, in a sixth of its time."""
    value = kind.__new__(kind)
    _set(value, "__dict__", fields)
    _set(value, "__pydantic_fields_set__", _names(kind))
    _set(value, "__pydantic_extra__", None)
    _set(value, "__pydantic_private__", None)
    return value


@cache
def _names(kind: type[Value]) -> set[str]:
    return set(kind.model_fields)


BOUND_BY = {(p, d): made(BoundBy, {"prefill": p, "decode": d}) for p in BOUNDS for d in BOUNDS}
NOTHING: dict[str, Any] = {
    "memory_gib": None, "fits": False, "max_concurrency": None, "ttft_ms": None, "itl_ms": None, "output_tokens_per_s": None,
    "output_tokens_per_s_per_gpu": None, "request_latency_ms": None, "concurrency": None, "bound_by": None, "basis": {},
    "range": {}, "loss": None, "notes": (),
}  # fmt: skip
"""every field of Estimate, in its order; tests hold it to the type"""


def memory_of(memory: Parts, load: Load, sequences: float) -> Memory:
    """GiB of one GPU by part, with the cache of `sequences` sequences."""
    kept = sequence_bytes(memory, load.isl + load.osl) * sequences
    if memory.cache is not None and 0 < memory.cache < kept:
        kept = memory.cache
    total = memory.weights + memory.activations + memory.runtime + kept
    return made(
        Memory,
        {
            "weights": memory.weights / GIB,
            "kv_cache": kept / GIB,
            "activations": memory.activations / GIB,
            "runtime": memory.runtime / GIB,
            "total": total / GIB,
            "capacity": memory.capacity / GIB if memory.capacity is not None else math.nan,
        },
    )


def too_large(memory: Parts, load: Load, notes: list[str]) -> Estimate:
    """The estimate of what does not fit, with by how much."""
    assert memory.cache is not None
    missing = sequence_bytes(memory, load.isl + load.osl) - memory.cache
    what = "the weights do not fit" if memory.cache < 0 else "the weights fit, but not the cache of one request"
    notes.append(f"{what}: {missing / GIB:,.1f} GiB per GPU are missing")
    known = {"memory_gib": memory_of(memory, load, 1.0), "max_concurrency": 0, "basis": MEMORY_BASIS, "notes": tuple(notes)}
    return made(Estimate, {**NOTHING, **known})


def only_memory(memory: Parts, load: Load, most: int | None, limit: int, notes: list[str]) -> Estimate:
    """The estimate for a GPU whose speed is not known."""
    known = {
        "memory_gib": memory_of(memory, load, min(limit, load.concurrency or limit)),
        "fits": memory.cache is not None,
        "max_concurrency": most,
        "basis": MEMORY_BASIS,
        "notes": tuple(notes),
    }
    return made(Estimate, {**NOTHING, **known})


def answer(case: Case, flow: Flow, first: FirstToken | None, most: int | None, replicas: int, notes: list[str]) -> Estimate:
    """The whole Estimate of `replicas` replicas that work, each in the steady state `flow`."""
    deployment, load, constants, memory, step, spread = case
    ttft = None if first is None else first.seconds * 1e3
    itl = flow.seconds_per_token * 1e3
    rate, gpus = flow.tokens_per_s * replicas, ranks(deployment) * deployment.replicas
    if not constants.fitted:
        notes.append(f"no measurements of this GPU: constants of {constants.gpu} with this GPU's own peaks")
    figures = {"itl_ms": itl, "output_tokens_per_s": rate, "output_tokens_per_s_per_gpu": rate / gpus}
    latency = None
    if ttft is not None:
        latency = ttft + (load.osl - 1 if load.osl > 1 else 0) * itl
        figures["ttft_ms"], figures["request_latency_ms"] = ttft, latency
    return made(
        Estimate,
        {
            "memory_gib": memory_of(memory, load, math.ceil(flow.sequences / step.width)),
            "fits": memory.cache is not None,
            "max_concurrency": most,
            "ttft_ms": ttft,
            "itl_ms": itl,
            "output_tokens_per_s": rate,
            "output_tokens_per_s_per_gpu": figures["output_tokens_per_s_per_gpu"],
            "request_latency_ms": latency,
            "concurrency": flow.sequences * replicas,
            "bound_by": _bounds(step, flow),
            "basis": SATURATED_BASIS if ttft is None else BASIS,
            "range": ranges(figures, spread, load),
            "loss": None,
            "notes": tuple(notes),
        },
    )


def _bounds(step: Steps, flow: Flow) -> BoundBy:
    times = step.plain if isinstance(step, Speculating) else step
    drafted = step.draft_len + 1 if isinstance(step, Speculating) else 1
    decoded, prompt = flow.decoding / step.stages * drafted, flow.prompt
    return BOUND_BY[
        _bound(flow.alone.parts, _multiplies(times, prompt * step.width, prompt)),
        _bound(flow.plain.parts, _multiplies(times, decoded, decoded / step.width)),
    ]


def _multiplies(step: StepTime, tokens: float, rows: float) -> bool:
    """Whether the multiplications of a step of so many tokens wait for arithmetic rather than for weights."""
    if step.moe is not None:
        return step.moe.is_compute_bound(tokens)
    return step.first.is_compute_bound(rows)


def _bound(part: StepParts, multiplies: bool) -> Bound:
    """What the largest share of the step waits for."""
    gemm, attention, experts, network, _, host = part
    work = gemm + experts
    whole = work + attention
    if network >= whole and network >= host:
        return "network"
    if host >= whole and host >= network:
        return "overhead"
    return "compute" if multiplies and work >= 0.5 * whole else "memory"
