"""What a report says, in order and in words, before any format: the text, Markdown and HTML pages all read this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.report import units
from advisor.report.deployments import describe_changes, short_deployment
from advisor.report.evidence import compared
from advisor.types import (
    Estimate,
    Fallback,
    Finding,
    Flip,
    Loss,
    Memory,
    Policy,
    Report,
    Scalar,
    Step,
)

BASES = {
    "arithmetic": "arithmetic",
    "published": "from published figures",
    "silicon": "fitted to published measurements of kernels",
    "measured": "measured here",
}


@dataclass(frozen=True)
class Metric:
    """A column of the decision table."""

    name: str
    """field of Estimate, or "memory", "loss" """
    title: str
    unit: str
    better: int
    """1: more is better, -1: less is better"""


METRICS = (
    Metric("ttft_ms", "TTFT", "ms", -1),
    Metric("itl_ms", "ITL", "ms", -1),
    Metric("output_tokens_per_s", "output", "tokens/s", 1),
    Metric("max_concurrency", "fits", "requests", 1),
    Metric("memory", "memory", "GiB/GPU", -1),
    Metric("loss", "accuracy", "loss %", -1),
)


@dataclass(frozen=True)
class Row:
    """A line of the decision table."""

    label: str
    estimate: Estimate
    step: Step | None = None


@dataclass(frozen=True)
class Reason:
    """A step of the plan with the finding behind it."""

    number: int
    title: str
    step: Step
    finding: Finding | None


# ---------------------------------------------------------------- the decision


def input_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """What the plan is for: model, GPU, traffic, goal, engine, each in one line."""
    model, gpu, traffic, goal = report.profile.model, report.profile.gpu, report.profile.traffic, report.plan.goal
    size = f"{units.params(model.params)} parameters" if model.params else "number of parameters unknown"
    if model.moe and model.active_params:
        size += f" ({units.params(model.active_params)} active), {model.moe.experts} experts"
    layers = f"{model.attention.upper()}, {model.layers} layers"
    quantized = f", already {model.quantized.weights or 'quantized'} ({model.quantized.method})" if model.quantized else ""
    sm = f"SM {gpu.sm}" if gpu.sm else "compute capability unknown"
    memory = f"{units.figure(gpu.memory_gib)} GiB" if gpu.memory_gib else "memory unknown"
    bandwidth = f"{units.figure(gpu.bandwidth_gb_s)} GB/s" if gpu.bandwidth_gb_s else "bandwidth unknown"
    load = "as many as fit" if traffic.concurrency is None else f"{units.given(traffic.concurrency)} concurrent"
    load = f"{units.figure(traffic.rate)} requests/s" if traffic.rate is not None and traffic.concurrency is None else load
    limits = [
        f"{title} {units.given(value)}{unit}"
        for title, value, unit in (
            ("mean TTFT at most", goal.ttft_ms, " ms"),
            ("mean ITL at most", goal.itl_ms, " ms"),
            (f"{goal.accuracy_metric} loss at most", goal.accuracy_budget_pct, " %"),
        )
        if value is not None
    ]
    engine = report.profile.engine
    return (
        ("model", f"{model.name}: {size}, {layers}{quantized}"),
        ("GPU", f"{gpu.count} x {gpu.name}: {sm}, {memory}, {bandwidth} each"),
        (
            "traffic",
            f"{traffic.name}: {traffic.isl.mean:,.0f} tokens in, {traffic.osl.mean:,.0f} out, {load}",
        ),
        ("goal", f"{goal.objective}; " + ("; ".join(limits) or "no limits set")),
        ("engine", f"{engine.name} {engine.version}" + (f", {engine.batching} batching today" if engine.batching else "")),
        *((("policy", policy_line(report.policy)),) if report.policy is not None else ()),
    )


def policy_line(policy: Policy) -> str:
    """What a policy limits, in one line."""
    parts = [policy.file or "given as a value"]
    for field, values in policy.deployment.items():
        parts.append(f"{field} {' or '.join(units.given(value) for value in values) or 'never'}")
    parts += [f"only rules {', '.join(policy.allow)}"] if policy.allow else []
    parts += [f"no rule {', '.join(policy.forbid)}"] if policy.forbid else []
    engines = (f"{name} {' or '.join(versions) or 'of any version'}" for name, versions in policy.engines.items())
    parts += [f"only {' or '.join(engines)}"] if policy.engines else []
    parts += [f"at most {units.given(one.budget_pct)} % on {one.metric} for {one.model}" for one in policy.accuracy]
    limits = (("TTFT", policy.ttft_ms), ("ITL", policy.itl_ms))
    parts += [f"{name} at most {units.given(value)} ms" for name, value in limits if value is not None]
    spend = (("GPU-hours", policy.gpu_hours), ("hours", policy.hours), ("GiB of disk", policy.disk_gib))
    parts += [f"at most {units.given(value)} {name} to apply" for name, value in spend if value is not None]
    parts += [f"{one.rule} suppressed until {one.until}" for one in policy.suppress if not one.expired]
    parts += [f"results go to {', '.join(policy.tell) or 'nobody'} beyond the output folder"]
    return "; ".join([*parts, f"training {'only when asked for' if policy.training == 'ask' else policy.training}"])


def rows(report: Report) -> tuple[Row, ...]:
    """The decision table: the baseline, what holds after each step, and the plan where its last step moved nothing."""
    plan = report.plan
    steps = [
        Row(f"{n} {'keep ' if is_kept(report, s) else ''}{describe_changes(s.changes)}", s.after, s)
        for n, s in enumerate(plan.steps, 1)
    ]
    if steps and repeats(steps[-1]):
        steps.append(Row(f"plan: {short_deployment(plan.deployment)}", plan.expected))
    return (Row(f"baseline: {short_deployment(plan.baseline_deployment)}", plan.baseline), *steps)


def is_kept(report: Report, step: Step) -> bool:
    """Whether the baseline is so already, and the step says to leave it."""
    return all(getattr(report.plan.baseline_deployment, name, None) == value for name, value in step.changes.items())


def repeats(row: Row) -> bool:
    """Whether no figure of the line differs from the line above it."""
    return row.step is not None and all(number(row.step.before, m) == number(row.step.after, m) for m in METRICS)


def cell(estimate: Estimate, metric: Metric) -> str:
    """One number of the decision table, as text."""
    if metric.name == "loss":
        return loss(estimate.loss)
    return units.figure(number(estimate, metric)) if metric.name != "max_concurrency" else units.given(number(estimate, metric))


def number(estimate: Estimate, metric: Metric) -> float | None:
    """The value behind a cell; None: not known, or the deployment does not fit."""
    if metric.name == "memory":
        return estimate.memory_gib.total
    if metric.name == "loss":
        return estimate.loss.high_pct if estimate.loss else None
    value: float | None = getattr(estimate, metric.name)
    return value


def bounds(estimate: Estimate, metric: Metric) -> tuple[float, float] | None:
    """The 80 % interval of a number, where the estimate gives one."""
    return estimate.range.get({"memory": "memory_gib.total"}.get(metric.name, metric.name))


def basis(estimate: Estimate, metric: Metric) -> str:
    """What a number rests on: arithmetic, published, silicon, measured; "" when it is not there."""
    if metric.name == "loss":
        return estimate.loss.basis if estimate.loss else ""
    if number(estimate, metric) is None:
        return ""
    names = ("memory_gib", "memory_gib.total", "memory") if metric.name == "memory" else (metric.name,)
    return next((estimate.basis[name] for name in names if name in estimate.basis), "")


def limit(report: Report, metric: Metric) -> str:
    """The goal's limit on a number, "" when there is none."""
    goal = report.plan.goal
    if metric.name == "memory":
        return units.figure(report.plan.expected.memory_gib.capacity)
    value = {"ttft_ms": goal.ttft_ms, "itl_ms": goal.itl_ms, "loss": goal.accuracy_budget_pct}.get(metric.name)
    return "" if value is None else units.given(value)


