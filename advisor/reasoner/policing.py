"""How a policy limits the plan: the question, the rules' changes, the deployments; and what each ban costs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Literal

from advisor.errors import NoPlanFits, PolicyProblem
from advisor.estimator.memory import weight_bytes
from advisor.reasoner.baseline import baseline_deployment
from advisor.reasoner.candidates import LAYOUT, Option
from advisor.types import Deployment, Fallback, Goal, ModelBudget, Override, Policy, Profile, Rule, Scalar, Speculation

GIB = 2.0**30
GIVEN = "given as a value"
"""where a policy without a file stands"""
TRAINS = ("qat", "qad", "distill")
_PARTS = re.compile(r"(\d+)")


def govern(profile: Profile, policy: Policy) -> Profile:
    """The profile under a policy: the tighter of both limits, and an engine version that it allows where none was asked for.

    Raises PolicyProblem for an engine, a version or an accuracy metric that the policy does not allow.
    """
    engine = profile.engine
    sources = dict(profile.sources)
    if policy.engines:
        patterns = policy.engines.get(engine.name)
        if patterns is None:
            allowed = ", ".join(policy.engines)
            raise PolicyProblem(
                f"{engine.name} is not an engine of the policy", where=policy.file or GIVEN, hint=f"allowed: {allowed}"
            )
        if not version_allowed(engine.version, patterns):
            exact = [one for one in patterns if not set(one) & set("*<>=")]
            if not exact or not sources.get("engine.version", "").startswith("default"):
                where = place(policy, f"engines.{engine.name}")
                hint = f"allowed: {', '.join(patterns)} (--engine-version)"
                raise PolicyProblem(f"{engine.name} {engine.version} is not a version of the policy", where=where, hint=hint)
            engine = engine.model_copy(update={"version": exact[0]})
            sources["engine.version"] = f"policy {place(policy, f'engines.{engine.name}')}"
    goal, limited = _goal(profile, policy)
    sources |= limited
    return profile.model_copy(update={"goal": goal, "engine": engine, "sources": dict(sorted(sources.items()))})


def _goal(profile: Profile, policy: Policy) -> tuple[Goal, dict[str, str]]:
    goal = profile.goal
    changes: dict[str, object] = {}
    sources: dict[str, str] = {}
    for name in ("ttft_ms", "itl_ms"):
        limit, asked = getattr(policy, name), getattr(goal, name)
        if limit is not None and (asked is None or limit < asked):
            changes[name] = limit
            sources[f"goal.{name}"] = f"policy {place(policy, f'limits.{name}')}"
    budget = budget_for(policy, profile.model.name)
    if budget is not None:
        asked = goal.accuracy_budget_pct
        where = place(policy, f"accuracy {budget.model}")
        if asked is not None and goal.accuracy_metric != budget.metric:
            raise PolicyProblem(
                f"the policy limits {budget.metric} for {profile.model.name}, the question {goal.accuracy_metric}",
                where=where,
                hint=f"ask with --accuracy-metric {budget.metric}, or leave the budget to the policy",
            )
        if asked is None or budget.budget_pct < asked:
            changes |= {"accuracy_budget_pct": budget.budget_pct, "accuracy_metric": budget.metric}
            sources["goal.accuracy_budget_pct"] = f"policy {where}"
    return goal.model_copy(update=changes), sources


def budget_for(policy: Policy, model: str) -> ModelBudget | None:
    """The accuracy budget that a policy sets for a model's name: the first pattern that matches."""
    return next((one for one in policy.accuracy if fnmatchcase(model.lower(), one.model.lower())), None)


def version_allowed(version: str, patterns: tuple[str, ...]) -> bool:
    """Whether a version is in any of the patterns: "1.2.1", "1.2.*", ">=1.2"; no patterns: every version."""
    return not patterns or any(_in(version, pattern) for pattern in patterns)


