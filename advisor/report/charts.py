"""The figures behind each chart of the page, as plain data; assets/page.js hands them to the chart library.

Nothing is drawn and nothing computed here but sums and ratios of numbers that the report holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from advisor.report import sections, units
from advisor.report.deployments import describe_changes, short_deployment
from advisor.types import Change, Deployment, Estimate, Grid, Interval, Report

Data = dict[str, Any]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def chart_data(report: Report) -> Data:
    """Chart name -> its data; None where this report has no figures for it."""
    made = {
        "memory": memory(report),
        "waterfall": waterfall(report),
        "pareto": pareto(report),
        "roofline": roofline(report),
        "flips": flips(report),
        "layers": layers(report),
        "accuracy": accuracy(report),
        "predicted": predicted(report),
        "grid": grid(report.grid, report) if report.grid else None,
    }
    return {name: data or None for name, data in made.items()}


def memory(report: Report) -> Data:
    """The parts of one GPU's memory in GiB, before and after."""
    plan = report.plan
    entries = (("before", plan.baseline.memory_gib), ("after", plan.expected.memory_gib))
    rows = [
        {"name": name, "part": part, "gib": round(gib, 4)}
        for name, value in entries
        for part, gib in sections.memory_parts(value).items()
        if gib > 0
    ]
    return {"rows": rows, "capacity": plan.expected.memory_gib.capacity}


def waterfall(report: Report) -> list[Data]:
    """For TTFT, ITL and throughput: where the baseline stands, what each step adds, where the plan ends."""
    found = []
    rows = sections.rows(report)
    for metric in sections.METRICS[:3]:
        values = [(n, sections.number(row.estimate, metric)) for n, row in enumerate(rows) if row.step or n == 0]
        known = [(n, value) for n, value in values if value is not None]
        if len(known) < 2:
            continue
        bars: list[Data] = [_bar("baseline" if known[0][0] == 0 else f"step {known[0][0]}", 0, known[0][1], "total")]
        for (_, before), (n, after) in pairwise(known):
            if after == before:
                continue
            better = (after - before) * metric.better
            bars.append(_bar(f"step {n}", before, after, "better" if better > 0 else "worse"))
        bars.append(_bar("plan", 0, known[-1][1], "total"))
        limit = {"ttft_ms": report.plan.goal.ttft_ms, "itl_ms": report.plan.goal.itl_ms}.get(metric.name)
        found.append({"metric": metric.title, "unit": metric.unit, "bars": bars, "limit": limit})
    return found


def _bar(label: str, start: float, end: float, kind: str) -> Data:
    return {"label": label, "from": start, "to": end, "kind": kind}


def marks(report: Report) -> dict[Deployment, str]:
    """The one-letter mark of each option on charts and tables: 0 the baseline, P the plan, then A, B, C ..."""
    plan = report.plan
    series = [one.deployment for one in report.grid.series] if report.grid else []
    found = {plan.baseline_deployment: "0"}
    if plan.deployment not in found:
        found[plan.deployment] = "P"
    letters = iter(LETTERS.replace("P", ""))
    for deployment in (*(a.deployment for a in plan.alternatives), *series):
        if deployment not in found:
            found[deployment] = next(letters, "?")
    return found


def options(report: Report) -> list[Data]:
    """Baseline, plan and alternatives with the marks that the charts and the key beneath them use."""
    plan, mark = report.plan, marks(report)
    praise = {a.deployment: a.best_for for a in plan.alternatives}
    chosen = praise.get(plan.deployment, "")
    entries = [(plan.baseline_deployment, plan.baseline, "baseline", "the baseline")]
    if plan.deployment != plan.baseline_deployment:
        entries.append((plan.deployment, plan.expected, "plan", f"the plan; {chosen}" if chosen else "the plan"))
    entries += [
        (a.deployment, a.estimate, "alternative", a.best_for)
        for a in plan.alternatives
        if a.deployment not in (plan.deployment, plan.baseline_deployment)
    ]
    return [_option(mark[deployment], kind, deployment, one, note, report) for deployment, one, kind, note in entries]


def _option(mark: str, kind: str, deployment: Deployment, estimate: Estimate, note: str, report: Report) -> Data:
    goal = report.plan.goal
    broken = [
        name
        for name, value, limit in (("TTFT", estimate.ttft_ms, goal.ttft_ms), ("ITL", estimate.itl_ms, goal.itl_ms))
        if value is not None and limit is not None and value > limit
    ]
    return {
        "mark": mark,
        "kind": kind,
        "what": short_deployment(deployment),
        "note": note,
        "ttft": estimate.ttft_ms,
        "itl": estimate.itl_ms,
        "rate": estimate.output_tokens_per_s,
        "memory": estimate.memory_gib.total,
        "loss": sections.loss(estimate.loss),
        "fits": estimate.fits,
        "breaks": broken,
    }


def pareto(report: Report) -> Data | None:
    """Throughput against ITL of every option that fits, with the limit on ITL."""
    points = [o for o in options(report) if o["itl"] is not None and o["rate"] is not None]
    return {"points": points, "limit": report.plan.goal.itl_ms} if len(points) > 1 else None