def loss(value: Loss | None) -> str:
    """An expected accuracy loss in percent, as a range."""
    return units.UNKNOWN if value is None else units.span(value.low_pct, value.high_pct)


def memory_parts(memory: Memory) -> dict[str, float]:
    """What fills one GPU, GiB, in the order of the bar; "free" is negative when it does not fit."""
    parts = {"weights": memory.weights, "KV cache": memory.kv_cache}
    parts |= {"activations": memory.activations, "runtime": memory.runtime}
    return parts | {"free": memory.capacity - sum(parts.values())}


def reasons(report: Report) -> tuple[Reason, ...]:
    """Each step with the finding that made it."""
    findings = {f.rule: f for f in report.findings}
    return tuple(
        Reason(n, describe_changes(step.changes), step, findings.get(step.rule)) for n, step in enumerate(report.plan.steps, 1)
    )


def gains(before: Estimate, after: Estimate) -> tuple[str, ...]:
    """What a step moves by a percent or more, in words: ("output tokens/s +48 %", "ITL −33 %")."""
    found = ["fits" for _ in (1,) if after.fits and not before.fits]
    for name, title in (
        ("output_tokens_per_s", "output tokens/s"),
        ("ttft_ms", "TTFT"),
        ("itl_ms", "ITL"),
        ("max_concurrency", "requests that fit"),
        ("memory", "memory"),
    ):
        metric = next(m for m in METRICS if m.name == name)
        old, new = number(before, metric), number(after, metric)
        if old and new is not None and abs(new / old - 1) >= 0.01:
            found.append(f"{title} {units.change(old, new)}")
    return tuple(found)


def rule_lines(report: Report, rules: Sequence[str]) -> tuple[str, ...]:
    """What some rules say, each with the comparisons that decide it."""
    found = []
    for finding in report.findings:
        if finding.rule in rules:
            deciding = [one for one in finding.evidence if one.holds is not True] or list(finding.evidence)
            found.append(f"{finding.rule} {finding.verdict}: {'; '.join(map(compared, deciding))}")
    return tuple(found)


def spending(fallback: Fallback) -> str:
    """What a fallback that trains would cost, in words; "" for one that trains nothing."""
    cost = fallback.cost
    if cost is None:
        return ""
    tokens = units.span(cost.tokens[0] / 1e9, cost.tokens[1] / 1e9, joint=" to ")
    gpus = f", {cost.least_gpus} GPUs at least for its memory" if cost.least_gpus and cost.least_gpus > 1 else ""
    hours = units.span(cost.gpu_hours[0], cost.gpu_hours[1], joint=" to ")
    return f"about {hours} GPU-hours for {tokens} B tokens ({cost.basis}){gpus}; it asks before it spends them"


def notes(report: Report) -> tuple[str, ...]:
    """What the parts before said about themselves, each once."""
    plan, profile = report.plan, report.profile
    sources = (plan.warnings, profile.gpu.notes, profile.model.notes, profile.traffic.notes, plan.expected.notes)
    return tuple(dict.fromkeys(note for source in sources for note in source))


def flip_now(flip: Flip) -> str:
    """The fact's present value; what has none is a limit that nobody set."""
    return "not set" if flip.now is None else units.given(flip.now)


def flip_when(fact: str, now: Scalar, at: float) -> str:
    """On which side of `at` the other plan wins: "at 11 or less". A limit that nobody set is above any."""
    below = now is None or (isinstance(now, int | float) and at < now)
    return f"{units.given(at)} or {'less' if below else 'more'}"