def _in(version: str, pattern: str) -> bool:
    found = re.fullmatch(r"(>=|<=|==|>|<)\s*(.*)", pattern)
    if not found:
        return fnmatchcase(version, pattern)
    sign, limit = found.groups()
    left, right = _ordered(version), _ordered(limit)
    width = max(len(left), len(right))
    one, other = left + (0,) * (width - len(left)), right + (0,) * (width - len(right))
    return {">=": one >= other, "<=": one <= other, "==": one == other, ">": one > other, "<": one < other}[sign]


def _ordered(version: str) -> tuple[int, ...]:
    """The release as numbers; what follows them (rc1, .post1, +cu12) is left out."""
    released = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in _PARTS.findall(released.group())) if released else ()


def rule_ban(rule: str, policy: Policy) -> str:
    """Why a rule may not be used: the policy's place and word; "" when it may."""
    for one in policy.suppress:
        if one.rule == rule and not one.expired:
            return f"{place(policy, f'suppress {rule}')} (suppressed until {one.until}: {one.reason})"
    for pattern in policy.forbid:
        if fnmatchcase(rule, pattern):
            return f"{place(policy, f'forbid {pattern}')} (forbid: {pattern})"
    if policy.allow and not any(fnmatchcase(rule, pattern) for pattern in policy.allow):
        return f"{policy.file or GIVEN} (allow has no pattern that matches it)"
    return ""


def is_suppressed(rule: str, policy: Policy) -> bool:
    """Whether a policy switches a rule off by name today."""
    return any(one.rule == rule and not one.expired for one in policy.suppress)


def option_ban(option: Option, policy: Policy, profile: Profile) -> str:
    """Why a rule's change may not be made: the policy's place and word; "" when it may."""
    banned = rule_ban(option.rule, policy)
    if banned:
        return banned
    for field, value in option.changes.items():
        if field not in LAYOUT and not _value_allowed(policy, field, value):
            return _field_words(policy, field)
    return _disk_ban(option, policy, profile)


def _disk_ban(option: Option, policy: Policy, profile: Profile) -> str:
    """A checkpoint that would have to be written and is larger than the policy's disk."""
    weights = option.changes.get("weights")
    if policy.disk_gib is None or weights is None or str(weights) in profile.model.checkpoints:
        return ""
    size = weight_bytes(profile.model, Deployment.model_validate({"weights": weights})) / GIB
    if size <= policy.disk_gib:
        return ""
    where = place(policy, "spend.disk_gib")
    return f"{where} (disk_gib: {policy.disk_gib:g}; the {weights} checkpoint takes about {size:.0f} GiB, arithmetic)"


def broken_fields(deployment: Deployment, policy: Policy | None) -> tuple[str, ...]:
    """The policy's words for each field of a deployment that is outside it."""
    if policy is None:
        return ()
    fields = (field for field in policy.deployment if not _value_allowed(policy, field, getattr(deployment, field)))
    return tuple(_field_words(policy, field) for field in fields)


def _value_allowed(policy: Policy, field: str, value: object) -> bool:
    allowed = policy.deployment.get(field)
    if allowed is None:
        return True
    if field == "speculation":
        method = value.method if isinstance(value, Speculation) else value.get("method") if isinstance(value, dict) else None
        return method is None or method in allowed
    return value in allowed


def _field_words(policy: Policy, field: str) -> str:
    return f"{place(policy, f'deployment.{field}')} ({field}: {_shown(policy.deployment[field], field)})"


def _shown(values: tuple[Scalar, ...], field: str) -> str:
    words = [str(one).lower() if isinstance(one, bool) else str(one) for one in values]
    return ", ".join(words) or ("never" if field == "speculation" else "none")


def place(policy: Policy, key: str) -> str:
    """The file and line of a key of the policy."""
    line = policy.lines.get(key)
    return f"{policy.file}:{line}" if line else policy.file or GIVEN


