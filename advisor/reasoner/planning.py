"""From findings to a Plan: try every allowed deployment, take the best for the goal, and say what each step adds."""

from __future__ import annotations

from dataclasses import dataclass, field

from advisor.errors import NotPossible
from advisor.estimator.deployment import estimate
from advisor.reasoner.baseline import baseline_deployment, load_of
from advisor.reasoner.candidates import LAYOUT, Candidate, Layout, Option, combine, fired_options, layout_of, layouts
from advisor.reasoner.choice import Tried, choose, pareto, violations, worth
from advisor.reasoner.drafts import fill_speculation
from advisor.reasoner.fallbacks import fallbacks
from advisor.reasoner.flips import flips
from advisor.reasoner.rejection import rejections, verdict_sentence, warnings
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.shortfall import shortfall
from advisor.types import Deployment, Estimate, Finding, Plan, Profile, Step


@dataclass
class Search:
    """The estimates of one profile, each made once."""

    profile: Profile
    estimates: dict[str, Estimate] = field(default_factory=dict)

    def estimate(self, deployment: Deployment) -> Estimate | None:
        """The estimate, or None where the engine or the model does not allow the deployment."""
        key = deployment.model_dump_json()
        if key not in self.estimates:
            profile = self.profile
            try:
                self.estimates[key] = estimate(profile.model, profile.gpu, deployment, load_of(profile.traffic), profile.engine)
            except NotPossible:
                return None
        return self.estimates[key]

    def try_all(self, baseline: Deployment, options: tuple[Option, ...], spread: tuple[Layout, ...]) -> list[Tried]:
        """Every possible candidate with its estimate."""
        found = []
        for candidate in combine(baseline, options, spread):
            made = self.estimate(candidate.deployment)
            if made is not None:
                found.append(Tried(candidate, made))
        return found


def plan(profile: Profile, rulebook: Rulebook, findings: tuple[Finding, ...]) -> Plan:
    """The Plan for a profile: a pure function of its arguments. Raises NotPossible when not even the baseline can be estimated."""
    search = Search(profile)
    baseline_one, chosen, feasible, tried, options = decide(profile, rulebook, findings, search)
    steps = _steps(baseline_one.deployment, chosen, options, search, profile)
    rejected = rejections(profile, rulebook, findings, chosen, steps, tried, search.estimate)
    return Plan(
        goal=profile.goal,
        feasible=feasible,
        verdict=verdict_sentence(profile, baseline_one.estimate, chosen, steps, feasible),
        baseline_deployment=baseline_one.deployment,
        baseline=baseline_one.estimate,
        deployment=chosen.deployment,
        expected=chosen.estimate,
        steps=steps,
        rejected=rejected,
        alternatives=pareto(tried, chosen, profile.goal),
        fallbacks=fallbacks(profile, rulebook, chosen.deployment),
        flips=flips(profile, rulebook, chosen.deployment),
        shortfall=() if feasible else shortfall(profile, rulebook, chosen),
        warnings=warnings(profile, findings, chosen),
        tried=len(search.estimates),
    )


def decide(
    profile: Profile, rulebook: Rulebook, findings: tuple[Finding, ...], search: Search
) -> tuple[Tried, Tried, bool, list[Tried], tuple[Option, ...]]:
    """The baseline, the chosen candidate, whether it keeps every limit, all that was tried, and the options it came from."""
    baseline = baseline_deployment(profile)
    first = search.estimate(baseline)
    if first is None:
        raise NotPossible(
            f"{profile.model.name} cannot be served on {profile.gpu.count} x {profile.gpu.name} at all",
            hint="try another GPU, or more of them (--gpu, --gpus)",
        )
    fired = fired_options(rulebook.rules, findings)
    spread = layouts(profile.model, profile.gpu, fired, spare=profile.goal.objective == "cost") or (layout_of(baseline),)
    alone = Tried(Candidate(baseline, ()), first)
    plain = tuple(option for option in fired if "speculation" not in option.changes)
    chosen, feasible = choose([*search.try_all(baseline, plain, spread), alone], profile.goal)
    options = fill_speculation(profile, chosen.deployment, fired)
    tried = [*search.try_all(baseline, options, spread), alone]
    chosen, feasible = choose(tried, profile.goal)
    chosen = _without_useless_switches(chosen, options, search, profile)
    return alone, chosen, feasible, tried, options


def _without_useless_switches(chosen: Tried, options: tuple[Option, ...], search: Search, profile: Profile) -> Tried:
    """Leave out each switch that makes the plan worse."""
    for option in options:
        if not option.is_switch or option.rule not in chosen.candidate.rules:
            continue
        original = Deployment()
        undone = chosen.deployment.model_copy(update={name: getattr(original, name) for name in option.changes})
        made = search.estimate(undone)
        if made and _better(made, chosen.estimate, profile):
            rules = tuple(rule for rule in chosen.candidate.rules if rule != option.rule)
            chosen = Tried(Candidate(undone, rules), made)
    return chosen


def _better(one: Estimate, other: Estimate, profile: Profile) -> bool:
    one_broken, other_broken = violations(one, profile.goal), violations(other, profile.goal)
    return len(one_broken) <= len(other_broken) and worth(one, profile.goal) > worth(other, profile.goal) * 1.001


def _steps(
    baseline: Deployment, chosen: Tried, options: tuple[Option, ...], search: Search, profile: Profile
) -> tuple[Step, ...]:
    """The chosen plan as steps, each the one that adds most to what stands already."""
    pending = _changes_by_rule(baseline, chosen, options)
    current, now = baseline, search.estimate(baseline)
    steps: list[Step] = []
    while pending and now is not None:
        made = [(rule, changes, search.estimate(current.model_copy(update=changes))) for rule, changes in pending.items()]
        possible = [(rule, changes, after) for rule, changes, after in made if after is not None]
        if not possible:
            break
        rule, changes, after = max(possible, key=lambda one: _progress(one[2], profile))
        alone = search.estimate(baseline.model_copy(update=changes))
        undo = ", ".join(f"{name}: {_plain(getattr(baseline, name))}" for name in changes)
        steps.append(Step(rule=rule, changes=changes, before=now, after=after, alone=alone or after, undo=f"set {undo}"))
        current, now = current.model_copy(update=changes), after
        del pending[rule]
    return tuple(steps)


def _changes_by_rule(baseline: Deployment, chosen: Tried, options: tuple[Option, ...]) -> dict[str, dict[str, object]]:
    """Rule -> the fields it sets in the chosen plan; a spread over GPUs belongs to the fired rule that names it."""
    changes = {option.rule: dict(option.changes) for option in options if option.rule in chosen.candidate.rules}
    moved: dict[str, object] = {
        name: getattr(chosen.deployment, name) for name in LAYOUT if getattr(chosen.deployment, name) != getattr(baseline, name)
    }
    if moved:
        owners = [option.rule for option in options if option.is_layout and set(option.changes) & set(moved)]
        changes[owners[0] if owners else LAYOUT_RULE] = moved
    return changes


LAYOUT_RULE = "model-exceeds-gpu/tensor-parallel"


def _progress(after: Estimate, profile: Profile) -> tuple[float, float]:
    """First towards fitting, then towards the goal."""
    memory = after.memory_gib
    over = 0.0 if after.fits else memory.total / memory.capacity
    return -over, worth(after, profile.goal)


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
