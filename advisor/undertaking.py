"""One `advise apply`: what the executor asks of the rules, the report and the server while it works."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from advisor import __version__, measurement
from advisor.acceptance import adopt_speculation, facts_of, judge, with_measured
from advisor.errors import PolicyProblem
from advisor.estimator.memory import weight_bytes
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.bookkeeping.spending import Limit
from advisor.executor.emitting.serving import write_serving
from advisor.executor.emitting.site import seen_from
from advisor.executor.publishing.delivery import deliver, open_shelf
from advisor.executor.request import Answer, Options, Outcome, Remedy, Request, Served
from advisor.executor.rounds import carry_out
from advisor.executor.speculating.speculation import Measured
from advisor.library import read_text
from advisor.reasoner.fallbacks import LEAVES, training_price
from advisor.reasoner.policing import check_places, remedy_ban, spend_limits
from advisor.reasoner.remedies import find_remedies
from advisor.reasoner.rulebook import Rulebook
from advisor.report.rendering import render
from advisor.types import Change, Plan, Policy, Profile, Report, Rule, Scalar, TrainingCost

if TYPE_CHECKING:
    from typing_extensions import Unpack

READINGS = {"free_memory_gib", "processes", "notes"}
"""of a GPU, that are others at each look"""


class Undertaking:
    """A report, the rules and the policy it is under, and the request to the executor made of them.

    again: plans for a profile that knows more. Raises PolicyProblem, InputError, NotPossible before any work.
    """

    def __init__(
        self,
        report: Report,
        rulebook: Rulebook,
        policy: Policy | None,
        again: Callable[[Profile], Plan],
        *,
        unasked: bool,
        log_format: Literal["text", "json"],
        stream: IO[str] | None,
        serving: Mapping[str, Any] | None,
        publish: tuple[str, ...],
        **options: Unpack[Options],
    ) -> None:
        self.report, self.rulebook, self.policy, self.again = report, rulebook, policy, again
        self.unasked, self.log_format, self.serving = unasked, log_format, dict(serving or {})
        self.profile, self.plan = report.profile, report.plan
        self.student = self._student()
        if self.student is not None:
            options["student_layers"] = self.profile.model.layers
        if policy is not None:
            check_places(publish, policy)
        self.shelves = tuple(open_shelf(place) for place in publish)
        for shelf in self.shelves:
            shelf.check_writable()
        self.request = Request(
            **options,
            shelves=self.shelves,
            version=__version__,
            question=question_hash(report, rulebook, self.serving),
            limits=tuple(Limit(*one) for one in spend_limits(policy)) if policy is not None else (),
            checkpoint_bytes=weight_bytes(self.profile.model, self.plan.deployment),
        )
        self.progress = Progress(log_format, stream)
        if self.serving.get("wanted"):
            measurement.check_servable(report, self.serving.get("engine_python"))

    def carry_out(self) -> tuple[Report, Outcome]:
        """Hand the request to the executor; deliver what it published. The report with what was done in it, and the outcome."""
        chosen = {step.rule for step in self.plan.steps if "weights" in step.changes}
        parameters = next((dict(rule.applies.parameters) for rule in self.rulebook.rules if rule.id in chosen), {})
        outcome = carry_out(
            self.request, self.profile, self.plan, parameters, self.ask, self.pages, self.progress, self.weigh, self.serve,
            self.student,
        )  # fmt: skip
        if outcome.published:
            outcome = replace(outcome, places=tuple(deliver(shelf, outcome.folder, self.progress) for shelf in self.shelves))
        if self.log_format == "json":
            came_to = {"published": outcome.published, "reused": outcome.reused, "folder": str(outcome.folder)}
            self.progress.say("done", outcome.summary, **came_to, places=outcome.places)
        return self.told(outcome.changes, outcome.measured), outcome

    def ask(self, measured: Mapping[str, Scalar]) -> Answer:
        """What the rules say about measured facts, and what of it the policy forbids."""
        fired, wanted = find_remedies(with_measured(self.profile, measured), self.rulebook, self._ban)
        bans = [(rule, self._ban(rule)) for rule in fired]
        allowed = tuple(self._remedy(rule) for rule, ban in bans if not ban)
        return Answer(allowed, wanted, forbidden=tuple((self._remedy(rule), ban) for rule, ban in bans if ban))

    def weigh(self, measured: Measured) -> tuple[tuple[Change, ...], dict[str, Scalar]]:
        """What a measured acceptance comes to at the planned load, and the facts it makes."""
        facts = facts_of(measured)
        return judge(with_measured(self.profile, facts), self.plan.deployment, measured), facts

    def serve(
        self, checkpoint: Path | None, changes: tuple[Change, ...], measured: Mapping[str, Scalar], passed: bool
    ) -> Served:
        """Serve what was made, under the traffic and within the time that is left, and judge it by the limits."""
        prompts = self.request.production or self.request.calibration
        made, options = self.told(changes, measured), self.serving | {"prompts": prompts}
        left = self.progress.spending.seconds_left if self.progress.spending is not None else None
        if left is not None:
            options["seconds"] = max(1.0, min(self.serving.get("seconds", left), left))
        work = self.request.work / "serving"
        return measurement.serve(
            made, checkpoint, work, passed=passed, tell=lambda line: self.progress.say("serve", line), **options
        )

    def told(self, changes: tuple[Change, ...], measured: Mapping[str, Scalar]) -> Report:
        """The report with what was done and measured, its speculation as the rules now have it."""
        known, made = with_measured(self.profile, measured), self.plan
        if any(change.drafts for change in changes):
            made = adopt_speculation(self.plan, self.again(known))
        return self.report.model_copy(update={"profile": known, "plan": made, "changes": changes})

    def pages(self, changes: tuple[Change, ...], measured: Mapping[str, Scalar], published: bool) -> dict[str, str]:
        """The files beside the checkpoint: reports, facts; for what is published the serving files and the server's logs."""
        made = self.told(changes, measured)
        files = {"report.json": render(made, "json"), "report.html": render(made, "html")}
        files["measured.json"] = json.dumps(dict(measured), indent=1) + "\n"
        if not published:
            return files
        logs = (self.request.work / "serving" / "logs").glob("*.log")
        named = self.profile  # a student is in no folder but the one that is published
        if self.student is not None:
            named = named.model_copy(update={"model": named.model.model_copy(update={"folder": None})})
        files |= write_serving(made.plan, seen_from(self.request.out, named), made=any(change.artifact for change in changes))
        return files | {f"logs/{log.name}": read_text(log, what="log") for log in logs}

    def _student(self) -> Remedy | None:
        """The distillation that the plan is for, if it is for a student. Raises PolicyProblem."""
        distillation = self.plan.distillation
        if distillation is None or distillation.teacher is None:
            return None
        rule = self.rulebook.rule(distillation.rule)
        if ban := self._ban(rule):
            raise PolicyProblem("the policy lets no student be distilled", where=ban, hint="plan without --student-layers")
        return Remedy(
            rule.id,
            rule.applies.action,
            rule.applies.parameters,
            cost=lambda tokens: _cost_of(distillation.students[0].cost, tokens),
            asks=False,  # --student-layers is the consent
        )

    def _ban(self, rule: Rule) -> str:
        return remedy_ban(rule, self.policy, unasked=self.unasked) if self.policy is not None else ""

    def _remedy(self, rule: Rule) -> Remedy:
        return Remedy(
            rule.id,
            rule.applies.action,
            rule.applies.parameters,
            leaves=LEAVES[rule.applies.action],
            cost=lambda tokens: training_price(rule, self.profile, tokens),
            asks=self.policy is None or self.policy.training != "unasked",
        )


def _cost_of(published: TrainingCost | None, tokens: float) -> TrainingCost | None:
    """The same training on so many tokens: its cost is linear in them."""
    if published is None:
        return None
    low, high = (hours * tokens / each for hours, each in zip(published.gpu_hours, published.tokens, strict=True))
    return published.model_copy(update={"tokens": (tokens, tokens), "gpu_hours": (low, high)})


def question_hash(report: Report, rulebook: Rulebook, serving: Mapping[str, Any]) -> str:
    """A hash of what is to be done: for which profile, by which plan, policy and rules.

    Left out: where a fact was read, the readings of a running machine, what earlier measurements make the estimates say.
    """
    profile, plan = report.profile, report.plan
    content = (
        profile.model_dump(mode="json", exclude={"sources": True, "corrections": True, "gpu": READINGS}),
        plan.deployment.model_dump(mode="json"),
        [(step.rule, step.changes) for step in plan.steps],
        report.policy.model_dump(mode="json", exclude={"file", "lines", "rules"}) if report.policy else None,
        [rule.model_dump(mode="json") for rule in rulebook.rules],
        serving.get("wanted"),
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
