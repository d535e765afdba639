"""The remedy for a teacher that is good and too slow: drop its least influential layers, let what is left learn from it, and
go on with the student in the teacher's place. The student is judged by the same gate as every round."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advisor.errors import InputError
from advisor.executor.bookkeeping.journal import digest, file_errors
from advisor.executor.bookkeeping.spending import in_minutes
from advisor.executor.judging import evaluation, pace
from advisor.executor.judging.evaluation import Block
from advisor.executor.judging.scoring import Loss, scored
from advisor.executor.judging.trial import SELECTION, Bench, Sequences, memory_errors
from advisor.executor.learning import pruning
from advisor.executor.learning.objectives import imitate, imitate_layers
from advisor.executor.learning.training import SLOWER, Settings, Trained, cut_short, read_trained, train
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.checkpoint import size_mb
from advisor.executor.request import Remedy, whole_number
from advisor.executor.run import Run
from advisor.types import Change, Interval

NAME = "student"
PROMPT = 32
"""tokens before those whose decoding is timed"""
FEWEST = 2 * SELECTION
"""prompts to learn from, from which on some are set aside to validate by"""


@dataclass(frozen=True)
class Course:
    """A distillation that may begin, and what it should cost."""

    words: str
    span: tuple[float, float]
    """seconds here, from the speed of a forward pass: to cut, teach and judge"""
    judging: float
    """seconds of them that are kept for judging the student"""


@dataclass(frozen=True)
class Made:
    """A student's files and how they came about."""

    folder: Path
    cut: pruning.Cut
    training: Trained
    seconds: dict[str, float]
    peak_gib: float


def distil(run: Run, remedy: Remedy) -> str:
    """The student asked for, made and judged; the run's bench is the student's then. The verdict of its gate, or "not run"
    with a Change that says why."""
    assert run.split is not None
    began = time.monotonic()
    run.doing = (remedy.rule, remedy.action)
    run.progress.say("rule", f"{remedy.rule}: a student of {run.request.student_layers} layers", rule=remedy.rule)
    course = _begin(run, remedy)
    if course is None:
        return "not run"
    made = _make(run, remedy, course)
    teacher, mark = run.bench, run.bench.journal.events_key(f"{NAME}/distil") or ""
    run.bench = Bench(made.folder, teacher.journal, run.progress, run.request.seed, original=teacher.model, mark=mark)
    blocks, loss, verdict, scores = _evaluate(run)
    change = _change(run, remedy, course, made, blocks, loss, verdict, time.monotonic() - began)
    run.changes.append(change.model_copy(update={"accuracy": (*change.accuracy, *scores)}))
    run.progress.say("gate", f"{NAME}: {run.changes[-1].detail.splitlines()[0]}", verdict=verdict, loss_pct=loss[0])
    run.student = made.folder
    return "passed" if verdict in ("passed", "no budget") else verdict


def _begin(run: Run, remedy: Remedy) -> Course | None:
    """What it will cost, said first; None: so much may not be spent. A distillation that was begun may go on."""
    journal, settings = run.bench.journal, _settings(run, remedy)
    validating, learning = _lessons(run)
    key = {
        "layers": run.request.student_layers, "settings": asdict(settings), "learning": digest(learning),
        "validating": digest(validating),
    }  # fmt: skip
    kept = journal.find(f"{NAME}/begun", key)
    if kept is None:
        course = _foresee(run, remedy, settings)
        if not run.may_spend(remedy, course.words, course.span):
            return None
        kept, _ = journal.do(f"{NAME}/begun", key, lambda: (asdict(course), ()))
        run.progress.say("training", course.words, rule=remedy.rule, seconds=course.span)
    return Course(kept["words"], (kept["span"][0], kept["span"][1]), kept["judging"])


