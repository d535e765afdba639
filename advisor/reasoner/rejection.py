"""Why a remedy is not in the plan, in numbers; the plan's verdict in one sentence; and its warnings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from advisor.reasoner.candidates import LAYOUT, changes_of
from advisor.reasoner.choice import TIE, Tried, aim, broken_limits, violations, worth
from advisor.reasoner.fallbacks import LEAVES
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.support import lookup
from advisor.types import Deployment, Estimate, Evidence, Finding, Profile, Rejection, Rule, Speculation, Step

Estimator = Callable[[Deployment], Estimate | None]

ORDER = ("fires", "blocked", "silent", "unknown")
# Differences that nobody could measure are not worth a reader's time.
NOTHING = 0.005

FORMAT_NAMES = {
    "bf16": "BF16",
    "fp8": "FP8",
    "fp8_rowwise": "FP8 (per row)",
    "fp8_block": "FP8 (block scales)",
    "int8": "INT8",
    "int8_sq": "INT8 SmoothQuant",
    "int8_wo": "INT8 weight-only",
    "int4_awq": "INT4 AWQ weight-only",
    "int4_gptq": "INT4 GPTQ weight-only",
    "w4a8_awq": "W4A8 AWQ",
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
}


def rejections(
    profile: Profile,
    rulebook: Rulebook,
    findings: tuple[Finding, ...],
    chosen: Tried,
    steps: Sequence[Step],
    tried: Sequence[Tried],
    estimate: Estimator,
) -> tuple[Rejection, ...]:
    """Every rule that would change the deployment and does not, with the plan's figures against the figures with it."""
    done = {step.rule for step in steps} | set(chosen.candidate.rules)
    verdicts = {finding.rule: finding for finding in findings}
    found = []
    for rule in rulebook.rules:
        finding = verdicts.get(rule.id)
        if finding is None or not rule.applies.deployment or rule.id in done or rule.applies.action in LEAVES:
            continue
        if _already_so(rule, chosen.deployment) or (finding.verdict == "fires" and set(rule.applies.deployment) <= set(LAYOUT)):
            continue
        with_it = _with(rule, chosen, tried, profile, estimate) if _possible(finding, rule) else None
        reason = _reason(finding, rule, with_it, chosen.estimate, profile)
        found.append((ORDER.index(finding.verdict), Rejection(rule=rule.id, reason=reason, estimate=with_it)))
    return tuple(rejection for _, rejection in sorted(found, key=lambda one: (one[0], one[1].rule)))


def _already_so(rule: Rule, deployment: Deployment) -> bool:
    wanted = {name: value for name, value in changes_of(rule).items() if name not in LAYOUT and name != "speculation"}
    return bool(wanted) and all(getattr(deployment, name) == value for name, value in wanted.items())


def _possible(finding: Finding, rule: Rule) -> bool:
    """Whether machine, engine and model allow the remedy; figures of an impossible one would promise what cannot be had."""
    if finding.verdict == "blocked":
        return False
    failing = [one.condition for one in finding.evidence if one.holds is False and one.condition in rule.requires]
    return not any(line.endswith("== native") or line.startswith("model.") for line in failing)


def _with(rule: Rule, chosen: Tried, tried: Sequence[Tried], profile: Profile, estimate: Estimator) -> Estimate | None:
    """The chosen plan with this rule's change; where that was not allowed, the best that was tried with the rule."""
    using = [one for one in tried if rule.id in one.candidate.rules]
    alike = [one for one in using if _same_but(one.deployment, chosen.deployment, rule)]
    if using:
        goal = aim(profile)
        best = max(using, key=lambda one: (-len(violations(one.estimate, goal)), worth(one.estimate, goal)))
        return (alike or [best])[0].estimate
    changes = {name: value for name, value in changes_of(rule).items() if name not in LAYOUT}
    if not changes or isinstance(changes.get("speculation"), dict):
        return None
    return estimate(chosen.deployment.model_copy(update=changes))


