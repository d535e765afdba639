"""The remedy that trains through the rounding: towards the unquantized model's output (QAD), or towards the text (QAT).

Scales stay as calibrated. What judges is never trained on; some of what is trained on is kept back to say when to stop.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

from advisor.errors import NotPossible
from advisor.executor.bookkeeping.journal import digest
from advisor.executor.bookkeeping.spending import in_minutes
from advisor.executor.judging import evaluation
from advisor.executor.judging.scoring import scored
from advisor.executor.judging.trial import Lesson, Sequences
from advisor.executor.learning.objectives import imitate, predict_next
from advisor.executor.learning.training import AT_ONCE, SLOWER, Settings, Trained, train
from advisor.executor.quantizing import causal_model, quantization
from advisor.executor.request import Remedy, whole_number
from advisor.executor.run import Judged, Run
from advisor.types import Change, Interval

KEPT_BACK = 8
"""one in so many sequences says when to stop"""
MOST_KEPT_BACK = 16


@dataclass(frozen=True)
class Course:
    """A training that is planned, and what it should cost."""

    settings: Settings
    distils: bool
    lessons: Sequences
    checks: Sequences
    """say when to stop; none: the lessons are too few, and all steps are done"""
    tokens: float
    """to be trained on, at most"""
    seconds: tuple[float, float]
    """here, from the speed of a forward pass"""
    gib: float
    """of memory, about"""
    elsewhere: str
    """what it would cost on the plan's GPU"""

    @property
    def words(self) -> str:
        """What it is and what it costs, to be asked about."""
        how = "distil from the unquantized model" if self.distils else "train on the text"
        return (
            f"{how}: at most {self.settings.steps} steps, {self.tokens:,.0f} tokens of {len(self.lessons)} prompts; "
            f"about {in_minutes(*self.seconds)} and {self.gib:.1f} GiB of memory here (by a forward pass){self.elsewhere}"
        )


def recover(run: Run, remedy: Remedy) -> str | None:
    """A round that trains the best trial so far between its calibration and its export. None: it may not, or cannot."""
    start = min(run.trials, key=lambda one: one.loss[0])
    try:
        course = _plan(run, remedy)
    except NotPossible as error:
        run.skip(remedy, f"not run: {error}")
        return None
    if not run.may_spend(remedy, course.words, course.seconds):
        return None
    run.progress.say("training", course.words, rule=remedy.rule, seconds=course.seconds, tokens=course.tokens)
    run.bench.original(course.checks)
    verdict = run.attempt(remedy.rule, "qat", start.trial.scheme, _lesson(run, course, start))
    run.changes[-1] = _told(run.changes[-1], course, start, run)
    trained = run.trials[-1].trial.trained
    if trained is None or trained.stopped != "late":  # which goes on from there when it is given more time
        shutil.rmtree(run.bench.journal.folder / f"round-{run.round}" / "training", ignore_errors=True)
    return verdict


