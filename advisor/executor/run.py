"""One run of `advise apply`: what it works on, what it measured and did, and the round that every remedy comes to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.bookkeeping.spending import Spent
from advisor.executor.judging import evaluation
from advisor.executor.judging.evaluation import Block
from advisor.executor.judging.scoring import Loss, measure_score, scored
from advisor.executor.judging.trial import Bench, Lesson, Sequences, Trial
from advisor.executor.material import Material
from advisor.executor.preflight import group_of
from advisor.executor.quantizing import checkpoint
from advisor.executor.quantizing.calibration import describe_calibration
from advisor.executor.quantizing.quantization import Scheme, Sensitivities
from advisor.executor.request import Remedy, Request
from advisor.types import Calibration, Change, Interval, Plan, Profile, Scalar

ALPHAS = (0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Judged:
    """A trial and what its exported files measured on held-out prompts."""

    trial: Trial
    loss: tuple[float, float, float]
    """percent on the goal's metric, with its 95 % interval"""
    blocks: tuple[Block, ...]


class Run:
    """The state of one run: what was measured, what was done."""

    def __init__(
        self, request: Request, profile: Profile, plan: Plan, material: Material, bench: Bench, progress: Progress
    ) -> None:
        self.request, self.plan, self.bench, self.progress = request, plan, bench, progress
        self.profile, self.goal = profile, profile.goal
        self.metric = self.goal.accuracy_metric if self.goal.accuracy_metric in evaluation.METRICS else "perplexity"
        self.split = material.split
        self.calibration = material.split.calibration if material.split else ()
        self.spare = (len(material.split.reserve) + 1) // 2 if material.split else 0
        """prompts of the reserve that are kept to recalibrate on"""
        self.lengths = material.lengths
        self.began = time.monotonic()
        self.changes: list[Change] = []
        self.facts: dict[str, Scalar] = {}
        self.trials: list[Judged] = []
        self.round = 0
        self.scheme: Scheme | None = None
        self.parameters: dict[str, object] = {}
        self.worst, self.beyond = 0.0, 1.0
        self.refused: set[str] = set()
        self.found: Sensitivities | None = None
        memory = plan.expected.memory_gib
        self.growth = (memory.capacity - memory.total + memory.weights) / memory.weights if memory.weights else 1.0
        self.described: Calibration | None = None
        self.student: Path | None = None
        """a student that took the model's place"""
        self.doing = ("plan", "quantize")
        self.stopped = ""

    def begin(self, parameters: dict[str, object]) -> str:
        """The first round: quantize as the plan says. parameters: of the rule that chose the weights' format."""
        deployment = self.plan.deployment
        self.parameters = parameters
        rule = next((step.rule for step in self.plan.steps if "weights" in step.changes), None) or next(
            (step.rule for step in self.plan.steps if "kv_cache" in step.changes), "plan"
        )
        group = group_of(deployment, self.profile, self.bench.model)
        wide = (*deployment.keep_high_precision, *self.request.keep)
        self.scheme = Scheme(deployment.weights, deployment.kv_cache, wide, group=group)
        self.facts |= {"scheme": deployment.weights, "recalibrated": False, "mixed_precision_tried": False, "qat_tried": False}
        self.note_calibration()
        return self.attempt(rule, "quantize", self.tuned(self.scheme))

    def best(self) -> Trial | None:
        """The last trial: the one that passed, if any did."""
        return self.trials[-1].trial if self.trials else None

    def summary(self, passed: bool) -> str:
        """One sentence."""
        if self.stopped:
            return f"Stopped: {self.stopped}; not published."
        if not self.trials and self.request.student_layers is not None:
            return f"The student: {self.changes[0].detail.splitlines()[0]}"
        if not self.trials:
            return "Nothing was to be quantized; the checkpoint is served as it is."
        trial, loss = self.trials[-1].trial, self.trials[-1].loss[0]
        budget, metric = self.goal.accuracy_budget_pct, self.goal.accuracy_metric
        limit = "no budget was set" if budget is None else f"the budget is {budget:g} %"
        word = "published" if passed else "not published"
        return f"{trial.scheme.name}: loss of {loss:.2f} % on {metric} of the exported files; {limit}; {word}."

    def stop(self, limit: Spent) -> None:
        """Say that what may be spent is spent, and what it stopped."""
        self.stopped = str(limit)
        rule, action = self.doing
        detail = f"stopped: {limit}; finished work is kept, and --resume goes on once more is allowed"
        self.changes.append(Change(rule=rule, action=action, gate="not run", detail=detail))
        self.progress.say("stopped", f"{action} ({rule}) {detail}", rule=rule)

    def tuned(self, scheme: Scheme) -> Scheme:
        """The scheme with the strength that suits the calibration prompts, where it has one."""
        if scheme.weights != "int8_sq":
            return scheme
        given = self.parameters.get("alphas")
        alphas = tuple(float(str(each)) for each in given) if isinstance(given, (list, tuple)) else ALPHAS
        self.scheme = self.bench.choose_alpha(f"round-{self.round + 1}", scheme, self.calibration, alphas)
        return self.scheme

    def attempt(self, rule: str, action: str, scheme: Scheme, lesson: Lesson | None = None) -> str:
        """One round: make, export, measure the exported files, and judge; a result within the noise is measured further.

        lesson: a training between calibration and export.
        """
        assert self.split is not None
        self.round += 1
        self.doing = (rule, action)
        name, began = f"round-{self.round}", time.monotonic()
        self.progress.say("round", f"{name}: {action} to {scheme.name}", rule=rule, scheme=scheme.plain())
        held_out = self.split.evaluation[: max(2, (len(self.split.evaluation) + 1) // 2)]
        trial = self.bench.run(name, scheme, self.calibration, held_out, lesson)
        blocks = self.bench.measure(name, trial, held_out)
        loss, verdict, scores = self.judge(name, blocks, trial)
        while verdict == "inconclusive" and not scored(self.goal.accuracy_metric) and (more := self._more(held_out, action)):
            held_out = (*held_out, *more)
            self.progress.say("noise", f"{name}: within the noise; {len(held_out)} held-out prompts are measured")
            blocks = (*blocks, *self.bench.measure(name, trial, more))
            loss, verdict, scores = self.judge(name, blocks, trial)
        refusal = checkpoint.check_engine(trial.folder, self.profile.engine.name, self.profile.engine.version)
        verdict = "failed" if refusal else verdict
        before = dict(self.facts)
        self.facts |= {"accuracy_loss_pct": round(loss[0], 4), "accuracy_inconclusive": verdict == "inconclusive"}
        self.trials.append(Judged(trial, loss, blocks))
        in_memory = evaluation.loss_pct(trial.in_memory, self.metric, self.request.seed)[0]
        self.worst, self.beyond = loss[2], max(1.0, loss[2] / in_memory) if in_memory > 0 else 1.0
        change = self._change(rule, action, trial, blocks, verdict, before, time.monotonic() - began, loss)
        detail = f"{change.detail}\nFailed whatever its loss: {refusal}." if refusal else change.detail
        self.changes.append(change.model_copy(update={"accuracy": (*change.accuracy, *scores), "detail": detail}))
        self.progress.say("gate", f"{name}: {self.changes[-1].detail.splitlines()[0]}", verdict=verdict, loss_pct=loss[0])
        return "passed" if verdict in ("passed", "no budget") else verdict

    def _more(self, held_out: Sequences, action: str) -> Sequences:
        """Prompts to measure further on, where the time allows: the held-out ones that are left, then as many of production's
        reserve as were measured. These judge from then on and nothing learns from them; half of the reserve is left to
        recalibrate on, and none is taken that something may have learned from."""
        assert self.split is not None
        rest = self.split.evaluation[len(held_out) :]
        learned = action not in ("quantize", "mixed_precision") or self.facts["recalibrated"] or self.request.student_layers
        if rest or learned or self.late():
            return rest
        fresh = self.split.reserve[: max(0, min(len(held_out), len(self.split.reserve) - self.spare))]
        judging, reserve = (*self.split.evaluation, *fresh), self.split.reserve[len(fresh) :]
        self.split = replace(self.split, evaluation=judging, reserve=reserve)
        return fresh

    def judge(self, name: str, blocks: Sequence[Block], trial: Trial | None) -> tuple[Loss, str, tuple[Interval, ...]]:
        """The loss, the verdict, and the scores where the metric is one. trial None: of the run's own model, a student."""
        budget, metric = self.goal.accuracy_budget_pct, self.goal.accuracy_metric
        scores: tuple[Interval, ...] = ()
        if scored(metric):
            asked = self.request
            loss, scores = measure_score(
                self.bench, metric, name, trial, budget,
                command=asked.command, seconds=asked.command_seconds, tasks=asked.tasks,
            )  # fmt: skip
        else:
            loss = evaluation.loss_pct(blocks, self.metric, self.request.seed)
        return loss, "no budget" if budget is None else evaluation.judge(loss, budget), scores

    def _change(
        self, rule: str, action: str, trial: Trial, blocks: Sequence[Block], verdict: str, before: dict[str, Scalar],
        seconds: float, loss: tuple[float, float, float],
    ) -> Change:  # fmt: skip
        budget, seed = self.goal.accuracy_budget_pct, self.request.seed
        limit_on = "" if scored(self.goal.accuracy_metric) else self.metric
        shipped = evaluation.measure(blocks, "exported files", limit_on=limit_on, budget_pct=budget, seed=seed)
        simulated = evaluation.measure(trial.in_memory, "in memory, before the export", limit_on="", budget_pct=None, seed=seed)
        if len(trial.in_memory) != len(blocks):
            base = evaluation.measure_original(trial.in_memory)
            simulated = (base.model_copy(update={"what": "original, on the prompts measured in memory"}), *simulated)
        limit = (
            "no accuracy budget was set: measured, not judged" if budget is None else f"{verdict}: the budget is {budget:g} %"
        )
        parts = ", ".join(f"{part} {took:.0f} s" for part, took in trial.seconds.items())
        mixed = action == "mixed_precision" and self.found is not None
        bits = f", {self.found.bits:.2f} effective bits" if mixed and self.found else ""
        detail = [
            f"loss of {loss[0]:.2f} % on {self.goal.accuracy_metric} (95 % between {loss[1]:.2f} and {loss[2]:.2f}); {limit}",
            f"{trial.scheme.name}{bits}: {trial.size_mb:.1f} MB, peak memory {trial.peak_gib:.2f} GiB, {parts}",
        ]
        gate = {"passed": "passed", "failed": "failed", "inconclusive": "inconclusive", "no budget": "not run"}[verdict]
        return Change.model_validate(
            {
                "rule": rule, "action": action, "artifact": str(trial.folder), "seconds": round(seconds, 1), "before": before,
                "after": dict(self.facts), "gate": gate, "detail": "\n".join(f"{line}." for line in detail),
                "accuracy": (evaluation.measure_original(blocks), *simulated, *shipped),
                "calibration": self.described,
                "layers": self.found.layers if mixed and self.found else (),
            }
        )  # fmt: skip

    def note_calibration(self) -> None:
        """What the calibration prompts are, as facts."""
        assert self.split is not None
        self.described = describe_calibration(
            self.calibration, self.split, self.lengths, tokens=self.request.tokens, seed=self.request.seed
        )
        self.facts |= {"calibration_prompts": len(self.calibration)}
        if self.described.distance is not None:
            self.facts["calibration_distance"] = self.described.distance

    def skip(self, remedy: Remedy, why: str) -> None:
        """A remedy that is not run, with the reason, as a Change; it is not asked for again."""
        self.refused.add(remedy.rule)
        self.changes.append(Change(rule=remedy.rule, action=remedy.action, gate="not run", detail=why))
        self.progress.say("not run", f"{remedy.rule}: {why}", rule=remedy.rule)

    def seconds_left(self) -> float | None:
        """Until the first limit on time; None: no limit was set."""
        spending, allowed = self.progress.spending, self.request.max_seconds
        ends = [
            spending.seconds_left if spending else None,
            None if allowed is None else allowed + self.began - time.monotonic(),
        ]
        return min((max(0.0, one) for one in ends if one is not None), default=None)

    def late(self) -> bool:
        """Whether the time for new rounds is over."""
        return self.seconds_left() == 0.0

    def price(self, remedy: Remedy, tokens: float) -> str:
        """What training on so many tokens would cost on the plan's GPU, to be said after what it takes here; "" if unknown."""
        cost, gpu = remedy.cost(tokens), self.profile.gpu
        hours = " to ".join(f"{each:.2g}" for each in cost.gpu_hours) if cost else ""
        return f"; {hours} GPU-hours on {gpu.count} x {gpu.name} (published utilisation)" if cost else ""

    def may_spend(self, remedy: Remedy, what: str, seconds: tuple[float, float]) -> bool:
        """Whether a training may begin: the time that is left allows it, and a person agreed where one is to be asked.

        what: it is, with its cost. seconds: that it takes here, low and high. False: a Change says why not.
        """
        left = self.seconds_left()
        if left is not None and seconds[0] > left:
            why = f"the {left / 60:.0f} min left of the time allowed are too little"
        elif not remedy.asks:
            return True
        elif self.request.confirm is None:
            why = "nobody is there to be asked: --yes, or a policy with training: unasked, allows it"
        elif not self.request.confirm(what):
            why = "declined"
        else:
            return True
        self.skip(remedy, f"not run: {why}; {what}")
        return False