def roofline(report: Report) -> Data | None:
    """The roofs of one GPU and where prefill and decode of each plan stand."""
    bandwidth = report.profile.gpu.bandwidth_gb_s
    if not report.roofline or not bandwidth:
        return None
    points = [p.model_dump() for p in report.roofline]
    return {"points": points, "bandwidth": bandwidth, "peaks": sorted({p.peak_tflops for p in report.roofline})}


def flips(report: Report) -> list[Data]:
    """How far each fact is from the value at which another plan wins, as a factor."""
    return [
        {"fact": flip.fact, "now": flip.now, "at": flip.at, "then": flip.then, "factor": flip.at / flip.now}
        for flip in report.plan.flips
        if flip.now is not None and flip.now > 0 and flip.at > 0
    ]


def layers(report: Report) -> list[Data]:
    """Sensitivity of each layer, in the model's order."""
    return [
        {"index": n, "layer": layer.layer, "format": layer.format, "score": layer.score, "kept": layer.kept}
        for change in report.changes
        for n, layer in enumerate(change.layers)
    ]


def accuracy(report: Report) -> list[Data]:
    """Measured figures with their confidence intervals by metric; each says of which round where not all found the same."""
    rounds = [change for change in report.changes if change.accuracy]
    names = _round_names(rounds)
    groups: dict[str, dict[Interval, list[str]]] = {}
    for name, change in zip(names, rounds, strict=True):
        for item in change.accuracy:
            groups.setdefault(item.metric, {}).setdefault(item, []).append(name)
    return [
        {
            "metric": metric,
            "points": [
                item.model_dump() | {"label": item.what if found == names else f"{item.what} ({', '.join(found)})"}
                for item, found in points.items()
            ],
        }
        for metric, points in groups.items()
    ]


def _round_names(rounds: Sequence[Change]) -> list[str]:
    """What was done in each, with its number where that was done before."""
    actions = [change.action.replace("_", " ") for change in rounds]
    times = [actions[: n + 1].count(action) for n, action in enumerate(actions)]
    return [action if time == 1 else f"{action} {time}" for action, time in zip(actions, times, strict=True)]


def predicted(report: Report) -> list[Data]:
    """Measured over expected for each executed step, with the expected 80 % interval in the same unit."""
    steps = {step.rule: (n, step) for n, step in enumerate(report.plan.steps, 1)}
    found = []
    for change in report.changes:
        number, step = steps.get(change.rule, (0, None))
        for metric in sections.METRICS[:3]:
            measured = change.after.get(metric.name)
            expected = sections.number(step.after, metric) if step else None
            if step is None or not expected or isinstance(measured, bool | str) or measured is None:
                continue
            low, high = sections.bounds(step.after, metric) or (None, None)
            found.append(
                {
                    "number": number,
                    "step": describe_changes(step.changes),
                    "metric": f"{metric.title} {metric.unit}",
                    "expected": expected,
                    "measured": measured,
                    "low": low,
                    "high": high,
                    "ratio": measured / expected,
                    "ratio_low": low / expected if low is not None else None,
                    "ratio_high": high / expected if high is not None else None,
                }
            )
    return found


def grid(value: Grid, report: Report) -> Data:
    """The what-if lattice, with the options' marks."""
    mark, goal = marks(report), report.plan.goal
    chosen = [n for n, one in enumerate(value.series) if one.deployment == report.plan.deployment]
    return {
        "axes": {"concurrency": value.concurrency, "isl": value.isl, "osl": value.osl},
        "now": value.now,
        "best": value.best,
        "plan": chosen[0] if chosen else None,
        "limits": {"ttft": goal.ttft_ms, "itl": goal.itl_ms},
        "series": [
            {
                "mark": mark[one.deployment],
                "label": one.label,
                "what": short_deployment(one.deployment),
                "weights": one.memory_gib.weights,
                "runtime": one.memory_gib.runtime,
                "capacity": one.memory_gib.capacity,
                "fits": one.fits,
                "kv": one.kv_cache_gib,
                "activations": one.activations_gib,
                "ttft": one.ttft_ms,
                "itl": one.itl_ms,
                "rate": one.output_tokens_per_s,
                "room": one.max_concurrency,
            }
            for one in value.series
        ],
    }


def winners(value: Grid, report: Report) -> list[Data]:
    """Which option wins at each load: a line for each pair of lengths, a cell for each concurrency."""
    mark = marks(report)
    lines = []
    for i, isl in enumerate(value.isl):
        for o, osl in enumerate(value.osl):
            cells = []
            for c in range(len(value.concurrency)):
                index = (c * len(value.isl) + i) * len(value.osl) + o
                best = value.best[index]
                rate = value.series[best].output_tokens_per_s[index] if best is not None else None
                cells.append(
                    {
                        "mark": mark[value.series[best].deployment] if best is not None else units.UNKNOWN,
                        "series": best,
                        "rate": units.figure(rate),
                        "now": (c, i, o) == value.now,
                        "index": index,
                    }
                )
            lines.append({"isl": isl, "osl": osl, "cells": cells})
    return lines
