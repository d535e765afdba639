"""Benchmarks of lm-eval, imported nowhere else: what a task scores on each of its documents.

The model is one that our own reader loaded: lm-eval's way of loading (transformers) computes nonsense from a ModelOpt
checkpoint without an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advisor.errors import InputError, MissingExtra, NotPossible, UnknownName

EXTRA = "pip install 'inference-advisor[tasks]'"


@dataclass(frozen=True)
class Scores:
    """What a model scored on a task, document by document; those of a group of tasks one after the other."""

    metric: str
    """lm-eval's name of it: the first one that the task lists"""
    higher: bool
    """whether more is better"""
    documents: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of all documents."""
        return sum(self.documents) / len(self.documents)

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def check_task(task: str, folder: Path | None) -> None:
    """Build a task with its data, so that what is amiss is known before any work. folder: YAML files of tasks of one's own.

    Raises MissingExtra; UnknownName; InputError when its data cannot be had; NotPossible when its metric is no mean.
    """
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise MissingExtra(f"--accuracy-metric task:{task} needs lm-eval", hint=f"install it: {EXTRA}")
    with _quiet():
        manager = _manager(task, folder)
        built = _load(manager, task, folder)
    for name, each in built["tasks"].items():
        if not _metric(each):
            raise NotPossible("this task lists no metric", where=f"task:{name}", hint="choose another task")


def score(model: Any, tokenizer: Any, task: str, folder: Path | None) -> Scores:
    """Run a task on a loaded model, one request at a time.

    Raises as check_task, and NotPossible for a metric that is no mean over documents.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _quiet():
        manager = _manager(task, folder)
        first = {name: _metric(each) for name, each in _load(manager, task, folder)["tasks"].items()}
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1)
        found = simple_evaluate(model=wrapped, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True)
    metric = next(iter(first.values()))
    documents: list[float] = []
    higher = True
    for name, samples in found["samples"].items():
        kept = samples[0]["filter"] if samples else None
        higher = bool(found["higher_is_better"][name].get(first[name], True))
        documents += [_number(sample.get(first[name]), name, first[name]) for sample in samples if sample["filter"] == kept]
    if len(documents) < 2:
        raise InputError("a task of fewer than two documents tells nothing", where=f"task:{task}", hint="give more of them")
    return Scores(metric, higher, tuple(documents))


def _number(value: object, task: str, metric: str) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    what = f"{metric} of this task is no mean over its documents"
    raise NotPossible(what, where=f"task:{task}", hint="let it list acc or exact_match first")


def _metric(task: Any) -> str:
    """The first metric that a task lists, or ""."""
    listed = task.config.metric_list or []
    return str(listed[0]["metric"]) if listed else ""


def _manager(task: str, folder: Path | None) -> Any:
    """The tasks of the folder where it has this one, else lm-eval's own too. Raises UnknownName."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        if not folder.is_dir():
            raise InputError("there is no such folder of tasks", where=f"--tasks {folder}", hint="give one with YAML files")
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if task in own.task_index:
            return own
    every = TaskManager(include_path=str(folder) if folder else None)
    if task not in every.task_index:
        hint = "`lm-eval ls tasks` lists lm-eval's; --tasks DIR adds yours"
        raise UnknownName("task", task, every.all_tasks, where="--accuracy-metric", hint=hint)
    return every


def _load(manager: Any, task: str, folder: Path | None) -> Any:
    try:
        return manager.load([task])
    except Exception as error:  # the data sets library raises whatever its many readers raise
        raise InputError(
            f"the task does not load: {(str(error).strip().splitlines() or [type(error).__name__])[0][:200]}",
            where=f"task:{task}" + (f" of {folder}" if folder else ""),
            hint="fetch its data set while the hub can be reached, or give --tasks DIR with a task whose data_files are local",
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval and its data sets print bars and warnings: send them away while they work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