def loosened(policy: Policy, option: Option) -> Policy:
    """The policy with just enough room for one change."""
    deployment = dict(policy.deployment)
    for field, value in option.changes.items():
        if field in LAYOUT:
            deployment.pop(field, None)
        elif field in deployment:
            room: Scalar = value.get("method") if isinstance(value, dict) else value  # type: ignore[assignment]
            deployment[field] = (*deployment[field], room)
    return policy.model_copy(
        update={
            "deployment": deployment,
            "allow": (*policy.allow, option.rule) if policy.allow else (),
            "forbid": tuple(pattern for pattern in policy.forbid if not fnmatchcase(option.rule, pattern)),
            "suppress": tuple(one for one in policy.suppress if one.rule != option.rule),
            "disk_gib": None,
        }
    )


def nothing_allowed(profile: Profile, policy: Policy) -> NoPlanFits:
    """The error for a policy that leaves no way to serve."""
    broken = "; ".join(broken_fields(baseline_deployment(profile), policy))
    return NoPlanFits(
        f"the policy allows no way to serve {profile.model.name} on {profile.gpu.count} x {profile.gpu.name}",
        where=broken or policy.file or GIVEN,
        hint="no rule that fires leads to what the policy allows: allow another value there, or take another checkpoint",
    )


def remedy_ban(rule: Rule, policy: Policy, *, unasked: bool) -> str:
    """Why a remedy that a measurement called up may not run: the policy's place and word; "" when it may.

    unasked: nobody is there to be asked.
    """
    banned = rule_ban(rule.id, policy)
    return banned or (training_ban(policy, unasked=unasked) if rule.applies.action in TRAINS else "")


def training_ban(policy: Policy, *, unasked: bool) -> str:
    """Why nothing may be trained: the policy's place and word; "" when it may. unasked: nobody is there to be asked."""
    if policy.training == "never" or (policy.training == "ask" and unasked):
        return f"{place(policy, 'training')} (training: {policy.training})"
    return ""


def check_places(places: tuple[str, ...], policy: Policy) -> None:
    """Raise PolicyProblem for a place that may not be told or given a result."""
    for one in places:
        if not any(fnmatchcase(one, pattern) for pattern in policy.tell):
            allowed = ", ".join(policy.tell) or "nobody beyond the output folder"
            hint = f"allowed: {allowed}"
            raise PolicyProblem(f"the policy lets no result go to {one}", where=place(policy, "tell"), hint=hint)


SpendKind = Literal["seconds", "gpu_seconds", "bytes"]


def spend_limits(policy: Policy) -> tuple[tuple[SpendKind, float, str], ...]:
    """What applying a plan may spend: of what, the most, and the policy's place and word."""
    wanted: tuple[tuple[str, SpendKind, float], ...] = (
        ("hours", "seconds", 3600.0),
        ("gpu_hours", "gpu_seconds", 3600.0),
        ("disk_gib", "bytes", GIB),
    )
    return tuple(
        (kind, most * unit, f"{place(policy, f'spend.{name}')} ({name}: {most:g})")
        for name, kind, unit in wanted
        if (most := getattr(policy, name)) is not None
    )


def permitted_fallbacks(
    fallbacks: tuple[Fallback, ...], rules: tuple[Rule, ...], policy: Policy
) -> tuple[tuple[Fallback, ...], tuple[tuple[str, str], ...]]:
    """The fallbacks that a policy allows, and (rule, ban) of the others."""
    known = {rule.id: rule for rule in rules}
    kept, banned = [], []
    for one in fallbacks:
        ban = remedy_ban(known[one.rule], policy, unasked=False)
        if ban:
            banned.append((one.rule, ban))
        else:
            kept.append(one)
    return tuple(kept), tuple(banned)


def overrides_of(policy: Policy) -> tuple[Override, ...]:
    """The suppressions as the report lists them."""
    return tuple(
        Override(
            rule=one.rule,
            change="suppressed",
            reason=one.reason,
            until=one.until,
            expired=one.expired,
            source=place(policy, f"suppress {one.rule}"),
        )
        for one in policy.suppress
    )
