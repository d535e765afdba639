"""`advise draft`: make a draft where none exists, measure it on this machine, and ask the rules again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from advisor import pipeline
from advisor.acceptance import facts_of, foresee, judge, with_measured
from advisor.errors import InputError, PolicyProblem
from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.bookkeeping.spending import Limit, Spending, Spent
from advisor.executor.quantizing import causal_model
from advisor.executor.speculating.drafting import Order
from advisor.executor.speculating.making import Making, check_making
from advisor.executor.speculating.speculation import check_order, measure
from advisor.library import write_whole
from advisor.types import Policy, Profile, Report


def draft(
    profile: Profile,
    out: Path,
    *,
    overlay: str | Path | None = None,
    policy: Policy | str | Path | None = None,
    command: tuple[str, ...] = (),
    making: Mapping[str, Any] | None = None,
    unasked: bool = False,
    log_format: Literal["text", "json"] = "text",
    stream: IO[str] | None = None,
    **options: Any,
) -> Report:
    """Measure drafts, ask the rules again, write report.json, report.html and measured.json into `out`.

    options: the fields of Order but target and engine. making: those of Making, for a draft that is to be made first,
    within the policy; unasked: nobody is there to be asked. The journal in `out` keeps finished work: the same question goes
    on where it was stopped.
    Raises InputError, ModelProblem, PolicyProblem, MissingExtra, NotPossible, FileProblem.
    """
    from advisor.reasoner.policing import spend_limits
    from advisor.reasoner.policy_file import read_policy
    from advisor.report.rendering import render

    if profile.model.folder is None:
        hint = "download it and give the folder with its files"
        raise InputError(f"{profile.model.name} is not on this machine", where="--model", hint=hint)
    order = Order(target=Path(profile.model.folder), engine=profile.engine.name, **options)
    make = None if making is None else Making(**making)
    check_order(order)
    allowed = policy if policy is None or isinstance(policy, Policy) else read_policy(Path(policy))
    if make is not None:
        _check_training(allowed, unasked=unasked)
        check_making(make, order)
    with Journal(out) as journal:
        progress = Progress(log_format, stream)
        if allowed is not None:
            limits = [Limit(*one) for one in spend_limits(allowed)]
            progress.spending = Spending(journal, limits, causal_model.gpus())
        try:
            measured = measure(order, journal, progress, make)
        except Spent as limit:
            hint = "what was made is kept: the same command goes on once more is allowed"
            raise PolicyProblem(f"stopped: {limit}", where=str(out), hint=hint) from None
        facts = facts_of(measured)
        known = with_measured(profile, facts)
        report = pipeline.advise(known, overlay=overlay, policy=policy, command=command)
        report = report.model_copy(update={"changes": judge(known, report.plan.deployment, measured)})
        write_whole(out / "report.json", report.model_dump_json(indent=2) + "\n")
        write_whole(out / "report.html", render(report, "html"))
        write_whole(out / "measured.json", json.dumps(facts, indent=1) + "\n")
    return report


def foresee_draft(profile: Profile, making: Mapping[str, Any], prompt_tokens: int) -> str:
    """What making a draft would cost, and what published ones took. making: the fields of Making."""
    return foresee(profile, Making(**making), prompt_tokens)


def _check_training(allowed: Policy | None, *, unasked: bool) -> None:
    """Raise PolicyProblem where a policy does not let anything be trained."""
    from advisor.reasoner.policing import training_ban

    if allowed is None:
        return
    banned = training_ban(allowed, unasked=unasked)
    if banned:
        hint = "give a draft that exists" if allowed.training == "never" else "run it where you can be asked"
        raise PolicyProblem("the policy lets no draft be trained", where=banned, hint=hint)
