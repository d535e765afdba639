"""At what value of which fact another plan would win: each fact is moved alone, and the rules are asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from advisor.reasoner.rejection import describe
from advisor.types import Deployment, Flip, Lengths, Profile

Decide = Callable[[Profile], Deployment | None]


def find_flips(profile: Profile, chosen: Deployment, decide: Decide) -> tuple[Flip, ...]:
    """The nearest flip of each fact in each direction; `decide` gives the deployment chosen for a moved profile."""
    found = []
    for fact, now, values, moved in _movements(profile):
        flip = _first_flip(fact, now, values, moved, chosen, decide)
        if flip is not None:
            found.append(flip)
    return tuple(found)


Moved = Callable[[float], Profile]


def _movements(profile: Profile) -> Iterator[tuple[str, float, list[float], Moved]]:
    """(fact, its value, values to try from near to far, how to move the profile there)."""
    traffic, gpu = profile.traffic, profile.gpu
    if traffic.concurrency is not None:
        now = traffic.concurrency
        yield "traffic.concurrency", now, _down(now, 1), lambda value: _traffic(profile, concurrency=value)
        yield "traffic.concurrency", now, _up(now, 1024), lambda value: _traffic(profile, concurrency=value)
    longest = profile.model.max_context or 131072
    for name in ("isl", "osl"):
        mean = getattr(traffic, name).mean
        other = (traffic.osl if name == "isl" else traffic.isl).mean
        yield f"traffic.{name}_mean", mean, _down(mean, 16), lambda value, name=name: _length(profile, name, value)
        yield f"traffic.{name}_mean", mean, _up(mean, longest - other), lambda value, name=name: _length(profile, name, value)
    counts = [float(count) for count in (1, 2, 4, 8) if count != gpu.count]
    yield (
        "gpu.count",
        gpu.count,
        sorted((c for c in counts if c < gpu.count), reverse=True),
        lambda v: _gpu(profile, count=int(v)),
    )
    yield "gpu.count", gpu.count, [c for c in counts if c > gpu.count], lambda value: _gpu(profile, count=int(value))
    if gpu.memory_gib is not None:
        memory = gpu.memory_gib
        yield "gpu.memory_gib", memory, [memory * 0.75, memory * 0.5], lambda value: _gpu(profile, memory_gib=value)
        yield "gpu.memory_gib", memory, [memory * 1.5, memory * 2.4], lambda value: _gpu(profile, memory_gib=value)


def _first_flip(fact: str, now: float, values: list[float], moved: Moved, chosen: Deployment, decide: Decide) -> Flip | None:
    last = now
    for value in values:
        other = decide(moved(value))
        if other is not None and _signature(other, fact) != _signature(chosen, fact):
            at, then = (value, other) if fact == "gpu.count" else _bisect(fact, last, value, other, moved, chosen, decide)
            return Flip(fact=fact, now=_rounded(now), at=_rounded(at), then=describe(then))
        last = value
    return None


def _bisect(
    fact: str, same: float, changed: float, then: Deployment, moved: Moved, chosen: Deployment, decide: Decide
) -> tuple[float, Deployment]:
    """The boundary between a value with the same plan and one with another, to about 5 %."""
    whole = fact != "gpu.memory_gib"
    while abs(changed / same - 1) > 0.05 and not (whole and abs(changed - same) <= 1):
        middle = (same * changed) ** 0.5
        middle = float(round(middle)) if whole else middle
        if middle in (same, changed):
            break
        other = decide(moved(middle))
        if other is not None and _signature(other, fact) != _signature(chosen, fact):
            changed, then = middle, other
        else:
            same = middle
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


def _traffic(profile: Profile, **changes: object) -> Profile:
    return profile.model_copy(update={"traffic": profile.traffic.model_copy(update={"rate": None, **changes})})


def _length(profile: Profile, name: str, mean: float) -> Profile:
    factor = mean / getattr(profile.traffic, name).mean
    lengths: Lengths = getattr(profile.traffic, name)
    scaled = Lengths(**{key: value * factor for key, value in lengths.model_dump().items()})
    index = 0 if name == "isl" else 1
    sample = tuple(
        (max(1, round(pair[0] * factor)), pair[1]) if index == 0 else (pair[0], max(1, round(pair[1] * factor)))
        for pair in profile.traffic.lengths
    )
    return profile.model_copy(update={"traffic": profile.traffic.model_copy(update={name: scaled, "lengths": sample})})


def _gpu(profile: Profile, **changes: object) -> Profile:
    return profile.model_copy(update={"gpu": profile.gpu.model_copy(update=changes)})


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if value < 1000 else float(round(value))