def _same_but(one: Deployment, other: Deployment, rule: Rule) -> bool:
    fields = set(Deployment.model_fields) - set(rule.applies.deployment)
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _reason(finding: Finding, rule: Rule, with_it: Estimate | None, plan: Estimate, profile: Profile) -> str:
    """What the verdict rests on, then the figures."""
    parts = []
    if finding.verdict == "silent":
        parts.append(f"its problem is not here: {_list(finding.evidence, failing=True, names=rule.when)}")
        if not _possible(finding, rule):
            parts.append(f"nor is it possible: {_list(finding.evidence, failing=True, names=rule.requires)}")
    elif finding.verdict == "blocked":
        parts.append(f"not possible here: {_list(finding.evidence, failing=True, names=rule.requires)}")
    elif finding.verdict == "unknown":
        unknown = [one for one in finding.evidence if one.holds is None]
        parts.append("not known: " + "; ".join(f"{one.condition} ({one.find_out or 'measure it'})" for one in unknown))
    if finding.verdict != "fires" and with_it is not None and _same(with_it, plan):
        return "; ".join([*parts, "it would change nothing here"])
    figures = compare(with_it, plan, profile)
    if figures:
        parts.append(figures)
    elif finding.verdict == "fires":
        parts.append("the engine or the model does not allow it together with the rest of the plan, or it gains nothing here")
    return "; ".join(parts)


def _list(evidence: tuple[Evidence, ...], *, failing: bool, names: tuple[str, ...]) -> str:
    wanted = [one for one in evidence if one.condition in names and one.holds is (not failing)]
    return ", ".join(f"{one.condition} (it is {show(one.left)}{_other_side(one)})" for one in wanted) or "no condition holds"


def _other_side(one: Evidence) -> str:
    literal = one.condition.split()[-1]
    return "" if literal == str(one.right) or show(one.right) in one.condition else f" against {show(one.right)}"


def _same(one: Estimate, other: Estimate) -> bool:
    pairs = ((one.output_tokens_per_s, other.output_tokens_per_s), (one.itl_ms, other.itl_ms), (one.ttft_ms, other.ttft_ms))
    return one.fits == other.fits and all(a == b or (a and b and abs(a / b - 1) < NOTHING) for a, b in pairs)


def compare(with_it: Estimate | None, plan: Estimate, profile: Profile, *, judged: bool = True) -> str:
    """The figures of a plan with another remedy against the plan's own; judged: say too why the plan stands."""
    if with_it is None:
        return ""
    memory = with_it.memory_gib
    if not with_it.fits:
        return f"would need {memory.total:.1f} GiB per GPU of {memory.capacity:.1f}"
    parts = []
    ours, theirs = plan.output_tokens_per_s, with_it.output_tokens_per_s
    if ours and theirs:
        parts.append(f"would give {show(theirs)} output tokens/s against {show(ours)} ({(theirs / ours - 1) * 100:+.0f} %)")
    if plan.itl_ms and with_it.itl_ms:
        parts.append(f"ITL {show(with_it.itl_ms)} ms against {show(plan.itl_ms)}")
    if plan.ttft_ms and with_it.ttft_ms and abs(with_it.ttft_ms / plan.ttft_ms - 1) > 0.05:
        parts.append(f"TTFT {show(with_it.ttft_ms)} ms against {show(plan.ttft_ms)}")
    if with_it.loss and plan.loss and with_it.loss.high_pct > plan.loss.high_pct:
        parts.append(f"expected {with_it.loss.metric} loss {_range(with_it)} against {_range(plan)}")
    wanted = profile.traffic.concurrency
    if wanted and with_it.max_concurrency is not None and with_it.max_concurrency < wanted:
        held = with_it.max_concurrency
        parts.append(f"its cache holds {held} of {show(wanted)} requests: it would do up to {held} at once")
    broken = broken_limits(with_it, profile.goal)
    if broken:
        parts.append(f"breaks the limit on {broken}")
    elif judged and theirs and ours:
        parts += _judgement(worth(with_it, aim(profile)), worth(plan, aim(profile)))
    return ", ".join(parts)


def _judgement(theirs: float, ours: float) -> list[str]:
    """Why the plan stands against a remedy whose figures are not worse."""
    if theirs * (1 - TIE) > ours:
        return ["faster by the estimate alone: its rule does not call for it at this load"]
    tied = theirs >= ours * (1 - TIE)
    return ["no better within the estimator's error, so the simpler or less lossy one is taken"] if tied else []


def _range(estimate: Estimate) -> str:
    loss = estimate.loss
    return f"{loss.low_pct:.1f} to {loss.high_pct:.1f} %" if loss else "unknown"


