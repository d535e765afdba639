"""What a report says, in order and in words, before any format: the text, Markdown and HTML pages all read this."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.report import units
from advisor.report.deployments import describe_changes, short_deployment
from advisor.types import Change, Estimate, Evidence, Finding, Flip, Loss, Memory, Reference, Report, Scalar, Step

ASSUMED = ("default", "assumed")
"""a source that begins so is no measurement and no declaration"""
BASES = {
    "arithmetic": "arithmetic",
    "published": "from published figures",
    "silicon": "fitted to published measurements of kernels",
    "measured": "measured here",
}
OPERATORS = ("not in", "<=", ">=", "==", "!=", "<", ">", "in")


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


@dataclass(frozen=True)
class LeftOut:
    """A remedy that is not in the plan."""

    rule: str
    reason: str
    estimate: Estimate | None
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class Unknown:
    """Facts that nobody knows yet, and the one way to find them out."""

    facts: tuple[str, ...]
    rules: tuple[str, ...]
    find_out: str


# ---------------------------------------------------------------- the decision


def input_lines(report: Report) -> tuple[tuple[str, str], ...]:
    """What the plan is for: model, GPU, traffic, goal, engine, each in one line."""
    model, gpu, traffic, goal = report.profile.model, report.profile.gpu, report.profile.traffic, report.plan.goal
    size = f"{units.params(model.params)} parameters" if model.params else "number of parameters unknown"
    if model.moe and model.active_params:
        size += f" ({units.params(model.active_params)} active), {model.moe.experts} experts"
    layers = f"{model.attention.upper()}, {model.layers} layers"
    quantized = f", already {model.quantized.method}" if model.quantized else ""
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
    )


def rows(report: Report) -> tuple[Row, ...]:
    """The lines of the decision table: the baseline, then what holds after each step."""
    plan = report.plan
    steps = [Row(f"{n} {describe_changes(s.changes)}", s.after, s) for n, s in enumerate(plan.steps, 1)]
    return (Row(f"baseline: {short_deployment(plan.baseline_deployment)}", plan.baseline), *steps)


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


def evidence(item: Evidence) -> str:
    """A comparison with both sides' values: "gain.fp8 1.48 (> 1.1)", "traffic.concurrency 32 > baseline.max_concurrency 11"."""
    name, operator, right_text = split_condition(item.condition)
    left, right = units.pair(item.left, item.right)
    if not operator:
        return f"{item.condition}: {left}, {right}"
    refused = "not " if item.holds is False else ""
    if is_fact(right_text):
        return f"{name} {left} {refused}{operator} {right_text} {right}"
    if operator == "==" and item.holds:
        return f"{name} = {left}"
    return f"{name} {left} ({refused}{operator} {right_text})"


def split_condition(condition: str) -> tuple[str, str, str]:
    """("baseline.kv_share", ">", "0.3"); operator and right side are "" when the condition has another shape."""
    for operator in OPERATORS:
        left, found, right = condition.partition(f" {operator} ")
        if found and left.strip() and right.strip():
            return left.strip(), operator, right.strip()
    return condition, "", ""


def is_fact(text: str) -> bool:
    """Whether the right side of a condition names a fact rather than a value."""
    return "." in text and text.replace(".", "").replace("_", "").isalnum() and not text[0].isdigit()


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


def change_lines(change: Change) -> tuple[str, ...]:
    """What an executed change measured, its gate, its artifact and command."""
    moved = []
    for name, after in change.after.items():
        old, new = units.pair(change.before.get(name), after)
        moved.append(f"{name} {old} -> {new}" if name in change.before else f"{name} {new}")
    lines = ["; ".join(moved), change.detail]
    lines += [
        f"{item.what}: {item.metric} {units.figure(item.value, 4)}"
        + (f" (95 % {units.figure(item.low, 4)} to {units.figure(item.high, 4)})" if item.low is not None else "")
        + (f", limit {units.figure(item.limit, 4)}" if item.limit is not None else "")
        + (f", n = {units.given(item.samples)}" if item.samples else "")
        for item in change.accuracy
    ]
    seconds = f"took {units.figure(change.seconds)} s" if change.seconds is not None else ""
    lines += [
        seconds,
        f"artifact: {change.artifact}" if change.artifact else "",
        f"command: {change.command}" if change.command else "",
    ]
    return tuple(line for line in lines if line)


