"""The search: every allowed deployment estimated, the best one for the goal taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from advisor.errors import NotPossible
from advisor.estimator.accuracy import expected_loss
from advisor.estimator.deployment import held
from advisor.estimator.remembering import by_identity
from advisor.reasoner.baseline import baseline_deployment, load_of
from advisor.reasoner.candidates import Candidate, Layout, Option, combine, fired_options, layout_of, layouts
from advisor.reasoner.choice import Tried, aim, choose, violations, worth
from advisor.reasoner.drafts import called_for, fill_speculation
from advisor.reasoner.estimated import Estimates, estimates_of
from advisor.reasoner.policing import broken_fields, nothing_allowed, option_ban
from advisor.reasoner.rulebook import Rulebook
from advisor.types import Deployment, Estimate, Finding, KvFormat, Load, Loss, Model, Policy, Profile, WeightFormat


@dataclass
class Search:
    """The estimates of one profile, each made once."""

    profile: Profile
    fitting: bool = False
    """only deployments that fit are estimated: whether a plan keeps every limit, and which, does not depend on the others"""
    estimates: dict[Deployment, Estimate] = field(default_factory=dict)

    @cached_property
    def load(self) -> Load:
        """The traffic as the estimator wants it."""
        return load_of(self.profile.traffic)

    @cached_property
    def made(self) -> Estimates:
        """The estimates that the facts of this profile have asked for."""
        return estimates_of(self.profile)

    def estimate(self, deployment: Deployment) -> Estimate | None:
        """The estimate, or None where the engine or the model does not allow the deployment."""
        found = self.estimates.get(deployment)
        if found is None:
            made = self.made.estimate(deployment, self.load)
            if made is None:
                return None
            metric = self.profile.goal.accuracy_metric
            loss = _loss(self.profile.model, metric, deployment.weights, deployment.kv_cache)
            found = self.estimates[deployment] = made.model_copy(update={"loss": loss})
        return found

    def fits(self, deployment: Deployment) -> bool:
        """Whether it is possible, and weights and one request fit."""
        try:
            return bool(held(self.profile.model, self.profile.gpu, deployment, self.load, self.profile.engine).most)
        except NotPossible:
            return False

    def try_all(self, baseline: Deployment, options: tuple[Option, ...], spread: tuple[Layout, ...]) -> list[Tried]:
        """Every possible candidate with its estimate."""
        found = []
        for candidate in combine(baseline, options, spread):
            if self.fitting and not self.fits(candidate.deployment):
                continue
            made = self.estimate(candidate.deployment)
            if made is not None:
                found.append(Tried(candidate, made))
        return found


@by_identity(256, values=3)
def _loss(model: Model, wanted: str, weights: WeightFormat, kv_cache: KvFormat) -> Loss | None:
    """On the task that the goal names where it is published, else on benchmark scores: what models of this size have."""
    named = expected_loss(model, weights, kv_cache, metric=wanted) if wanted.startswith("task:") else None
    return named or expected_loss(model, weights, kv_cache)


@dataclass(frozen=True)
class Decision:
    """What was chosen, from what."""

    baseline: Tried
    chosen: Tried
    feasible: bool
    """the chosen one keeps every limit"""
    tried: tuple[Tried, ...]
    options: tuple[Option, ...]


def decide(
    profile: Profile,
    rulebook: Rulebook,
    findings: tuple[Finding, ...],
    search: Search | None = None,
    policy: Policy | None = None,
) -> Decision:
    """Try every combination that the fired rules and the policy allow and take the best.

    Raises NotPossible: not even the baseline can be. NoPlanFits: the policy leaves no way to serve.
    """
    search = search or Search(profile)
    baseline = baseline_deployment(profile)
    first = search.estimate(baseline)
    if first is None:
        raise NotPossible(
            f"{profile.model.name} cannot be served on {profile.gpu.count} x {profile.gpu.name} at all",
            hint="try another GPU, or more of them (--gpu, --gpus)",
        )
    fired = fired_options(rulebook.rules, findings)
    if policy is not None:
        fired = tuple(option for option in fired if not option_ban(option, policy, profile))
    spread = layouts(profile.model, profile.gpu, baseline, fired, spare=profile.goal.objective == "cost")
    spread = tuple(dict.fromkeys((*spread, layout_of(baseline))))
    alone = Tried(Candidate(baseline, ()), first)
    plain = tuple(option for option in fired if "speculation" not in option.changes)
    tried = _permitted(search.try_all(baseline, plain, spread) or [alone], policy)
    if policy is not None and not tried:
        raise nothing_allowed(profile, policy)
    chosen, feasible = choose(tried, aim(profile), profile.traffic.concurrency)
    options = fill_speculation(profile, chosen, fired)
    if options != plain:
        tried = _permitted(called_for(search.try_all(baseline, options, spread), rulebook.rules) or [alone], policy)
        chosen, feasible = choose(tried, aim(profile), profile.traffic.concurrency)
    chosen = _without_useless_switches(chosen, options, search, policy)
    return Decision(alone, chosen, feasible, tuple(tried), options)


def _permitted(tried: list[Tried], policy: Policy | None) -> list[Tried]:
    return [one for one in tried if not broken_fields(one.deployment, policy)]


def _without_useless_switches(chosen: Tried, options: tuple[Option, ...], search: Search, policy: Policy | None) -> Tried:
    """Leave out each switch that makes the plan worse."""
    default = Deployment()
    for option in options:
        if not option.is_switch or option.rule not in chosen.candidate.rules:
            continue
        undone = chosen.deployment.model_copy(update={name: getattr(default, name) for name in option.changes})
        made = None if broken_fields(undone, policy) else search.estimate(undone)
        if made and _better(made, chosen.estimate, search.profile):
            rules = tuple(rule for rule in chosen.candidate.rules if rule != option.rule)
            chosen = Tried(Candidate(undone, rules), made)
    return chosen


def _better(one: Estimate, other: Estimate, profile: Profile) -> bool:
    goal = aim(profile)
    return len(violations(one, goal)) <= len(violations(other, goal)) and worth(one, goal) > worth(other, goal) * 1.001
