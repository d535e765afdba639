"""Training a causal LM on token sequences, so that a killed run goes on and ends with the weights of an undisturbed one.

Nothing is padded: sequences of one length go through together as far as memory should bear it, and gradients add up over a
batch. Weights are trained in 32 bits (a step of 1e-5 is lost in a 16-bit weight) and get their own width back at the end.
Of a quantized model the weights are trained through their rounding; its scales are buffers, and stay as calibrated.
"""

from __future__ import annotations

import math
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from advisor.executor.bookkeeping.journal import Journal, digest, file_errors
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.learning.objectives import Objective
from advisor.executor.quantizing import causal_model

FIRST = 3
"""steps, after one that warms caches, by which the whole is timed"""
SLOWER = 2.0
"""a step to its forward passes, at most: 32 bits are twice the bytes; 1.2 to 1.4 measured on a CPU (docs/training.md)"""
AT_ONCE = 512
"""tokens that go through together, where several sequences do: their logits are in memory several times over"""


@dataclass(frozen=True)
class Settings:
    """How to train."""

    steps: int
    batch: int = 4
    """sequences a step"""
    learning_rate: float = 1e-5
    warm_up: int = 0
    """steps over which the rate rises to learning_rate; it is constant then"""
    clip: float = 1.0
    """largest norm of a step's gradient"""
    weight_decay: float = 0.0
    frozen: tuple[str, ...] = ()
    """patterns of parameters that are not trained"""
    every: int = 10
    """steps between two checkpoints, each with a validation where there is one"""
    patience: int = 3
    """validations without a new best after which training stops"""
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """How far a training is, and at its end what it gave. All of it is in each checkpoint."""

    planned: int
    """steps"""
    step: int = 0
    """steps done"""
    losses: tuple[float, ...] = ()
    """of each step's batch, before the step; nats a token"""
    validations: tuple[tuple[int, float], ...] = ()
    """(step, value), lower is better; the first is before training"""
    stopped: str = ""
    """done, early (no better for `patience` validations), late (the time allowed), diverged; "" while it goes on"""
    tokens: int = 0
    """trained on"""
    spent: float = 0.0
    """seconds of the steps alone, over all runs that it took"""
    timed: tuple[float, ...] = ()
    """seconds of the steps by which the whole was foreseen"""
    peak_gib: float = 0.0
    """the most memory that the process has held"""

    @property
    def best(self) -> int:
        """The step whose weights the model is left with: of the least validation, of the last step without any."""
        return min(self.validations, key=lambda one: one[1])[0] if self.validations else self.step

    @property
    def foreseen(self) -> float | None:
        """Seconds of all planned steps, as the first ones promised; None: there were too few."""
        return self.planned * sum(self.timed) / FIRST if len(self.timed) == FIRST else None


def train(
    model: Any,
    sequences: Sequence[tuple[int, ...]],
    objective: Objective,
    settings: Settings,
    *,
    journal: Journal,
    name: str,
    inputs: Mapping[str, Any],
    progress: Progress,
    validate: Callable[[Any], float] | None = None,
    max_seconds: float | None = None,
    settle: Callable[[Any], None] | None = None,
) -> Trained:
    """Train a model in place; it is left with the weights of the best validation, or of the last step without one.

    name: of the journal's stages and of the checkpoints' folder. inputs: what the model was made from and the objective, as
    plain data: a checkpoint of other inputs is not found. validate: lower is better; it sees the model in evaluation mode.
    max_seconds: from now on, whatever an earlier run took; training stops there with what it has, and one that stopped so
    goes on. settle: what is done to the trained model while it is in 32 bits still. Raises FileProblem.
    """
    key = {**inputs, "settings": asdict(settings), "sequences": digest(list(sequences))}
    ends = None if max_seconds is None else time.monotonic() + max_seconds
    with _in_full_width(model):
        loop = _Loop(model, settings, Trained(settings.steps), journal, name, key)
        kept = loop.resume()
        if kept:
            progress.say("kept", f"{name}: going on after step {loop.now.step}", step=loop.now.step)
        order = batches(len(sequences), settings.batch, settings.seed)
        for _ in range(loop.now.step):
            next(order)
        if cut_short(asdict(loop.now), max_seconds):
            loop.now = replace(loop.now, stopped="")
        tick = progress.track(name, settings.steps, loop.now.step)
        if not kept:
            loop.checkpoint(validate, progress)
        while not loop.now.stopped:
            loop.advance([sequences[index] for index in next(order)], objective, ends)
            tick(loop.now.step)
            if loop.now.step == FIRST + 1 and loop.now.foreseen is not None:
                progress.say("foreseen", f"{name}: about {loop.now.foreseen:.0f} s for all steps", seconds=loop.now.foreseen)
            if loop.now.stopped or loop.now.step % settings.every == 0:
                loop.checkpoint(validate, progress)
        if loop.now.best != loop.now.step:
            loop.load(loop.now.best)
        if settle is not None:
            settle(model)
        return loop.now