# ---------------------------------------------------------------- what is not in the plan


def left_out(report: Report) -> tuple[LeftOut, ...]:
    """The planner's rejections, then the rules whose remedy is impossible here."""
    findings = {f.rule: f for f in report.findings}
    chosen = {s.rule for s in report.plan.steps} | {r.rule for r in report.plan.rejected}
    items = [
        LeftOut(r.rule, r.reason, r.estimate, findings[r.rule].references if r.rule in findings else ())
        for r in report.plan.rejected
    ]
    for finding in report.findings:
        if finding.verdict == "blocked" and finding.rule not in chosen:
            failing = "; ".join(evidence(e) for e in finding.evidence if e.holds is False)
            reason = f"the problem is real, the remedy impossible here: {failing or 'see its evidence'}"
            items.append(LeftOut(finding.rule, reason, None, finding.references))
    return tuple(items)


def unknowns(report: Report) -> tuple[Unknown, ...]:
    """What the undecided rules lack, grouped by the way to find it out."""
    groups: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for finding in report.findings:
        if finding.verdict != "unknown":
            continue
        for item in finding.evidence:
            if item.holds is None:
                facts, rules = groups.setdefault(item.find_out, ({}, {}))
                facts.update(dict.fromkeys(unknown_facts(item)))
                rules[finding.rule] = None
    return tuple(Unknown(tuple(facts), tuple(rules), how) for how, (facts, rules) in groups.items())


def unknown_facts(item: Evidence) -> list[str]:
    """The facts of a comparison that have no value."""
    name, _, right = split_condition(item.condition)
    names = [name] if item.left is None else []
    return names + ([right] if item.right is None and is_fact(right) else [])


def assumptions(report: Report) -> tuple[tuple[str, str, str], ...]:
    """(fact, value, source) of what was assumed instead of measured or declared."""
    return tuple(item for item in facts(report) if item[2].startswith(ASSUMED))


def facts(report: Report) -> tuple[tuple[str, str, str], ...]:
    """(fact, value, source) of everything with a source, in the profile's order."""
    return tuple((name, fact_value(report, name), source) for name, source in report.profile.sources.items())


def fact_source(report: Report, name: str) -> str:
    """Where a fact came from; a fact that was computed from others says so."""
    if name in report.profile.sources:
        return report.profile.sources[name]
    group = name.split(".")[0]
    if group in ("baseline", "fit", "gain", "speculation"):
        return "estimated"
    return "profiles/support" if group == "support" else "computed from the profile"


def fact_value(report: Report, name: str) -> str:
    """The value of a sourced fact, as text; "" where the profile holds no single number for it."""
    value: object = report.profile
    parts = name.split(".")
    if parts[0] == "measured":
        return units.given(report.profile.measured.get(name.removeprefix("measured.")))
    for part in parts:
        value = _member(value, part)
    return units.given(value) if value is None or isinstance(value, bool | int | float | str) else ""


def _member(value: object, part: str) -> object:
    if hasattr(type(value), "model_fields") and part in type(value).model_fields:  # type: ignore[attr-defined]
        return getattr(value, part)
    head, _, tail = part.rpartition("_")
    if head and tail and hasattr(type(value), "model_fields") and head in type(value).model_fields:  # type: ignore[attr-defined]
        return getattr(getattr(value, head), tail, "")
    return value.get(part, "") if isinstance(value, dict) else ""


def notes(report: Report) -> tuple[str, ...]:
    """What the parts before said about themselves, each once."""
    plan, profile = report.plan, report.profile
    sources = (plan.warnings, profile.gpu.notes, profile.model.notes, profile.traffic.notes, plan.expected.notes)
    return tuple(dict.fromkeys(note for source in sources for note in source))


def flip_now(flip: Flip) -> str:
    """The fact's present value; what has none is a limit that nobody set."""
    return "not set" if flip.now is None else units.given(flip.now)


def flip_when(fact: str, now: Scalar, at: float) -> str:
    """On which side of `at` the other plan wins: "at 11 or less"."""
    side = "less" if isinstance(now, int | float) and at < now else "more"
    return f"{units.given(at)} or {side}"