def _foresee(run: Run, remedy: Remedy, settings: Settings) -> Course:
    """The course that the request and the rule make, by a forward pass of the teacher."""
    assert run.split is not None and run.request.student_layers is not None
    layers, total = run.request.student_layers, causal_model.load_skeleton(run.bench.model).config.num_hidden_layers
    validating, learning = _lessons(run)
    tokens = settings.steps * settings.batch * sum(map(len, learning)) / len(learning)
    share = layers / total
    passes = (1 + 3 * share) * tokens + (1 + settings.steps // settings.every) * (1 + share) * sum(map(len, validating))
    cutting = (total - layers) * sum(map(len, _watched(run)))
    forward = run.bench.forward_seconds(max(learning, key=len))
    judging = (1 + 2 * share) * sum(map(len, run.split.evaluation)) * forward
    seconds = (passes + cutting) * forward + judging
    span = (seconds, SLOWER * seconds)
    return Course(
        f"distil {layers} of {total} layers: at most {settings.steps} steps, {tokens:,.0f} tokens of {len(learning)} prompts; "
        f"about {in_minutes(*span)} here with the judging (by a forward pass){run.price(remedy, tokens)}",
        span,
        SLOWER * judging,
    )


def _watched(run: Run) -> Sequences:
    """Prompts by which the influence of the blocks is measured."""
    assert run.split is not None
    return run.split.calibration[: 2 * SELECTION]


def _lessons(run: Run) -> tuple[Sequences, Sequences]:
    """Prompts that say when to stop, and those that are learned from."""
    assert run.split is not None
    prompts = (*run.split.calibration, *run.split.reserve)
    kept_back = SELECTION if len(prompts) >= FEWEST else 0
    return prompts[:kept_back], prompts[kept_back:]


def _make(run: Run, remedy: Remedy, course: Course) -> Made:
    """Cut, train and write; each a stage of the journal, so that a killed run goes on from its last checkpoint."""
    assert run.split is not None and run.request.student_layers is not None
    journal, folder, layers = run.bench.journal, run.bench.journal.folder / NAME, run.request.student_layers
    watched = _watched(run)
    inputs = {"layers": layers, "watched": digest(watched), "seed": run.request.seed}

    def cut() -> tuple[dict[str, Any], tuple[Path, ...]]:
        began, model = time.monotonic(), run.bench.fresh()
        total = model.config.num_hidden_layers
        if not 0 < layers < total:
            raise InputError(f"a student of {layers} layers", where="--student-layers", hint=f"1 to {total - 1}")
        tick = run.progress.track(f"{NAME}: block influence", total - layers)
        found = pruning.cut_depth(model, watched, layers, tick)
        with file_errors(folder):
            files = pruning.write_model(model, run.bench.model, folder / "cut")
        pruning.check_same(model, causal_model.load_model(folder / "cut"), watched[0])
        return asdict(found) | {"seconds": time.monotonic() - began}, files

    with memory_errors():
        value, _ = journal.do(f"{NAME}/cut", inputs, cut)
        taken = pruning.Cut(**{name: tuple(value[name]) for name in ("kept", "dropped", "influence", "lost")})
        learned = _learn(run, remedy, course, taken, {**inputs, "cut": journal.events_key(f"{NAME}/cut")})
    training = read_trained(learned["training"])
    seconds = {"cut": value["seconds"], "distil": training.spent}
    return Made(folder / "checkpoint", taken, training, seconds, learned["peak_gib"])


def _learn(run: Run, remedy: Remedy, course: Course, cut: pruning.Cut, inputs: dict[str, Any]) -> dict[str, Any]:
    """The stage that trains the cut model and writes the student."""
    journal, folder = run.bench.journal, run.bench.journal.folder / NAME
    validating, learning = _lessons(run)
    settings = _settings(run, remedy)
    weight = _number(remedy, "hidden_weight", 0.0)
    key = {**inputs, "objective": ["logits_kl", weight], "validating": digest(validating)}
    left = run.seconds_left()
    most = None if left is None else max(0.0, left - course.judging)

    def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
        teacher, student = run.bench.fresh(), causal_model.load_model(folder / "cut")
        objective = imitate_layers(teacher, cut.kept, weight) if weight else imitate(teacher)
        judge = imitate(teacher)
        trained = train(
            student, learning, objective, settings, journal=journal, name=f"{NAME}/training", inputs=key,
            progress=run.progress, validate=(lambda model: _mean(judge, model, validating)) if validating else None,
            max_seconds=most,
        )  # fmt: skip
        with file_errors(folder):
            files = pruning.write_model(student, run.bench.model, folder / "checkpoint")
        return {"training": asdict(trained), "peak_gib": round(causal_model.peak_gib(), 2)}, files

    value, _ = journal.do(
        f"{NAME}/distil", {**key, "settings": asdict(settings), "learning": digest(learning)}, make,
        suffices=lambda value: not cut_short(value["training"], most),
    )  # fmt: skip
    if value["training"]["stopped"] != "late":  # which goes on from there when it is given more time
        shutil.rmtree(folder / "training", ignore_errors=True)
    return value


def _settings(run: Run, remedy: Remedy) -> Settings:
    steps = run.request.student_steps or whole_number(remedy.parameters, "steps", 100)
    return Settings(
        steps=steps,
        batch=whole_number(remedy.parameters, "batch", 4),
        learning_rate=_number(remedy, "learning_rate", 1e-4),
        warm_up=max(1, steps // 10),
        seed=run.request.seed,
    )


def _mean(objective: Any, model: Any, sequences: Sequence[tuple[int, ...]]) -> float:
    """The objective over sequences that are not learned from, nats a token."""
    import torch

    with torch.no_grad():
        device = next(model.parameters()).device
        return sum(float(objective(model, torch.tensor([one], device=device))) for one in sequences) / len(sequences)


def _evaluate(run: Run) -> tuple[tuple[Block, ...], Loss, str, tuple[Interval, ...]]:
    """The student's files against the teacher, on half of the held-out prompts, on all where that is within the noise."""
    assert run.split is not None
    held_out = run.split.evaluation[: max(2, (len(run.split.evaluation) + 1) // 2)]
    for some in (held_out, run.split.evaluation):
        run.bench.original(some)
        blocks = run.bench.compare_plain(NAME, run.bench.model, some, run.bench.journal.events_key(f"{NAME}/distil"))
        loss, verdict, scores = run.judge(NAME, blocks, None)
        if verdict != "inconclusive" or scores:
            break
    return blocks, loss, verdict, scores


def _change(
    run: Run, remedy: Remedy, course: Course, made: Made, blocks: Sequence[Block], loss: Loss, verdict: str, seconds: float
) -> Change:  # fmt: skip
    assert run.split is not None
    budget, seed, training = run.goal.accuracy_budget_pct, run.request.seed, made.training
    some = run.split.evaluation[: max(2, (len(run.split.evaluation) + 1) // 2)]
    journal = run.bench.journal
    cut_only = run.bench.compare_plain(f"{NAME}/cut", made.folder.with_name("cut"), some, journal.events_key(f"{NAME}/cut"))
    limit_on = "" if scored(run.goal.accuracy_metric) else run.metric
    shown = (
        *evaluation.measure(cut_only, "cut, not distilled", limit_on="", budget_pct=None, seed=seed),
        *evaluation.measure(blocks, "student", limit_on=limit_on, budget_pct=budget, seed=seed),
    )
    limit = "no accuracy budget was set: measured, not judged" if budget is None else f"{verdict}: the budget is {budget:g} %"
    kept, dropped = len(made.cut.kept), ", ".join(map(str, sorted(made.cut.dropped)))
    ends = {"done": "all steps", "early": "stopped early", "late": "out of time", "diverged": "diverged"}
    foreseen = "" if training.foreseen is None else f" ({training.foreseen:.0f} s foreseen)"
    detail = [
        f"loss of {loss[0]:.2f} % on {run.goal.accuracy_metric} (95 % between {loss[1]:.2f} and {loss[2]:.2f}); {limit}",
        f"{kept} of {kept + len(made.cut.dropped)} layers; dropped by block influence, counted from 0: {dropped}",
        f"distilled on {training.tokens:,} tokens in {training.step} steps ({ends[training.stopped]}), weights of step "
        f"{training.best}; KL {training.losses[0]:.3f} to {training.losses[-1]:.3f} nats a token",
        f"{size_mb(made.folder):.1f} MB of {size_mb(run.bench.original_model):.1f}; peak memory {made.peak_gib:.2f} GiB; cut "
        f"{made.seconds['cut']:.0f} s, distil {made.seconds['distil']:.0f} s{foreseen}",
        _speed(run),
        f"foreseen: {course.words}",
    ]
    gate = {"passed": "passed", "failed": "failed", "inconclusive": "inconclusive", "no budget": "not run"}[verdict]
    figures = (
        Interval(metric=f"{run.goal.accuracy_metric}_loss_pct", what=NAME, value=loss[0], low=loss[1], high=loss[2]),
        Interval(metric="tokens", what="training", value=training.tokens),
    )
    return Change.model_validate(
        {
            "rule": remedy.rule, "action": "distill", "artifact": str(made.folder), "seconds": round(seconds, 1),
            "after": {"student_layers": kept, "accuracy_loss_pct": round(loss[0], 4)}, "gate": gate,
            "detail": "\n".join(f"{line}." for line in detail), "accuracy": (_original(blocks), *shown),
            "training": figures,
        }
    )  # fmt: skip


def _original(blocks: Sequence[Block]) -> Interval:
    return evaluation.measure_original(blocks).model_copy(update={"what": "teacher"})


def _speed(run: Run) -> str:
    """What decoding takes on this machine, teacher and student at 16 bits: not the engine's speed, but the same ratio where
    reading the weights is what takes the time."""
    assert run.split is not None
    prompt = run.split.evaluation[0][:PROMPT]

    def make() -> tuple[dict[str, Any], tuple[Path, ...]]:
        models = [causal_model.load_model(folder) for folder in (run.bench.original_model, run.bench.model)]
        read = [pace.bytes_read(model) for model in models]
        return {"read": read, "turns": pace.time_turns(models, prompt)}, ()

    with memory_errors():
        value, _ = run.bench.journal.do(f"{NAME}/speed", {"student": run.bench.journal.events_key(f"{NAME}/distil")}, make)
    one, other = value["turns"]
    ratio, low, high = pace.ratio_of(one, other, run.request.seed)
    teacher, student = statistics.median(one), statistics.median(other)
    return (
        f"decoding one sequence here at 16 bits with transformers: {teacher:.4f} s a token the teacher, {student:.4f} s the "
        f"student, x {ratio:.3f} (95 % {low:.3f} to {high:.3f}); x {value['read'][0] / value['read'][1]:.3f} by bytes read"
    )


def _number(remedy: Remedy, name: str, default: float) -> float:
    value = remedy.parameters.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