def cut_short(trained: Mapping[str, Any], max_seconds: float | None) -> bool:
    """Whether a finished training, as plain data, stopped for want of time and may go on now."""
    return trained["stopped"] == "late" and (max_seconds is None or max_seconds > 0)


def batches(count: int, size: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Endless batches of indices below `count`: each epoch in an order of its own, the same for the same seed."""
    left: list[int] = []
    epoch = 0
    while True:
        while len(left) < size:
            order = list(range(count))
            random.Random(f"{seed}/{epoch}").shuffle(order)
            left, epoch = left + order, epoch + 1
        yield tuple(left[:size])
        left = left[size:]


def read_trained(value: Mapping[str, Any]) -> Trained:
    """From the plain data of a stage."""
    tuples = {one: tuple(value[one]) for one in ("losses", "timed")}
    pairs = tuple((int(at), float(least)) for at, least in value["validations"])
    known = {one.name: value[one.name] for one in fields(Trained)}
    return Trained(**{**known, **tuples, "validations": pairs})


def grouped(batch: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """The sequences of a batch in groups of one length, at most AT_ONCE tokens together unless it is a single one."""
    for length in sorted({len(one) for one in batch}):
        same = [one for one in batch if len(one) == length]
        size = max(1, AT_ONCE // length)
        yield from (same[start : start + size] for start in range(0, len(same), size))


class _Loop:
    """One training: the model, its optimizer, how far it is, and its checkpoints."""

    def __init__(
        self, model: Any, settings: Settings, now: Trained, journal: Journal, name: str, key: Mapping[str, Any]
    ) -> None:
        import torch

        self.model, self.settings, self.now = model, settings, now
        self.journal, self.name, self.key = journal, name, key
        self.folder = journal.folder / name
        for one, each in model.named_parameters():
            each.requires_grad_(not any(fnmatchcase(one, pattern) for pattern in settings.frozen))
        self.weights = {one: each for one, each in model.named_parameters() if each.requires_grad}
        self.optimizer = torch.optim.AdamW(self.weights.values(), weight_decay=settings.weight_decay)

    def advance(self, batch: Sequence[tuple[int, ...]], objective: Objective, ends: float | None) -> None:
        """One step, the last where it is over after `ends` (time.monotonic()). A batch whose loss is no number changes no
        weight and ends the training."""
        import torch

        began, now, settings = time.monotonic(), self.now, self.settings
        causal_model.set_seed(settings.seed * 1_000_003 + now.step)
        self.model.train()
        device = next(iter(self.weights.values())).device
        total = 0.0
        for together in grouped(batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):  # a CPU gains nothing by it
                mean = objective(self.model, torch.tensor(together, device=device))
            loss = mean * len(together) / len(batch)
            loss.backward()
            total += float(loss.detach())
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (now.step + 1) / max(1, settings.warm_up))
        norm = float(torch.nn.utils.clip_grad_norm_(self.weights.values(), settings.clip))
        sound = math.isfinite(total) and math.isfinite(norm)
        if sound:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        took = time.monotonic() - began
        late = ends is not None and time.monotonic() >= ends
        self.now = replace(
            now,
            step=now.step + sound,
            losses=(*now.losses, total) if sound else now.losses,
            stopped="diverged" if not sound else "done" if now.step + 1 == settings.steps else "late" if late else "",
            tokens=now.tokens + sum(map(len, batch)) * sound,
            spent=round(now.spent + took, 3),
            timed=(*now.timed, round(took, 3)) if 0 < now.step <= FIRST else now.timed,
            peak_gib=round(causal_model.peak_gib(), 2),
        )

    def checkpoint(self, validate: Callable[[Any], float] | None, progress: Progress) -> None:
        """Validate, keep everything, and remove the checkpoints that are neither the last nor the best."""
        if validate is not None and self.now.step not in dict(self.now.validations):
            self.model.eval()
            value = validate(self.model)
            progress.say("validation", f"{self.name}: {value:.4f} after step {self.now.step}", step=self.now.step, value=value)
            if math.isfinite(value):
                self.now = replace(self.now, validations=(*self.now.validations, (self.now.step, value)))
            worse = sum(step > self.now.best for step, _ in self.now.validations)
            ended = "early" if worse >= self.settings.patience else "" if math.isfinite(value) else "diverged"
            self.now = replace(self.now, stopped=self.now.stopped or ended)
        self.journal.do(self._stage(self.now.step), self.key, lambda: (asdict(self.now), self._write()))
        for folder in self.folder.glob("step-*"):
            if folder.name not in (f"step-{self.now.step}", f"step-{self.now.best}"):
                shutil.rmtree(folder, ignore_errors=True)

    def resume(self) -> bool:
        """Go to the last checkpoint that is whole. False: there is none."""
        stage = self._stage("")
        stages = {event["stage"] for event in self.journal.events if event["event"] == "finished"}
        steps = [int(one.removeprefix(stage)) for one in stages if one.startswith(stage)]
        for step in sorted(steps, reverse=True):
            found = self.journal.find(self._stage(step), self.key)
            if found is not None:
                self.now = read_trained(found)
                self.load(step)
                return True
        return False

    def load(self, step: int) -> None:
        """The weights and the optimizer's moments of a checkpoint."""
        import torch
        from safetensors.torch import load_file

        folder = self.folder / f"step-{step}"
        with file_errors(folder), torch.no_grad():
            for one, value in load_file(folder / "weights.safetensors").items():
                self.weights[one].copy_(value)
            for label, value in load_file(folder / "optimizer.safetensors").items():
                one, _, kind = label.rpartition(":")
                self.optimizer.state[self.weights[one]][kind] = value if kind == "step" else value.to(self.weights[one].device)

    def _write(self) -> tuple[Path, ...]:
        from safetensors.torch import save_file

        folder = self.folder / f"step-{self.now.step}"
        moments = {f"{one}:{kind}": v for one, each in self.weights.items() for kind, v in self.optimizer.state[each].items()}
        content = {"weights": {one: each.detach() for one, each in self.weights.items()}, "optimizer": moments}
        with file_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for kind, tensors in content.items():
                save_file({one: each.cpu().contiguous() for one, each in tensors.items()}, folder / f"{kind}.safetensors")
        return tuple(folder / f"{kind}.safetensors" for kind in content)

    def _stage(self, step: int | str) -> str:
        return f"{self.name}/step-{step}"


@contextmanager
def _in_full_width(model: Any) -> Iterator[None]:
    """Everything of the model in 32 bits; each tensor has its own width again afterwards, and the model its mode."""
    widths = {one: each.dtype for one, each in _tensors(model) if each.is_floating_point()}
    training = model.training
    model.float()
    try:
        yield
    finally:
        for one, each in _tensors(model):
            if one in widths:
                each.data = each.data.to(widths[one])
        model.train(training)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