def show(value: object) -> str:
    """A value as people read it: three significant figures, thousands separated."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        if value != value or abs(value) >= 1e15:
            return str(value)
        if abs(value) >= 1000 or value == int(value):
            return f"{value:,.0f}"
        return f"{value:.3g}"
    return str(value)


def describe(deployment: Deployment) -> str:
    """A deployment in a few words: "FP8 weights, FP8 KV cache, in-flight batching on 2 GPUs (TP2)"."""
    parts = [f"{FORMAT_NAMES[deployment.weights]} weights", f"{FORMAT_NAMES[deployment.kv_cache]} KV cache"]
    parts.append(f"{deployment.batching} batching")
    if deployment.speculation is not None:
        parts.append(describe_speculation(deployment.speculation))
    ways = []
    if deployment.tensor_parallel > 1:
        ways.append(f"{'attention-DP' if deployment.attention_dp else 'TP'}{deployment.tensor_parallel}")
    if deployment.pipeline_parallel > 1:
        ways.append(f"PP{deployment.pipeline_parallel}")
    if deployment.expert_parallel > 1:
        ways.append(f"EP{deployment.expert_parallel}")
    if deployment.replicas > 1:
        ways.append(f"{deployment.replicas} replicas")
    return ", ".join(parts) + (f"; {' x '.join(ways)}" if ways else "")


def describe_speculation(speculation: Speculation) -> str:
    """ "speculative decoding with EAGLE-3, draft length 3"."""
    method = {"ngram": "n-grams", "draft": "a draft model", "eagle3": "EAGLE-3", "mtp": "MTP"}[speculation.method]
    return f"speculative decoding with {method}, draft length {speculation.draft_len}"


def verdict_sentence(profile: Profile, before: Estimate, chosen: Tried, steps: Sequence[Step], feasible: bool) -> str:
    """The plan in one sentence."""
    after = chosen.estimate
    machine = f"{profile.gpu.count} x {profile.gpu.name}"
    what = describe(chosen.deployment)
    if not after.fits:
        return f"{profile.model.name} does not fit on {machine}; nearest is {what}."
    if not feasible:
        if list(violations(after, profile.goal)) == ["load"]:
            rate, osl = show(profile.traffic.rate), profile.traffic.osl.mean
            served = f"serves {show((after.output_tokens_per_s or 0.0) / osl)} of the {rate} requests/s that arrive"
            return f"No plan keeps up with the load on {machine}; the nearest is {what}, which {served}."
        broken = broken_limits(after, profile.goal)
        return f"No plan keeps every limit on {machine}; the nearest is {what}, which breaks the limit on {broken}."
    figures = [f"{show(after.output_tokens_per_s)} output tokens/s"]
    if before.fits and before.output_tokens_per_s and after.output_tokens_per_s:
        times = after.output_tokens_per_s / before.output_tokens_per_s
        same = "as many as arrive" if aim(profile) != profile.goal else "as today"
        more = f"{times:.2f} x today's {show(before.output_tokens_per_s)}"
        figures[0] += f" ({same if abs(times - 1) < NOTHING else more})"
    elif not before.fits:
        figures[0] += " (today's form does not fit)"
    if after.itl_ms is not None:
        today = f" (today's {show(before.itl_ms)})" if before.itl_ms and aim(profile).objective == "latency" else ""
        figures.append(f"ITL {show(after.itl_ms)} ms{today}")
    if after.ttft_ms is not None:
        figures.append(f"TTFT {show(after.ttft_ms)} ms")
    doing = "Keep" if not steps else "Serve"
    return f"{doing} {profile.model.name} on {machine} with {what}: about {', '.join(figures)}, estimated."


def warnings(profile: Profile, findings: tuple[Finding, ...], chosen: Tried) -> tuple[str, ...]:
    """What the rules that change nothing say when they fire, and what the estimate of the plan cannot know."""
    said = [*_doubts_of_the_gpu(profile)]
    said += [f"{finding.problem} {finding.remedy} [{finding.rule}]" for finding in findings if _is_warning(finding)]
    loss = chosen.estimate.loss
    if chosen.deployment.weights != "bf16" and loss is None:
        said.append("No published accuracy figure for this format and model: measure before serving.")
    return tuple(said)


def _doubts_of_the_gpu(profile: Profile) -> list[str]:
    """That nobody lists this GPU for the engine, and that its 16-bit format is not the one that the plan names."""
    gpu, engine = profile.gpu, profile.engine
    said = []
    support, source = lookup(engine.name, engine.version, gpu.sm, "weights", "bf16")
    if support != "native":
        said.append(
            f"Whether {engine.name} {engine.version} runs on {gpu.name} at all is {support} ({source}): "
            "load a small model with it before you rely on this plan."
        )
    if gpu.tflops.bf16 is None and gpu.tflops.fp16 is not None:
        said.append(f"{gpu.name} does not compute in BF16: where the plan says BF16 serve in FP16, after checking the outputs.")
    return said


def _is_warning(finding: Finding) -> bool:
    return finding.verdict == "fires" and finding.safety == "manual"
