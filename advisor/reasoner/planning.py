"""From findings to a Plan: decide, and say what each step adds, what was left out and what would change it."""

from __future__ import annotations

from advisor.errors import NoPlanFits, NotPossible
from advisor.reasoner.candidates import LAYOUT, Option
from advisor.reasoner.choice import Tried, aim, pareto, worth
from advisor.reasoner.decision import Decision, Search, decide
from advisor.reasoner.diagnosis import find_firing
from advisor.reasoner.fallbacks import find_fallbacks
from advisor.reasoner.flips import find_flips
from advisor.reasoner.forbidden import Asked, cost_of_policy, forbidden, ways_out
from advisor.reasoner.policing import permitted_fallbacks
from advisor.reasoner.rejection import rejections, verdict_sentence, warnings
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.shortfall import enough_gpus, find_shortfall
from advisor.types import Deployment, Estimate, Finding, Plan, Policy, Profile, Rejection, Step


def plan(profile: Profile, rulebook: Rulebook, findings: tuple[Finding, ...], policy: Policy | None = None) -> Plan:
    """The Plan for a profile, within a policy: a pure function of its arguments.

    Raises NotPossible when not even the baseline can be, NoPlanFits when the policy leaves no way to serve.
    """
    search = Search(profile)
    deciding = Rulebook(tuple(rule for rule in rulebook.rules if rule.applies.deployment))
    decision = decide(profile, rulebook, findings, search, policy)
    chosen, first = decision.chosen, decision.baseline
    steps = _steps(first.deployment, chosen, decision.options, search)

    def nearest(moved: Profile) -> tuple[Tried, bool] | None:
        found = _decided(moved, deciding, policy)
        return (found.chosen, found.feasible) if found else None

    left_out = rejections(profile, rulebook, findings, chosen, steps, decision.tried, search.estimate)
    fallbacks = find_fallbacks(profile, rulebook, chosen.deployment)
    gpus = None if decision.feasible else enough_gpus(profile, chosen.estimate, nearest)
    shortfall = () if decision.feasible else find_shortfall(profile, chosen, nearest, gpus)
    said = warnings(profile, findings, chosen)
    if policy is not None:
        asked = Asked(profile, rulebook, findings, search, policy)
        left_out = forbidden(asked, decision, left_out)
        fallbacks, banned = permitted_fallbacks(fallbacks, rulebook.rules, policy)
        left_out += tuple(Rejection(rule=rule, reason=f"forbidden by the policy {ban}") for rule, ban in banned)
        shortfall += () if decision.feasible else ways_out(asked)
        said += cost_of_policy(asked, decision)

    return Plan(
        goal=profile.goal,
        feasible=decision.feasible,
        verdict=verdict_sentence(profile, first.estimate, chosen, steps, decision.feasible),
        baseline_deployment=first.deployment,
        baseline=first.estimate,
        deployment=chosen.deployment,
        expected=chosen.estimate,
        steps=steps,
        rejected=left_out,
        alternatives=pareto(decision.tried, chosen, profile.goal),
        fallbacks=fallbacks,
        flips=find_flips(profile, chosen.deployment, chosen.estimate.loss, nearest) if decision.feasible else (),
        shortfall=shortfall,
        enough_gpus=gpus,
        warnings=said,
        tried=len(search.estimates),
    )


def _decided(profile: Profile, rulebook: Rulebook, policy: Policy | None) -> Decision | None:
    search = Search(profile, fitting=policy is None)  # a policy may leave only what does not fit, or nothing: not the same
    try:
        return decide(profile, rulebook, find_firing(profile, rulebook), search, policy)
    except (NotPossible, NoPlanFits):
        return None


def _steps(baseline: Deployment, chosen: Tried, options: tuple[Option, ...], search: Search) -> tuple[Step, ...]:
    """The chosen plan as steps, each the one that adds most to what stands already."""
    pending = _changes_by_rule(baseline, chosen, options)
    current, now = baseline, search.estimate(baseline)
    steps: list[Step] = []
    while pending and now is not None:
        made = [(rule, changes, search.estimate(current.model_copy(update=changes))) for rule, changes in pending.items()]
        possible = [(rule, changes, after) for rule, changes, after in made if after is not None]
        if not possible:
            break
        rule, changes, after = max(possible, key=lambda one: _progress(one[2], search.profile))
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
        layout = [option for option in options if option.is_layout]
        owner = next((option for option in layout if set(option.changes) & set(moved)), layout[0])
        changes[owner.rule] = moved
    return changes


def _progress(after: Estimate, profile: Profile) -> tuple[float, float]:
    """First towards fitting, then towards the goal."""
    memory = after.memory_gib
    over = 0.0 if after.fits else memory.total / memory.capacity
    return -over, worth(after, aim(profile)) or after.output_tokens_per_s or 0.0


def _plain(value: object) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
