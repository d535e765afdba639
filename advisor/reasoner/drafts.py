"""Speculation rules name a method; the draft length and the acceptance come from the estimator, once per method, for the plan
as it would be without speculation."""

from __future__ import annotations

from dataclasses import replace

from advisor.estimator.speculation import choose
from advisor.reasoner.baseline import load_of
from advisor.reasoner.candidates import Option
from advisor.types import Deployment, Profile


def fill_speculation(profile: Profile, plain: Deployment, options: tuple[Option, ...]) -> tuple[Option, ...]:
    """The options with a whole Speculation in place of `{method: …}`; those that never gain are left out."""
    filled = []
    for option in options:
        wanted = option.changes.get("speculation")
        if not isinstance(wanted, dict):
            filled.append(option)
            continue
        speculation = choose(profile.model, profile.gpu, plain, load_of(profile.traffic), profile.engine, (wanted["method"],))
        if speculation is not None:
            filled.append(replace(option, changes=option.changes | {"speculation": speculation}))
    return tuple(filled)
