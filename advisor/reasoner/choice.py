"""Which of the estimated deployments is best for a goal, and which are worth showing beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.reasoner.candidates import Candidate
from advisor.types import Alternative, Deployment, Estimate, Goal, Profile

# Differences below this share decide nothing: they are well inside the estimator's error, so the plan that loses less
# accuracy, and then the simpler one, is taken.
TIE = 0.03
# Plans that tie for the goal do not tie for the user where one of them keeps requests waiting this many times longer.
WAIT = 3.0
_NEVER = float("inf")
# Upper ends of the classes of accuracy risk, percent: nothing lost, what evaluations hardly see, what users notice, and more.
RISKS = (0.0, 2.0, 5.0, 10.0)
LIMITS = {"memory": "memory", "load": "load", "ttft_ms": "TTFT", "itl_ms": "ITL", "accuracy": "accuracy loss"}
"""what an estimate may break -> how it is called in a sentence"""


@dataclass(frozen=True)
class Tried:
    """A candidate with its estimate."""

    candidate: Candidate
    estimate: Estimate

    @property
    def deployment(self) -> Deployment:
        return self.candidate.deployment


def aim(profile: Profile) -> Goal:
    """The goal by which plans are ranked: arrivals at a given rate fix the throughput, so latency is what is left to gain."""
    traffic, goal = profile.traffic, profile.goal
    fixed = traffic.concurrency is None and traffic.rate is not None
    return goal.model_copy(update={"objective": "latency"}) if fixed and goal.objective == "throughput" else goal


def keeps_up(estimate: Estimate) -> bool:
    """Whether requests are served as fast as they arrive; where they are not, queues grow and TTFT has no value."""
    return not estimate.fits or estimate.itl_ms is None or estimate.ttft_ms is not None


def worth(estimate: Estimate, goal: Goal) -> float:
    """How good an estimate is for the objective, larger is better; 0 when it has no speed.

    throughput: output tokens per second of the whole deployment. latency: 1000 / request latency in ms.
    cost: output tokens per second and GPU.
    """
    if goal.objective == "latency":
        latency = estimate.request_latency_ms
        return 1000.0 / latency if latency else 0.0
    speed = estimate.output_tokens_per_s_per_gpu if goal.objective == "cost" else estimate.output_tokens_per_s
    return speed or 0.0


def violations(estimate: Estimate, goal: Goal) -> dict[str, float]:
    """Limits that an estimate breaks: name -> how many times over (infinite when it does not fit or cannot be known)."""
    if not estimate.fits:
        return {"memory": _NEVER}
    broken: dict[str, float] = {} if keeps_up(estimate) else {"load": _NEVER}
    for name, limit, value in (("ttft_ms", goal.ttft_ms, estimate.ttft_ms), ("itl_ms", goal.itl_ms, estimate.itl_ms)):
        if limit is not None and value is not None and value > limit:
            broken[name] = value / limit
    budget, loss = goal.accuracy_budget_pct, estimate.loss
    if budget is not None and loss is not None and loss.low_pct > budget:
        broken["accuracy"] = loss.low_pct / budget if budget else _NEVER
    return broken


def broken_limits(estimate: Estimate, goal: Goal) -> str:
    """The limits that an estimate breaks, in words: "TTFT and ITL"; "" for none."""
    return " and ".join(LIMITS[name] for name in violations(estimate, goal))


def choose(tried: Sequence[Tried], goal: Goal, concurrency: float | None = None) -> tuple[Tried, bool]:
    """The best candidate, and whether it keeps every limit; when none does, the one that breaks them least.

    concurrency: requests at once, where the traffic says so. Of plans that break limits, one that holds them all comes before
    one that is quick with the few that its cache holds while the others wait for a slot.
    """
    keeping = [one for one in tried if not violations(one.estimate, goal)]
    if not keeping:
        return min(tried, key=lambda one: (*_severity(one, goal, concurrency or 0.0), *_simplicity(one))), False
    best = max(worth(one.estimate, goal) for one in keeping)
    tied = [one for one in keeping if worth(one.estimate, goal) >= best * (1 - TIE)]
    soonest = min(one.estimate.ttft_ms or 0.0 for one in tied)
    prompt = [one for one in tied if (one.estimate.ttft_ms or 0.0) <= soonest * WAIT]
    return min(prompt, key=_simplicity), True


def _severity(one: Tried, goal: Goal, concurrency: float) -> tuple[float, bool, float, float]:
    """How far over memory, whether requests wait for a slot, how many times over the worst limit, and (of those that cannot
    keep up) the speed."""
    estimate, broken = one.estimate, violations(one.estimate, goal)
    over = estimate.memory_gib.total / estimate.memory_gib.capacity if "memory" in broken else 0.0
    waits = estimate.max_concurrency is not None and estimate.max_concurrency < concurrency
    speed = estimate.output_tokens_per_s if "load" in broken else None
    return over, waits, max(broken.values(), default=0.0) if not over else 0.0, -(speed or 0.0)


def _simplicity(one: Tried) -> tuple[int, int, float, int, str]:
    """Of plans that are equally fast: less accuracy at risk, fewer GPUs cut together, more memory left, fewer changes."""
    memory, cut = one.estimate.memory_gib, one.deployment
    return (
        _risk(one.estimate),
        cut.tensor_parallel * cut.pipeline_parallel,
        round(memory.weights + memory.kv_cache, 1),
        len(one.candidate.rules),
        cut.model_dump_json(),
    )


def _risk(estimate: Estimate) -> int:
    """Class of the largest expected loss. Within a class the published figures do not tell one from the other."""
    if estimate.loss is None:
        return len(RISKS) + 1
    return sum(estimate.loss.high_pct > limit for limit in RISKS)


def pareto(tried: Sequence[Tried], chosen: Tried, goal: Goal, *, most: int = 6) -> tuple[Alternative, ...]:
    """The front over throughput, ITL and accuracy loss, without the chosen plan: at most `most`, best throughput first."""
    fitting = [one for one in tried if one.estimate.fits and one.estimate.output_tokens_per_s]
    front: list[Tried] = []
    seen: set[tuple[float, ...]] = set()
    for one in sorted(fitting, key=lambda item: (_coordinates(item), _simplicity(item))):
        spot = _coordinates(one)
        if spot in seen or any(all(a <= b for a, b in zip(_coordinates(other), spot, strict=True)) for other in front):
            continue
        seen.add(spot)
        front.append(one)
    others = [one for one in front if one.deployment != chosen.deployment]
    return tuple(
        Alternative(deployment=one.deployment, estimate=one.estimate, best_for=_best_for(one, front, goal))
        for one in others[:most]
    )


def _coordinates(one: Tried) -> tuple[float, float, float]:
    """Smaller is better in each; rounded so that differences nobody could measure make no front."""
    estimate = one.estimate
    loss = estimate.loss.high_pct if estimate.loss else _NEVER
    return (-float(f"{estimate.output_tokens_per_s:.3g}"), float(f"{estimate.itl_ms or _NEVER:.3g}"), round(loss, 2))


def _best_for(one: Tried, front: list[Tried], goal: Goal) -> str:
    throughput, itl, loss = _coordinates(one)
    praise = []
    if throughput == min(_coordinates(other)[0] for other in front):
        praise.append("highest throughput")
    if itl == min(_coordinates(other)[1] for other in front):
        praise.append("lowest ITL")
    if loss == min(_coordinates(other)[2] for other in front):
        praise.append("least accuracy loss")
    broken = broken_limits(one.estimate, goal)
    limit = f" (breaks the limit on {broken})" if broken else ""
    return (" and ".join(praise) or "a compromise") + limit
