"""The losses that no logits tell: what a benchmark of lm-eval, or a command of the user's, scores on the exported files."""

from __future__ import annotations

import math
import random
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from advisor.errors import InputError
from advisor.executor.judging.evaluation import CONFIDENCE, RESAMPLES
from advisor.executor.judging.trial import Bench, Trial
from advisor.types import Interval

Loss = tuple[float, float, float]
"""percent, and the ends of its 95 % interval"""


def scored(metric: str) -> bool:
    """Whether a metric is a score, not a comparison of logits."""
    return metric == "command" or metric.startswith("task:")


def measure_score(
    bench: Bench, metric: str, name: str, trial: Trial | None, budget_pct: float | None, *,
    command: str | None, seconds: float, tasks: Path | None,
) -> tuple[Loss, tuple[Interval, ...]]:  # fmt: skip
    """The loss of score of a trial's exported files against the unquantized model, and both scores; without a trial, of the
    bench's own model, which is a student then.

    The unquantized model is scored once a run. Raises InputError, MissingExtra, NotPossible.
    """
    one: tuple[float, ...]
    other: tuple[float, ...]
    if metric == "command":
        assert command is not None
        given = {"command": command}
        before = bench.keep("original/command", given, lambda: run_command(command, bench.original_model, timeout=seconds))
        given |= {"trial": str(bench.journal.events_key(f"{name}/quantize") if trial else bench.mark)}
        folder = trial.folder if trial else bench.model
        after = bench.keep(f"{name}/command", given, lambda: run_command(command, folder, timeout=seconds))
        one, other, higher, label = (float(before),), (float(after),), True, metric
    else:
        task = metric.removeprefix("task:")
        first = bench.score(name, task, tasks, None, bench.original_model)
        second = bench.score(name, task, tasks, trial, bench.model)
        one, other, higher, label = first.documents, second.documents, first.higher, f"{metric} ({first.metric})"
    loss = loss_of_score(one, other, higher=higher, where=metric, seed=bench.seed)
    mean, value = sum(one) / len(one), sum(other) / len(other)
    low, high = _interval(other, bench.seed) if len(other) > 1 else (None, None)
    limit = None if budget_pct is None else mean - (1 if higher else -1) * abs(mean) * budget_pct / 100
    count = None if metric == "command" else len(one)
    return loss, (
        Interval(metric=label, what="original", value=mean, samples=count),
        Interval(metric=label, what="exported files", value=value, low=low, high=high, samples=count, limit=limit),
    )


def loss_of_score(
    original: Sequence[float], other: Sequence[float], *, higher: bool = True, where: str = "", seed: int = 0
) -> Loss:
    """How much worse a score is than the original's, percent of the latter, with its paired bootstrap interval over documents.

    One document (a command's score) has no interval. Where no document's score moved, the interval's ends are those of the
    rule of three, 3 / documents (Hanley and Lippman-Hand 1983): nothing seen is not nothing there. Raises InputError when the
    original scores 0.
    """
    mean = sum(original) / len(original)
    if not mean:
        raise InputError("the unquantized model scores 0: no loss can be told", where=where, hint="choose another score")
    moved = [(one - two if higher else two - one) * 100 / abs(mean) for one, two in zip(original, other, strict=True)]
    value = sum(moved) / len(moved)
    if len(moved) == 1:
        return value, value, value
    if not any(moved):
        ends = 100 * 3 / len(moved) / abs(mean)
        return 0.0, -ends, ends
    return value, *_interval(moved, seed)


def run_command(command: str, checkpoint: Path, *, timeout: float) -> float:
    """The score that a user's command prints as its last word; {checkpoint} in it is the folder to score. No shell is used.

    Raises InputError: it fails, takes too long or prints no number.
    """
    words = [word.replace("{checkpoint}", str(checkpoint)) for word in shlex.split(command)]
    hint = "the last word on stdout is the score; {checkpoint} stands for the folder"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"the scoring command did not run: {error}", where=command, hint=hint) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        raise InputError(f"the scoring command ended with status {done.returncode}: {last[:200]}", where=command, hint=hint)
    try:
        score = float(done.stdout.split()[-1])
    except (IndexError, ValueError):
        raise InputError("the scoring command printed no number", where=command, hint=hint) from None
    if not math.isfinite(score):
        raise InputError(f"the scoring command printed {score}", where=command, hint=hint)
    return score


def _interval(values: Sequence[float], seed: int) -> tuple[float, float]:
    """Ends of the 95 % percentile interval of a mean (Efron 1979)."""
    draw = random.Random(seed)
    drawn = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(RESAMPLES))
    edge = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return drawn[edge], drawn[RESAMPLES - 1 - edge]
