"""What a policy forbade, with the gain it cost: each ban is lifted by itself and the planner asked again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from advisor.errors import NoPlanFits
from advisor.reasoner.candidates import LAYOUT, Option, fired_options
from advisor.reasoner.choice import aim, broken_limits, worth
from advisor.reasoner.decision import Decision, Search, decide
from advisor.reasoner.policing import GIVEN, broken_fields, loosened, option_ban, place, rule_ban
from advisor.reasoner.rejection import compare, describe
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Finding, Policy, Profile, Rejection

# A gain below this share is within what decides nothing.
NOTHING = 0.005


@dataclass(frozen=True)
class Asked:
    """A question with its policy, and the estimates made for it so far."""

    profile: Profile
    rulebook: Rulebook
    findings: tuple[Finding, ...]
    search: Search
    policy: Policy

    def decide(self, policy: Policy | None) -> Decision | None:
        """The decision under another policy; None where that leaves no way to serve."""
        try:
            return decide(self.profile, self.rulebook, self.findings, self.search, policy)
        except NoPlanFits:
            return None


def forbidden(asked: Asked, decision: Decision, others: tuple[Rejection, ...]) -> tuple[Rejection, ...]:
    """The rejections under a policy: what it forbade first, each with the plan's figures against those without the ban."""
    found = tuple(_rejection(asked, decision, option, ban) for option, ban in _banned(asked))
    names = {one.rule for one in found}
    silent = tuple(_marked(one, asked.policy) for one in others if one.rule not in names)
    return found + silent


def _banned(asked: Asked) -> Iterator[tuple[Option, str]]:
    """Each fired change that is forbidden, and each fired spread over GPUs whose values are limited."""
    policy, limited = asked.policy, set(asked.policy.deployment) & set(LAYOUT)
    for option in fired_options(asked.rulebook.rules, asked.findings):
        ban = option_ban(option, policy, asked.profile)
        fields = [field for field in option.changes if field in limited]
        if ban:
            yield option, ban
        elif fields:
            words = ", ".join(str(one).lower() for one in policy.deployment[fields[0]])
            yield option, f"{place(policy, f'deployment.{fields[0]}')} ({fields[0]}: {words})"


def _rejection(asked: Asked, decision: Decision, option: Option, ban: str) -> Rejection:
    freed = asked.decide(loosened(asked.policy, option))
    ours = decision.chosen.estimate
    said = f"forbidden by the policy {ban}"
    if freed is None or freed.chosen.deployment == decision.chosen.deployment:
        return Rejection(rule=option.rule, reason=f"{said}; it costs nothing here: the plan would be the same without it")
    with_it = freed.chosen.estimate
    figures = compare(with_it, ours, asked.profile, judged=False)
    gain = _gain(freed, decision, asked.profile)
    costs = f"it costs {gain}" if gain else "it costs nothing measurable"
    return Rejection(rule=option.rule, reason=f"{said}; {costs}: {figures}", estimate=with_it)


def _gain(freed: Decision, decision: Decision, profile: Profile) -> str:
    """How much better for the goal the plan would be without the ban; "" where nobody could measure it."""
    if freed.feasible and not decision.feasible:
        return f"a plan within the limits ({broken_limits(decision.chosen.estimate, profile.goal)})"
    goal = aim(profile)
    ours, theirs = (worth(one.chosen.estimate, goal) for one in (decision, freed))
    if not ours or theirs / ours - 1 < NOTHING:
        return ""
    what = {"latency": "of the request latency's inverse", "cost": "of the output tokens/s per GPU"}
    return f"{(theirs / ours - 1) * 100:.0f} % {what.get(goal.objective, 'of the output tokens/s')}"


def _marked(rejection: Rejection, policy: Policy) -> Rejection:
    """A remedy that is out by itself, and forbidden besides."""
    ban = rule_ban(rejection.rule, policy)
    if not ban:
        return rejection
    return rejection.model_copy(update={"reason": f"{rejection.reason}; forbidden by the policy besides: {ban}"})


def ways_out(asked: Asked) -> tuple[str, ...]:
    """No plan keeps the limits: the single permissions that would make one."""
    said = []
    for option, ban in _banned(asked):
        freed = asked.decide(loosened(asked.policy, option))
        if freed is not None and freed.feasible:
            said.append(f"allowing {option.rule} would do: the policy forbids it, {ban}")
    return tuple(said)


def cost_of_policy(asked: Asked, decision: Decision) -> tuple[str, ...]:
    """One sentence on what all bans together cost; nothing where the plan would be the same."""
    free = asked.decide(None)
    if free is None or not _is_outside(asked, free):
        return ()
    figures = compare(free.chosen.estimate, decision.chosen.estimate, asked.profile, judged=False)
    file = asked.policy.file or GIVEN
    return (f"Without the policy {file} the plan would be {describe(free.chosen.deployment)}: {figures}.",)


def _is_outside(asked: Asked, free: Decision) -> bool:
    """Whether a decision made without the policy is outside it."""
    banned = {option.rule for option, _ in _banned(asked)}
    return bool(broken_fields(free.chosen.deployment, asked.policy)) or bool(banned & set(free.chosen.candidate.rules))
