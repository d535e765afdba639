"""No plan keeps every limit: what would have to give."""

from __future__ import annotations

from collections.abc import Callable

from advisor.reasoner.choice import Tried, violations
from advisor.reasoner.rejection import show
from advisor.types import Estimate, Profile

LIMITS = (("TTFT", "ttft_ms", "ms"), ("ITL", "itl_ms", "ms"), ("accuracy budget", "accuracy_budget_pct", "%"))
Nearest = Callable[[Profile], tuple[Tried, bool] | None]


def find_shortfall(profile: Profile, chosen: Tried, nearest: Nearest) -> tuple[str, ...]:
    """One sentence for each single change that would make a plan fit; `nearest` decides a changed profile."""
    estimate = chosen.estimate
    said = [f"the nearest plan breaks: {_broken(chosen, profile)}"]
    said += _more_gpus(profile, nearest)
    if not estimate.fits:
        memory = estimate.memory_gib
        said.append(f"GPUs with at least {memory.total:.0f} GiB each ({memory.capacity:.0f} GiB now) would hold it")
    for name, field, unit in LIMITS:
        said += _looser_limit(profile, name, field, unit, nearest)
    if profile.traffic.concurrency and profile.traffic.concurrency > 1:
        said += _fewer_requests(profile, nearest)
    return tuple(said)


def _broken(chosen: Tried, profile: Profile) -> str:
    estimate, goal = chosen.estimate, profile.goal
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
    return ", ".join(parts)


def _served(estimate: Estimate, profile: Profile) -> str:
    made = (estimate.output_tokens_per_s or 0.0) / max(profile.traffic.osl.mean, 1.0)
    return f"serves {show(made)} requests/s of the {show(profile.traffic.rate)} that arrive"


def _more_gpus(profile: Profile, nearest: Nearest) -> list[str]:
    for count in (2, 4, 8, 16):
        if count <= profile.gpu.count:
            continue
        found = nearest(profile.model_copy(update={"gpu": profile.gpu.model_copy(update={"count": count})}))
        if found is not None and found[1]:
            return [f"{count} x {profile.gpu.name} (now {profile.gpu.count}) would do"]
    return []


def _looser_limit(profile: Profile, name: str, field: str, unit: str, nearest: Nearest) -> list[str]:
    if getattr(profile.goal, field) is None:
        return []
    found = nearest(profile.model_copy(update={"goal": profile.goal.model_copy(update={field: None})}))
    if found is None or not found[1]:
        return []
    estimate = found[0].estimate
    needed = estimate.loss.low_pct if field == "accuracy_budget_pct" and estimate.loss else getattr(estimate, field, None)
    return [f"a looser {name} would do: {show(needed)} {unit} instead of {show(getattr(profile.goal, field))} {unit}"]


def _fewer_requests(profile: Profile, nearest: Nearest) -> list[str]:
    concurrency = int(profile.traffic.concurrency or 1)
    while concurrency > 1:
        concurrency //= 2
        traffic = profile.traffic.model_copy(update={"concurrency": float(concurrency), "rate": None})
        found = nearest(profile.model_copy(update={"traffic": traffic}))
        if found is not None and found[1]:
            return [f"at most {concurrency} requests at once (now {show(profile.traffic.concurrency)}) would do"]
    return []
