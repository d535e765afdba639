"""At what value of which fact another plan would win: each fact is moved alone, and the rules are asked again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from advisor.reasoner.choice import Tried
from advisor.reasoner.rejection import describe
from advisor.types import Deployment, Flip, Lengths, Loss, Profile

Decide = Callable[[Profile], tuple[Tried, bool] | None]
BUDGET = "goal.accuracy_budget_pct"
STEPWISE = ("gpu.count", BUDGET)
FRACTIONAL = ("gpu.memory_gib", "traffic.rate")
NOTHING = "no plan keeps every limit"


class Movement(NamedTuple):
    """One fact to be moved in one direction."""

    fact: str
    now: float | None
    values: list[float]
    """from near to far"""
    moved: Callable[[float], Profile]


def find_flips(profile: Profile, chosen: Deployment, loss: Loss | None, decide: Decide) -> tuple[Flip, ...]:
    """The nearest flip of each fact in each direction; `decide` chooses for a moved profile.

    loss: what the chosen plan is expected to lose; an accuracy budget below it would rule the plan out.
    """
    found = (_first_flip(movement, chosen, decide) for movement in _movements(profile, loss))
    return tuple(flip for flip in found if flip is not None)


def _movements(profile: Profile, loss: Loss | None) -> Iterator[Movement]:
    traffic, gpu = profile.traffic, profile.gpu
    if traffic.concurrency is not None:
        moved = partial(_at_concurrency, profile)
        yield Movement("traffic.concurrency", traffic.concurrency, _down(traffic.concurrency, 1), moved)
        yield Movement("traffic.concurrency", traffic.concurrency, _up(traffic.concurrency, 1024), moved)
    elif traffic.rate is not None:
        moved = partial(_at_rate, profile)
        yield Movement("traffic.rate", traffic.rate, [traffic.rate / 4, traffic.rate / 16], moved)
        yield Movement("traffic.rate", traffic.rate, [traffic.rate * 4, traffic.rate * 16], moved)
    longest = profile.model.max_context or 131072
    for name, other in (("isl", traffic.osl.mean), ("osl", traffic.isl.mean)):
        mean = getattr(traffic, name).mean
        moved = partial(_at_length, profile, name)
        yield Movement(f"traffic.{name}_mean", mean, _down(mean, 16), moved)
        yield Movement(f"traffic.{name}_mean", mean, _up(mean, longest - other), moved)
    moved = partial(_at_gpu_count, profile)
    yield Movement("gpu.count", gpu.count, [float(count) for count in (8, 4, 2, 1) if count < gpu.count], moved)
    yield Movement("gpu.count", gpu.count, [float(count) for count in (1, 2, 4, 8) if count > gpu.count], moved)
    if gpu.memory_gib is not None:
        moved = partial(_at_memory, profile)
        yield Movement("gpu.memory_gib", gpu.memory_gib, [gpu.memory_gib * 0.75, gpu.memory_gib * 0.5], moved)
        yield Movement("gpu.memory_gib", gpu.memory_gib, [gpu.memory_gib * 1.5, gpu.memory_gib * 2.4], moved)
    if loss is not None and loss.low_pct > 0:
        yield Movement(BUDGET, profile.goal.accuracy_budget_pct, [_below(loss.low_pct)], partial(_at_budget, profile))


def _first_flip(movement: Movement, chosen: Deployment, decide: Decide) -> Flip | None:
    last = movement.now
    for value in movement.values:
        then = _other(movement, value, chosen, decide)
        if then is not None:
            at = value
            if last is not None and movement.fact not in STEPWISE:
                at, then = _bisect(movement, last, value, then, chosen, decide)
            now = None if movement.now is None else _rounded(movement.now)
            return Flip(fact=movement.fact, now=now, at=_rounded(at, away_from=movement.now), then=then)
        last = value
    return None


def _other(movement: Movement, value: float, chosen: Deployment, decide: Decide) -> str | None:
    """What is done at this value where it is not the chosen plan."""
    found = decide(movement.moved(value))
    if found is None:
        return None
    other, feasible = found[0].deployment, found[1]
    if not feasible:
        return NOTHING
    return None if _signature(other, movement.fact) == _signature(chosen, movement.fact) else describe(other)


def _bisect(
    movement: Movement, same: float, changed: float, then: str, chosen: Deployment, decide: Decide
) -> tuple[float, str]:
    """The boundary between a value with the same plan and one with another, to about 5 %."""
    whole = movement.fact not in FRACTIONAL
    while abs(changed / same - 1) > 0.05 and not (whole and abs(changed - same) <= 1):
        middle = (same * changed) ** 0.5
        middle = float(round(middle)) if whole else middle
        if middle in (same, changed):
            break
        other = _other(movement, middle, chosen, decide)
        if other is None:
            same = middle
        else:
            changed, then = middle, other
    return changed, then


def _signature(deployment: Deployment, fact: str) -> tuple[object, ...]:
    """What makes two plans different; a plan for another number of GPUs is spread differently anyhow."""
    method = deployment.speculation.method if deployment.speculation else None
    spread = () if fact == "gpu.count" else (deployment.tensor_parallel, deployment.expert_parallel, deployment.attention_dp)
    return deployment.weights, deployment.kv_cache, method, deployment.batching, spread


def _down(now: float, least: float) -> list[float]:
    return sorted({max(least, round(now / factor)) for factor in (4, 16, 256) if now > least} - {now}, reverse=True)


def _up(now: float, most: float) -> list[float]:
    return sorted({min(most, round(now * factor)) for factor in (4, 16) if now < most} - {now})


def _at_concurrency(profile: Profile, value: float) -> Profile:
    return profile.model_copy(update={"traffic": profile.traffic.model_copy(update={"rate": None, "concurrency": value})})


def _at_rate(profile: Profile, value: float) -> Profile:
    return profile.model_copy(update={"traffic": profile.traffic.model_copy(update={"rate": value})})


def _at_length(profile: Profile, name: str, mean: float) -> Profile:
    factor = mean / getattr(profile.traffic, name).mean
    lengths: Lengths = getattr(profile.traffic, name)
    scaled = Lengths(**{key: value * factor for key, value in lengths.model_dump().items()})
    inputs, outputs = (factor, 1.0) if name == "isl" else (1.0, factor)
    sample = tuple((max(1, round(isl * inputs)), max(1, round(osl * outputs))) for isl, osl in profile.traffic.lengths)
    return profile.model_copy(update={"traffic": profile.traffic.model_copy(update={name: scaled, "lengths": sample})})


def _at_gpu_count(profile: Profile, value: float) -> Profile:
    return profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"count": int(value)})})


def _at_memory(profile: Profile, value: float) -> Profile:
    return profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"memory_gib": value})})


def _at_budget(profile: Profile, value: float) -> Profile:
    return profile.model_copy(update={"goal": profile.goal.model_copy(update={"accuracy_budget_pct": value})})


def _below(value: float) -> float:
    """The next lower number of three significant figures, so that the budget as printed rules the plan out."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{(math.ceil(value / step) - 1) * step:.3g}")


def _rounded(value: float, *, away_from: float | None = None) -> float:
    """Three figures, or whole from 1000 on; a flip is rounded away from today's value, so that the plan has changed there."""
    step = 1.0 if value >= 1000 or value == 0 else 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    if away_from is None or value == away_from:
        return float(f"{round(value / step) * step:.12g}")
    whole = math.ceil(value / step - 1e-9) if value > away_from else math.floor(value / step + 1e-9)
    return float(f"{whole * step:.12g}")
