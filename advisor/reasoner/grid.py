"""What the report draws beside the plan: its neighbours over a lattice of loads, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from advisor.errors import NotPossible
from advisor.estimator.correction import corrected
from advisor.estimator.deployment import estimate
from advisor.estimator.roofline import roofline_points
from advisor.reasoner.baseline import load_of
from advisor.reasoner.choice import TIE, violations, worth
from advisor.types import Deployment, Estimate, Goal, Grid, GridSeries, Load, Plan, Profile, RooflinePoint

MOST_ALTERNATIVES = 3
_FACTORS = (1 / 16, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 16.0)


def lay_out_grid(profile: Profile, plan: Plan) -> Grid | None:
    """Estimates of the baseline, the plan and a few alternatives at every load of the lattice. None without a concurrency."""
    traffic = profile.traffic
    now = plan.expected.concurrency or traffic.concurrency
    if now is None:
        return None
    longest = profile.model.max_context or 131072
    axes = (
        _axis(traffic.concurrency or now, 1, 2048, _FACTORS),
        _axis(traffic.isl.mean, 16, longest - traffic.osl.mean, _FACTORS[1:-1]),
        _axis(traffic.osl.mean, 1, longest - traffic.isl.mean, _FACTORS[2:-1]),
    )
    loads = [
        load_of(traffic).model_copy(update={"concurrency": float(c), "rate": None, "isl": float(i), "osl": float(o)})
        for c, i, o in product(*axes)
    ]
    named: list[tuple[str, Deployment, Estimate]] = [
        ("baseline", plan.baseline_deployment, plan.baseline),
        ("plan", plan.deployment, plan.expected),
        *((one.best_for, one.deployment, one.estimate) for one in plan.alternatives[:MOST_ALTERNATIVES]),
    ]
    made = [[_estimate(profile, deployment, load) for load in loads] for _, deployment, _ in named]
    best = tuple(_best([series[index] for series in made], profile.goal) for index in range(len(loads)))
    series = tuple(
        _series(label, deployment, at_home, estimates)
        for (label, deployment, at_home), estimates in zip(named, made, strict=True)
    )
    home = (traffic.concurrency or now, traffic.isl.mean, traffic.osl.mean)
    indices = tuple(min(range(len(axis)), key=lambda n: abs(axis[n] - value)) for axis, value in zip(axes, home, strict=True))
    return Grid(
        concurrency=axes[0],
        isl=axes[1],
        osl=axes[2],
        now=(indices[0], indices[1], indices[2]),
        series=series,
        best=best,
    )


def draw_roofline(profile: Profile, plan: Plan) -> tuple[RooflinePoint, ...]:
    """Prefill and decode of the baseline and of the plan under the roofline of one GPU."""
    load = load_of(profile.traffic)
    return tuple(
        point
        for label, deployment, made in (
            ("baseline", plan.baseline_deployment, plan.baseline),
            ("plan", plan.deployment, plan.expected),
        )
        for point in roofline_points(label, profile.model, profile.gpu, deployment, made, load, profile.engine)
    )


def _axis(now: float, least: float, most: float, factors: Sequence[float]) -> tuple[int, ...]:
    """The value itself and geometric steps around it, whole and within bounds."""
    return tuple(sorted({max(1, round(min(most, max(least, now * factor)))) for factor in factors} | {max(1, round(now))}))


def _estimate(profile: Profile, deployment: Deployment, load: Load) -> Estimate | None:
    try:
        return corrected(estimate(profile.model, profile.gpu, deployment, load, profile.engine), profile.corrections)
    except NotPossible:
        return None


def _best(estimates: Sequence[Estimate | None], goal: Goal) -> int | None:
    """The series that the goal chooses; the plan (1) where it is within what decides nothing."""
    keeping = {index: worth(one, goal) for index, one in enumerate(estimates) if one and not violations(one, goal)}
    if not keeping:
        return None
    top = max(keeping.values())
    if keeping.get(1, 0.0) >= top * (1 - TIE):
        return 1
    return max(keeping, key=lambda index: (keeping[index], -index))


def _series(label: str, deployment: Deployment, at_home: Estimate, estimates: Sequence[Estimate | None]) -> GridSeries:
    def column(name: str) -> tuple[float | None, ...]:
        return tuple(_short(getattr(one, name)) if one and one.fits else None for one in estimates)

    return GridSeries(
        label=label,
        deployment=deployment,
        memory_gib=at_home.memory_gib,
        fits=tuple(bool(one and one.fits) for one in estimates),
        kv_cache_gib=tuple(_short(one.memory_gib.kv_cache) if one else None for one in estimates),
        activations_gib=tuple(_short(one.memory_gib.activations) if one else None for one in estimates),
        ttft_ms=column("ttft_ms"),
        itl_ms=column("itl_ms"),
        output_tokens_per_s=column("output_tokens_per_s"),
        max_concurrency=tuple(one.max_concurrency if one else None for one in estimates),
    )


def _short(value: float | None) -> float | None:
    """Four significant figures: the page shows three."""
    return None if value is None else float(f"{value:.4g}")
