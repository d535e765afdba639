"""What a report says, in order and in words, before any format: the text, Markdown and HTML pages all read this."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.report import units
from advisor.types import Deployment, Estimate, Evidence, Finding, Loss, Memory, Reference, Report, Scalar, Step

ASSUMED = ("default", "assumed")
"""a source that begins so is no measurement and no declaration"""
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


# ---------------------------------------------------------------- deployments in words


def describe_changes(changes: dict[str, object]) -> str:
    """A step's changed fields in words: {"weights": "fp8"} -> "FP8 weights, FP8 activations"."""
    return ", ".join(text for name, value in changes.items() if (text := describe_field(name, value))) or "no change"


def describe_field(name: str, value: object) -> str:
    """One field of a Deployment in words; "" for what needs none."""
    if value is None:
        return {"speculation": "no speculation"}.get(name, "")
    if name == "weights":
        weights = units.WEIGHTS.get(value, str(value))  # type: ignore[call-overload]
        activations = units.ACTIVATIONS.get(value, "")  # type: ignore[call-overload]
        return f"{weights} weights" + (f", {activations}" if activations else "")
    if name == "kv_cache":
        return f"{units.KV_CACHE.get(value, str(value))} KV cache"  # type: ignore[call-overload]
    if name == "speculation":
        return _describe_speculation(value)
    if name == "keep_high_precision":
        modules = tuple(value) if isinstance(value, tuple | list) else (str(value),)
        return f"{len(modules)} module patterns kept at high precision" if modules else ""
    switches = {
        "chunked_prefill": ("chunked prefill", "no chunked prefill"),
        "prefix_reuse": ("prefix reuse", "no prefix reuse"),
        "cuda_graphs": ("CUDA graphs", "no CUDA graphs"),
        "attention_dp": ("attention data-parallel", "attention not data-parallel"),
    }
    if name in switches:
        return switches[name][0 if value else 1]
    words = {
        "batching": "{} batching",
        "tensor_parallel": "tensor parallel {}",
        "pipeline_parallel": "pipeline parallel {}",
        "expert_parallel": "expert parallel {}",
        "replicas": "replicas {}",
        "max_batch_size": "max batch size {}",
        "max_num_tokens": "max tokens per step {}",
        "scheduler_policy": "scheduler {}",
    }
    return words.get(name, name + " {}").format(value)


def _describe_speculation(value: object) -> str:
    data = value if isinstance(value, dict) else value.model_dump() if hasattr(value, "model_dump") else {}
    method = {"ngram": "n-gram", "draft": "draft-model", "eagle3": "EAGLE-3", "mtp": "MTP"}.get(data.get("method", ""), "")
    length = data.get("draft_len")
    return f"{method or value} speculation" + (f", draft length {length}" if length else "")


def describe_deployment(deployment: Deployment) -> str:
    """A whole deployment in words, leaving out what is at its usual value."""
    usual = Deployment()
    parts = [describe_field("weights", deployment.weights), describe_field("kv_cache", deployment.kv_cache)]
    parts.append(describe_field("batching", deployment.batching))
    for name in Deployment.model_fields:
        value = getattr(deployment, name)
        if name not in ("weights", "kv_cache", "batching") and value != getattr(usual, name):
            parts.append(describe_field(name, value))
    return ", ".join(part for part in parts if part)


def short_deployment(deployment: Deployment) -> str:
    """For a table: "FP8, KV FP8, TP2 x 4"."""
    parts = [units.WEIGHTS.get(deployment.weights, deployment.weights), "KV " + units.KV_CACHE[deployment.kv_cache]]
    for letters, size in (
        ("TP", deployment.tensor_parallel),
        ("PP", deployment.pipeline_parallel),
        ("EP", deployment.expert_parallel),
    ):
        if size > 1:
            parts.append(f"{letters}{size}")
    if deployment.attention_dp:
        parts.append("ADP")
    if deployment.replicas > 1:
        parts.append(f"{deployment.replicas} replicas")
    if deployment.batching == "static":
        parts.append("static batching")
    if deployment.speculation:
        parts.append(f"{deployment.speculation.method} {deployment.speculation.draft_len}")
    return ", ".join(parts)


# ---------------------------------------------------------------- the decision


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


def flip_when(fact: str, now: Scalar, at: float) -> str:
    """On which side of `at` the other plan wins: "at 11 or less"."""
    side = "less" if isinstance(now, int | float) and at < now else "more"
    return f"{units.given(at)} or {side}"
