"""Speculation rules name a method; the draft length and the acceptance come from the estimator, once per method, for the plan
as it would be without speculation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from advisor.estimator.speculation import choose
from advisor.reasoner.baseline import load_of
from advisor.reasoner.candidates import Option
from advisor.reasoner.choice import Tried
from advisor.reasoner.condition import holds, parse
from advisor.reasoner.estimated import with_measured_acceptance
from advisor.types import Profile, Rule


def fill_speculation(profile: Profile, plain: Tried, options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The options with a whole Speculation in place of `{method: …}`; those that never gain are left out."""
    filled, model = [], with_measured_acceptance(profile.model, profile.measured)
    for option in options:
        wanted = option.changes.get("speculation")
        if not isinstance(wanted, dict):
            filled.append(option)
            continue
        speculation = choose(
            model, profile.gpu, plain.deployment, load_of(profile.traffic), profile.engine, (wanted["method"],), plain.estimate
        )
        if speculation is not None:
            filled.append(replace(option, changes=option.changes | {"speculation": speculation}))
    return tuple(filled)


def called_for(tried: Iterable[Tried], rules: tuple[Rule, ...]) -> list[Tried]:
    """Those whose speculation its rule wants at the batch that they themselves lead to.

    The rule was asked about the baseline; a plan on fewer replicas has more requests in each.
    """
    drafting = {rule.id: rule for rule in rules if "speculation" in rule.applies.deployment}
    return [one for one in tried if one.deployment.speculation is None or _wanted(one, drafting)]


def _wanted(one: Tried, drafting: dict[str, Rule]) -> bool:
    batch = (one.estimate.concurrency or 0.0) / one.deployment.replicas
    lines = [line for name in one.candidate.rules if name in drafting for line in drafting[name].when]
    return all(holds(parse(line), {"speculation.batch": batch}) is not False for line in lines)