def _plan(run: Run, remedy: Remedy) -> Course:
    """What the rule wants, on the prompts that there are. Raises NotPossible for want of memory."""
    assert run.split is not None
    steps = run.request.training_steps or whole_number(remedy.parameters, "steps", 500)
    rate = remedy.parameters.get("learning_rate")
    settings = Settings(
        steps=steps,
        batch=whole_number(remedy.parameters, "batch", 4),
        learning_rate=rate if isinstance(rate, float) else 1e-5,
        every=max(5, steps // 20),
        seed=run.request.seed,
    )
    distils = remedy.parameters.get("loss") != "cross_entropy"
    everything = run.split.lessons
    count = min(MOST_KEPT_BACK, len(everything) // KEPT_BACK)
    checks, lessons = everything[:count], everything[count:]
    tokens = settings.steps * settings.batch * sum(map(len, lessons)) / len(lessons)
    forward = run.bench.forward_seconds(max(lessons, key=len))
    seconds = (3.0 + distils) * tokens * forward
    seconds += (1 + settings.steps // settings.every) * sum(map(len, checks)) * forward
    longest = max(map(len, everything))
    return Course(
        settings=settings,
        distils=distils,
        lessons=lessons,
        checks=checks,
        tokens=tokens,
        seconds=(seconds, SLOWER * seconds),
        gib=causal_model.check_memory(
            run.bench.model,
            "qad" if distils else "qat",
            vocab=run.profile.model.vocab,
            tokens=(1 + distils) * max(longest, min(AT_ONCE, settings.batch * longest)),
        ),
        elsewhere=run.price(remedy, tokens),
    )


def _lesson(run: Run, course: Course, start: Judged) -> Lesson:
    metric = "kl" if scored(run.goal.accuracy_metric) else run.metric
    inputs = {
        "settings": asdict(course.settings),
        "distils": course.distils,
        "lessons": digest(course.lessons),
        "checks": digest(course.checks),
    }

    after = sum(start.trial.seconds.get(part, 0.0) for part in ("measure", "measure", "export"))

    def seconds_left() -> float | None:
        left = run.seconds_left()
        return None if left is None else left - after

    def loss_of(model: Any) -> float:
        return evaluation.loss_pct(run.bench.compare(model, course.checks, "validation"), metric)[0]

    def teach(model: Any, name: str) -> Trained:
        quantization.align(model)
        return train(
            model,
            course.lessons,
            imitate(run.bench.fresh()) if course.distils else predict_next,
            course.settings,
            journal=run.bench.journal,
            name=name,
            inputs=inputs,
            progress=run.progress,
            validate=loss_of if course.checks else None,
            max_seconds=seconds_left(),
            settle=quantization.settle,
        )

    return Lesson(inputs, teach, seconds_left)


def _told(change: Change, course: Course, start: Judged, run: Run) -> Change:
    """The round's Change with what the training took and gave, before and after, predicted and measured."""
    made = run.trials[-1]
    trained = made.trial.trained
    assert trained is not None
    gain = evaluation.gain_pct(start.blocks, made.blocks, run.metric, run.request.seed)
    worth = "" if gain[1] > 0 else ": not worth it, the loss did not fall beyond its interval"
    share = trained.step / course.settings.steps
    ends = {"early": "no better since", "late": "the time allowed is over", "diverged": "the loss was no number any more"}
    why = f" ({ends[trained.stopped]})" if trained.stopped in ends else ""
    checked = "; ".join(f"{value:.2f} % at step {step}" for step, value in (*trained.validations[:1], *_best(trained)))
    detail = [
        f"training won {gain[0]:.2f} points of {run.metric} (95 % between {gain[1]:.2f} and {gain[2]:.2f}){worth}",
        f"{'distilled from the unquantized model' if course.distils else 'trained on the text'}: {trained.step} of "
        f"{trained.planned} steps{why}, {trained.tokens:,} tokens of {len(course.lessons)} prompts, rate "
        f"{course.settings.learning_rate:g}, the weights of step {trained.best}"
        + (f"; on {len(course.checks)} prompts kept back: {checked}" if checked else ""),
        f"foreseen: {course.words}",
    ]
    figures = [
        Interval(
            metric="seconds",
            what="training",
            value=trained.spent,
            predicted=None if trained.foreseen is None else round(trained.foreseen * share, 1),
            predicted_range=(round(course.seconds[0] * share, 1), round(course.seconds[1] * share, 1)),
        ),
        Interval(metric="peak_gib", what="training", value=trained.peak_gib, predicted=round(course.gib, 2)),
        Interval(metric=f"{run.metric}_gain_pct", what="training", value=gain[0], low=gain[1], high=gain[2]),
    ]
    before = evaluation.measure(
        start.blocks, "exported files before training", limit_on="", budget_pct=None, seed=run.request.seed
    )
    first, *rest = change.detail.splitlines()
    return change.model_copy(
        update={
            "detail": "\n".join((first, *(f"{line}." for line in detail), *rest)),
            "accuracy": (change.accuracy[0], *before, *change.accuracy[1:]),
            "training": tuple(figures),
        }
    )


def _best(trained: Trained) -> tuple[tuple[int, float], ...]:
    return tuple(one for one in trained.validations if one[0] == trained.best and one[0])
