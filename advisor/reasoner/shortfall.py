"""No plan keeps every limit: what would have to give."""

from __future__ import annotations

import math
from collections.abc import Callable

from advisor.reasoner.choice import Tried, keeps_up, violations
from advisor.reasoner.rejection import show
from advisor.types import Estimate, Goal, Profile

LIMITS = (
    ("TTFT", "ttft_ms", "ttft_ms", "ms"),
    ("ITL", "itl_ms", "itl_ms", "ms"),
    ("accuracy loss", "accuracy", "accuracy_budget_pct", "%"),
)
MOST_GPUS = 4096
Nearest = Callable[[Profile], tuple[Tried, bool] | None]


def find_shortfall(profile: Profile, chosen: Tried, nearest: Nearest, gpus: int | None) -> tuple[str, ...]:
    """One sentence for each change that would make a plan fit; `nearest` decides a changed profile, `gpus` would be enough."""
    estimate = chosen.estimate
    said = [f"the nearest plan breaks: {', '.join(name_broken(estimate, profile))}"]
    said += [f"{gpus} x {profile.gpu.name} (now {profile.gpu.count}) would do"] if gpus else []
    if not estimate.fits:
        memory = estimate.memory_gib
        said.append(f"GPUs with at least {memory.total:.0f} GiB each ({memory.capacity:.0f} GiB now) would hold it")
    said += _looser_limits(chosen, profile.goal)
    if profile.traffic.concurrency and profile.traffic.concurrency > 1:
        said += _fewer_requests(profile, nearest)
    elif profile.traffic.rate:
        said += _lower_rate(profile, estimate, nearest)
    return tuple(said)


def name_broken(estimate: Estimate, profile: Profile) -> list[str]:
    """The limits that an estimate breaks, each with its figure and the limit."""
    goal = profile.goal
    parts = []
    for name in violations(estimate, goal):
        if name == "load":
            parts.append(f"load ({_served(estimate, profile)})")
        elif name == "memory":
            parts.append(f"memory (needs {estimate.memory_gib.total:.1f} GiB per GPU of {estimate.memory_gib.capacity:.1f})")
        elif name == "accuracy" and estimate.loss is not None:
            least = show(estimate.loss.low_pct)
            parts.append(f"accuracy (expected loss at least {least} %, budget {show(goal.accuracy_budget_pct)} %)")
        else:
            value, limit = show(getattr(estimate, name)), show(getattr(goal, name))
            parts.append(f"{name.removesuffix('_ms').upper()} ({value} ms, limit {limit} ms)")
    return parts


def _served(estimate: Estimate, profile: Profile) -> str:
    return f"serves {show(_rate_served(estimate, profile))} requests/s of the {show(profile.traffic.rate)} that arrive"


def _rate_served(estimate: Estimate, profile: Profile) -> float:
    return (estimate.output_tokens_per_s or 0.0) / max(profile.traffic.osl.mean, 1.0)


def enough_gpus(profile: Profile, estimate: Estimate, nearest: Nearest) -> int | None:
    """How many of these GPUs would do, of the numbers that are tried; None: none of them."""
    served = _rate_served(estimate, profile)
    enough: tuple[int, ...] = (
        () if keeps_up(estimate) or not served else (math.ceil(1.1 * profile.gpu.count * (profile.traffic.rate or 0) / served),)
    )
    for count in (2, 4, 8, 16, *enough):
        if not profile.gpu.count < count <= MOST_GPUS:
            continue
        found = nearest(profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"count": count})}))
        if found is not None and found[1]:
            return count
    return None


def _looser_limits(chosen: Tried, goal: Goal) -> list[str]:
    """The limits that the nearest plan would keep; it breaks the worst of them by least."""
    broken, estimate = violations(chosen.estimate, goal), chosen.estimate
    if not broken or {"memory", "load"} & set(broken):
        return []
    values = {
        "ttft_ms": estimate.ttft_ms,
        "itl_ms": estimate.itl_ms,
        "accuracy": estimate.loss.low_pct if estimate.loss else None,
    }
    said = [
        f"{name} of {show(_rounded_up(values[key]))} {unit} instead of {show(getattr(goal, field))} {unit}"
        for name, key, field, unit in LIMITS
        if key in broken
    ]
    return [f"a looser limit would do: {' and '.join(said)}"]


def _rounded_up(value: float | None) -> float:
    """To three significant figures, so that the limit as it is printed is kept."""
    if not value:
        return 0.0
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / step) * step


def _lower_rate(profile: Profile, estimate: Estimate, nearest: Nearest) -> list[str]:
    for share in (0.95, 0.75, 0.5, 0.25, 0.1):
        rate = _rate_served(estimate, profile) * share
        found = nearest(profile.model_copy(update={"traffic": profile.traffic.model_copy(update={"rate": rate})}))
        if rate and found is not None and found[1]:
            return [f"{show(rate)} requests/s (now {show(profile.traffic.rate)}) would do"]
    return []


def _fewer_requests(profile: Profile, nearest: Nearest) -> list[str]:
    concurrency = int(profile.traffic.concurrency or 1)
    while concurrency > 1:
        concurrency //= 2
        traffic = profile.traffic.model_copy(update={"concurrency": float(concurrency), "rate": None})
        found = nearest(profile.model_copy(update={"traffic": traffic}))
        if found is not None and found[1]:
            return [f"at most {concurrency} requests at once (now {show(profile.traffic.concurrency)}) would do"]
    return []
