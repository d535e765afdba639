"""Whether advice still holds: the advised deployment judged again on the facts of today.

Each fact that moved is put into the advised profile by itself and the planner asked again; the advice is stale where it
would now break a limit or the policy, cannot be served, or another plan is better by more than decides anything (3 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor import __version__, gathering, pipeline
from advisor.errors import NoPlanFits, NotPossible
from advisor.reasoner.choice import TIE, aim, broken_limits, violations, worth
from advisor.reasoner.decision import Search, decide
from advisor.reasoner.diagnosis import diagnose
from advisor.reasoner.policing import broken_fields, rule_ban
from advisor.reasoner.rejection import describe, show
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Engine, Finding, Flip, Policy, Profile, Report, Scalar, Value

NOTICEABLE = 0.01
"""a length, load or size that moved less is taken as the same"""
GPU_FACTS = ("name", "count", "memory_gib", "bandwidth_gb_s", "sm", "link", "mig")
# What describes the checkpoint's place or our knowledge of it, not the model.
NOT_THE_MODEL = {"folder", "notes", "drafts", "siblings", "checkpoints", "known"}


class Drift(Value):
    """Something that is not as it was when the advice was given."""

    fact: str
    advised: Scalar
    now: Scalar
    stale: bool
    """this alone makes the advice stale"""
    says: str
    """why, or why not"""


class Freshness(Value):
    """The judgement of a report."""

    fresh: bool
    drifts: tuple[Drift, ...]
    summary: str


def refresh(
    advised: Profile,
    *,
    model: str | None = None,
    gpu: str | None = None,
    gpus: int | None = None,
    here: bool = False,
    traffic: str | None = None,
    isl: float | None = None,
    osl: float | None = None,
    concurrency: float | None = None,
    rate: float | None = None,
    engine_version: str | None = None,
) -> Profile:
    """The advised profile with what is given here as it is now; a fact that is still not known stays as advised.

    here: the GPUs of this machine. Raises InputError as `pipeline.profile` does.
    """
    changes: dict[str, Any] = {}
    sources = dict(advised.sources)
    if model is not None:
        from advisor.profiler.model import read_model

        changes["model"], told = read_model(model)
        sources |= told
    if gpu is not None or here:
        changes["gpu"], told = gathering.find_gpus(gpu, gpus or (advised.gpu.count if gpu is not None else None))
        sources |= told
    elif gpus is not None:
        changes["gpu"] = advised.gpu.model_copy(update={"count": gpus})
        sources["gpu.count"] = "flag --gpus"
    flags = {"isl": isl, "osl": osl, "concurrency": concurrency, "rate": rate}
    if traffic is not None:
        found, told, measured = gathering.find_traffic(traffic, **flags)
        known = {"concurrency": advised.traffic.concurrency, "rate": advised.traffic.rate}
        if found.concurrency is None and found.rate is None:
            found = found.model_copy(update=known)
        changes |= {"traffic": found, "measured": advised.measured | measured}
        sources |= told
    elif any(value is not None for value in flags.values()):
        from advisor.profiler.traffic import adjust

        changes["traffic"], sources = adjust(advised.traffic, sources, **flags)
    if engine_version is not None:
        changes["engine"] = Engine.model_validate(advised.engine.model_dump() | {"version": engine_version})
        sources["engine.version"] = "flag --engine-version"
    return advised.model_copy(update=changes | {"sources": sources})


def check(
    report: Report, now: Profile, *, policy: Policy | str | Path | None = None, overlay: str | Path | None = None
) -> Freshness:
    """Whether a report's plan still holds for a profile of today, under a policy (the report's own without one).

    Raises RuleProblem, PolicyProblem.
    """
    now, rulebook, allowed = pipeline.govern(now, overlay=overlay, policy=policy if policy is not None else report.policy)
    judge = _Judge(report, rulebook, allowed)
    drifts = [*judge.policy_drifts(now), *judge.gate_drifts(), *judge.rule_drift(now), *judge.fact_drifts(now)]
    if not any(one.stale for one in drifts):
        drifts += judge.together(now, drifts)
    return _concluded(tuple(drifts))


def merged(found: Freshness | None, more: tuple[Drift, ...]) -> Freshness:
    """A judgement with further drifts; None: there was nothing to judge but these."""
    return _concluded((found.drifts if found else ()) + more)


def _concluded(drifts: tuple[Drift, ...]) -> Freshness:
    stale = sum(one.stale for one in drifts)
    if stale:
        makes = "makes" if stale == 1 else "make"
        return Freshness(fresh=False, drifts=drifts, summary=f"stale: {stale} of {_count(len(drifts))} {makes} it so")
    moved = f"; {_count(len(drifts))} within what it holds for" if drifts else "; nothing moved"
    return Freshness(fresh=True, drifts=drifts, summary=f"fresh: the advice holds{moved}")


def _count(number: int) -> str:
    return f"{number} drift" + ("s" if number != 1 else "")


@dataclass
class _Judge:
    """One report against the rules and the policy of today."""

    report: Report
    rulebook: Rulebook
    policy: Policy | None

    def policy_drifts(self, now: Profile) -> Iterator[Drift]:
        """Where the advised plan is outside the policy, or misses a limit that it sets."""
        if self.policy is None:
            return
        plan = self.report.plan
        for broken in broken_fields(plan.deployment, self.policy):
            yield Drift(fact="policy", advised=None, now=None, stale=True, says=f"the deployment is outside {broken}")
        for step in plan.steps:
            ban = rule_ban(step.rule, self.policy)
            if ban:
                yield Drift(fact="policy", advised=step.rule, now=None, stale=True, says=f"the rule is forbidden by {ban}")
        advised = self.report.profile.model_copy(update={"goal": now.goal})
        made = Search(advised).estimate(plan.deployment)
        for name in violations(made, now.goal) if made is not None and now.goal != self.report.profile.goal else ():
            limit = getattr(now.goal, "accuracy_budget_pct" if name == "accuracy" else name, None)
            yield Drift(
                fact=f"goal.{name}", advised=None, now=limit, stale=True, says="the advised deployment breaks this limit"
            )

    def gate_drifts(self) -> Iterator[Drift]:
        """What was applied and did not pass in its last round, and what was measured last and missed a limit."""
        decided = [change for change in self.report.changes if change.gate in ("passed", "failed")]
        for is_measurement in (False, True):
            last = next((one for one in reversed(decided) if (one.action == "measure") is is_measurement), None)
            if last is not None and last.gate == "failed":
                says = f"the gate failed when it was applied: {last.detail}"
                yield Drift(fact=f"gate {last.rule}", advised="passed", now="failed", stale=True, says=says)

    def rule_drift(self, now: Profile) -> Iterator[Drift]:
        """Another version of this program: the old question asked again."""
        before = self.report.versions.get("inference-advisor")
        if before != __version__:
            stale, says = self._judged(self.report.profile.model_copy(update={"goal": now.goal}))
            yield Drift(fact="inference-advisor", advised=before, now=__version__, stale=stale, says=says)

    def fact_drifts(self, now: Profile) -> Iterator[Drift]:
        """Each fact that moved, by itself."""
        then = self.report.profile
        for fact, advised, value, moved in _moved(then, now):
            stale, says = self._judged(moved.model_copy(update={"goal": now.goal}))
            if fact == "model":
                stale, says = True, f"accuracy and checkpoint are another model's; for this one: {says}"
            flips = self._flip_words(fact, advised, value)
            yield Drift(fact=fact, advised=advised, now=value, stale=stale, says=f"{says}{flips}")
        for name in ("ttft_ms", "itl_ms"):
            measured, limit = now.measured.get(name), getattr(now.goal, name)
            if isinstance(measured, (int, float)) and measured != then.measured.get(name) and limit is not None:
                over = measured > limit
                says = f"measured {show(measured)} ms, {'above' if over else 'within'} the limit of {show(limit)} ms"
                yield Drift(
                    fact=f"measured.{name}",
                    advised=getattr(self.report.plan.expected, name),
                    now=measured,
                    stale=over,
                    says=says,
                )

    def together(self, now: Profile, drifts: list[Drift]) -> Iterator[Drift]:
        """Facts that are harmless one by one and not all at once."""
        if len(drifts) < 2:
            return
        stale, says = self._judged(now)
        if stale:
            yield Drift(fact="all together", advised=None, now=None, stale=True, says=says)

    def _judged(self, profile: Profile) -> tuple[bool, str]:
        plan = self.report.plan
        search = Search(profile)
        used = plan.deployment.tensor_parallel * plan.deployment.pipeline_parallel * plan.deployment.replicas
        if used > profile.gpu.count:
            return True, f"the advised deployment takes {used} GPUs, there are {profile.gpu.count}"
        ours = search.estimate(plan.deployment)
        if ours is None:
            return True, "the engine or the model no longer allows the advised deployment"
        findings = diagnose(profile, self.rulebook)
        impossible = self._impossible(findings)
        if impossible:
            return True, impossible
        try:
            chosen = decide(profile, self.rulebook, findings, search, self.policy)
        except (NotPossible, NoPlanFits) as error:
            return True, error.what
        broken = broken_limits(ours, profile.goal)
        then = describe(chosen.chosen.deployment)
        if broken and (plan.feasible or chosen.feasible):
            return True, f"the advised deployment breaks the limit on {broken}; the plan would be {then}"
        if chosen.chosen.deployment == plan.deployment or broken:
            return False, "the same plan"
        goal = aim(profile)
        gain = worth(chosen.chosen.estimate, goal) / (worth(ours, goal) or float("inf")) - 1
        if gain <= TIE:
            return False, f"another plan would gain {max(gain, 0):.1%}, too little to decide anything"
        what = {"latency": "request rate of one stream", "cost": "output tokens/s per GPU"}
        better = f"{gain:+.0%} {what.get(goal.objective, 'output tokens/s')}"
        return True, f"the plan would be {then}: {better} on the estimate"

    def _impossible(self, findings: tuple[Finding, ...]) -> str:
        """A step of the plan whose remedy is not possible any more; "" when all are."""
        steps = {step.rule for step in self.report.plan.steps}
        for finding in findings:
            if finding.rule in steps and finding.verdict == "blocked":
                failing = next((one for one in finding.evidence if one.holds is False), None)
                why = f": {failing.condition} (it is {show(failing.left)})" if failing else ""
                return f"{finding.rule} is not possible there{why}"
        return ""

    def _flip_words(self, fact: str, advised: Scalar, now: Scalar) -> str:
        """The flips of the plan that a fact passed, or the nearest."""
        flips = [flip for flip in self.report.plan.flips if flip.fact == fact]
        if not flips or not isinstance(now, (int, float)):
            return ""
        passed = [flip for flip in flips if _passed(flip, now)]
        if passed:
            return f"; past the flip at {show(passed[0].at)}: {passed[0].then}"
        return f"; the report's flips are at {' and '.join(show(flip.at) for flip in flips)}"


def _passed(flip: Flip, now: float) -> bool:
    if flip.now is None:
        return False
    return now >= flip.at if flip.at > flip.now else now <= flip.at


def _moved(then: Profile, now: Profile) -> Iterator[tuple[str, Scalar, Scalar, Profile]]:
    """(fact, as advised, now, the advised profile with what it belongs to as it is now)."""
    for name in GPU_FACTS:
        before, after = getattr(then.gpu, name), getattr(now.gpu, name)
        if after is not None and _differs(before, after):
            yield f"gpu.{name}", before, after, then.model_copy(update={"gpu": now.gpu})
            break
    changed = _model_differences(then, now)
    if changed:
        yield "model", then.model.name, f"{now.model.name}: {changed}", then.model_copy(update={"model": now.model})
    if then.engine.name != now.engine.name or then.engine.version != now.engine.version:
        moved = then.model_copy(update={"engine": now.engine})
        yield "engine.version", f"{then.engine.name} {then.engine.version}", f"{now.engine.name} {now.engine.version}", moved
    for fact, before, after, traffic in _traffic_moved(then, now):
        yield fact, before, after, then.model_copy(update={"traffic": traffic})


def _traffic_moved(then: Profile, now: Profile) -> Iterator[tuple[str, Scalar, Scalar, Any]]:
    old, new = then.traffic, now.traffic
    for name in ("isl", "osl"):
        before, after = getattr(old, name).mean, getattr(new, name).mean
        if _differs(before, after):
            yield (
                f"traffic.{name}_mean",
                before,
                after,
                old.model_copy(update={name: getattr(new, name), "lengths": new.lengths}),
            )
    if _differs(old.concurrency, new.concurrency) or (new.concurrency is None and _differs(old.rate, new.rate)):
        fact = "concurrency" if new.concurrency is not None else "rate"
        load = {"concurrency": new.concurrency, "rate": new.rate}
        yield f"traffic.{fact}", getattr(old, fact), getattr(new, fact), old.model_copy(update=load)
    if new.shared_prefix is not None and _differs(old.shared_prefix, new.shared_prefix):
        moved = old.model_copy(update={"shared_prefix": new.shared_prefix})
        yield "traffic.shared_prefix", old.shared_prefix, new.shared_prefix, moved


def _differs(before: Scalar, after: Scalar) -> bool:
    if isinstance(before, (int, float)) and isinstance(after, (int, float)) and before:
        return abs(after / before - 1) > NOTICEABLE
    return before != after


def _model_differences(then: Profile, now: Profile) -> str:
    """The fields of the architecture and the checkpoint that are not the same, at most three."""
    before = then.model.model_dump(exclude=NOT_THE_MODEL)
    after = now.model.model_dump(exclude=NOT_THE_MODEL)
    names = [name for name, value in after.items() if value != before[name]]
    if names == ["name"]:
        return ""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
