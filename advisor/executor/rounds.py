"""The closed loop: do what the plan says, measure the exported files, ask the rules again, do what fires next.

There is no order of remedies here. The rules, asked through `ask`, say what fires; what this program cannot do is said so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from advisor.errors import InputError
from advisor.executor import publication
from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.bookkeeping.spending import Spending, Spent
from advisor.executor.judging.trial import Bench
from advisor.executor.material import gather_material, take_fingerprint
from advisor.executor.preflight import check_request, find_model, order_of, quantizes
from advisor.executor.quantizing import causal_model
from advisor.executor.remedies.distillation import distil
from advisor.executor.remedies.mixed_precision import measure_sensitivity, mix
from advisor.executor.remedies.recalibration import recalibrate
from advisor.executor.remedies.recovery import recover
from advisor.executor.request import Ask, Outcome, Pages, Remedy, Request, Serve, whole_number
from advisor.executor.run import Run
from advisor.executor.speculating.speculation import Weigh, measure
from advisor.types import Plan, Profile

ACTIONS: dict[str, Callable[[Run, Remedy], str | None]] = {
    "recalibrate": recalibrate,
    "mixed_precision": mix,
    "qat": recover,
}
"""a rule's action -> what carries it out: the verdict of the round it came to; None: it was not run, and a Change says why"""


def carry_out(
    request: Request, profile: Profile, plan: Plan, parameters: dict[str, object], ask: Ask, pages: Pages, progress: Progress,
    weigh: Weigh, serve: Serve, student: Remedy | None = None,
) -> Outcome:  # fmt: skip
    """Carry out a plan on the model's folder and publish it when its gates pass: accuracy first, then the limits of serving.

    parameters: of the rule that chose the weights' format. ask: the rules about measured facts. pages: the files beside the
    checkpoint. weigh: what a measured acceptance is worth. serve: the result on an engine, where there is one.
    student: the rule by which a student of request.student_layers is distilled first, in the model's place. What the same
    inputs and versions gave already is not made again. Raises InputError, NotPossible, MissingExtra, FileProblem; finished
    work is kept in request.work.
    """
    folder = find_model(request, profile, plan)
    with Journal(request.work) as journal:
        if publication.was_published(journal, request.out):
            return publication.finish(journal, request.out)
        begun, may_be_there = bool(journal.events), request.out.exists() or bool(request.shelves)
        if not may_be_there:
            check_request(request, profile, plan, folder, begun=begun)  # before the hashes, which take minutes of a large model
        progress.say("inputs", f"hashing the files of {folder}")
        made_from = take_fingerprint(request, profile, folder)
        if may_be_there:
            found = publication.find_published(journal, request, made_from, progress)
            if found is not None:
                return found
            check_request(request, profile, plan, folder, begun=begun)
        prompts = whole_number(parameters, "calibration_prompts", 0) or None
        material = gather_material(request, profile, plan, made_from, journal, prompts, progress)
        progress.spending = Spending(journal, request.limits, causal_model.gpus())
        run = Run(request, profile, plan, material, Bench(folder, journal, progress, request.seed), progress)
        try:
            progress.spending.check(writes=request.checkpoint_bytes if quantizes(plan.deployment, profile) else 0.0)
            left = progress.spending.seconds_left
            if left is not None:
                run.request = replace(request, command_seconds=min(request.command_seconds, left))
            passed = student is None or distil(run, student) == "passed"
            passed = passed and _loop(run, parameters, ask) and _speculate(run, profile, weigh)
        except (Spent, InputError) as error:  # a scoring command that was cut off at the limit is nobody's fault
            limit = error if isinstance(error, Spent) else progress.spending.reached()
            if limit is None:
                raise
            run.stop(limit)
            passed = False
        best = run.best()
        served = serve(best.folder if best is not None else run.student, tuple(run.changes), run.facts, passed)
        run.facts |= served.facts
        passed = passed and served.passed
        changes, summary = (*run.changes, *served.changes), f"{run.summary(passed)} {served.summary}".rstrip()
        made_from.check_unchanged()
        return publication.publish(
            journal, request, made_from, best, changes, run.facts, pages, passed=passed, summary=summary, student=run.student
        )


def _loop(run: Run, parameters: dict[str, object], ask: Ask) -> bool:
    """Rounds until the gate passes or nothing is left. True: passed, or there was nothing to judge."""
    if not quantizes(run.plan.deployment, run.profile):
        return True
    if run.student is not None and run.late():
        run.doing = ("plan", "quantize")
        raise (run.progress.spending.reached() if run.progress.spending else None) or Spent("--max-time is over")
    verdict = run.begin(parameters)
    while verdict != "passed":
        remedy = _next(run, ask)
        if remedy is None:
            return False
        if run.round >= run.request.max_rounds or run.late():
            limit = f"--max-rounds {run.request.max_rounds}" if run.round >= run.request.max_rounds else "--max-time"
            run.skip(remedy, f"not run: {limit} was reached")
            return False
        run.progress.say("rule", f"the gate failed; {remedy.rule} fires", rule=remedy.rule)
        run.facts |= remedy.leaves
        verdict = ACTIONS[remedy.action](run, remedy) or verdict
    return True


def _speculate(run: Run, profile: Profile, weigh: Weigh) -> bool:
    """Measure the plan's drafts, or the one that was given, with the target as it will be served. False: the gate failed."""
    best = run.best()
    order = order_of(run.request, profile, run.plan, run.bench.model, best.folder if best else None)
    if order is None:
        return True
    changes, facts = weigh(measure(order, run.bench.journal, run.progress))
    run.changes += changes
    run.facts |= facts
    return all(change.gate != "failed" for change in changes)


def _next(run: Run, ask: Ask) -> Remedy | None:
    """The first remedy that the rules call up and that may and can be done here. A fact that they lack is measured first; what
    is ruled out counts as tried, so that the rules can say what is left."""
    while True:
        answer = ask(dict(run.facts))
        barred = [each for each in answer.forbidden if each[0].rule not in run.refused]
        fresh = [remedy for remedy in answer.remedies if remedy.rule not in run.refused]
        for remedy, ban in barred:
            run.skip(remedy, f"not run: forbidden by the policy, {ban}; its gain is known only by doing it")
        for remedy in fresh:
            if remedy.action in ACTIONS:
                return remedy
            run.skip(remedy, f"not run: {_manual(remedy.action)}")
        out = [*fresh, *(remedy for remedy, _ in barred)]
        for remedy in out:
            run.facts |= remedy.leaves
        if not out and "measured.sensitive_layer_share" in answer.wanted:
            if not (measure_sensitivity(run) and ask(dict(run.facts)).remedies):
                run.facts["mixed_precision_tried"] = True
        elif not out:
            return None


def _manual(action: str) -> str:
    way = "give --student-layers to have a student made" if action == "distill" else "see the rule's page for how"
    return f"{action} is not carried out by a round; {way}"
