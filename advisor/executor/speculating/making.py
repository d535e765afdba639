"""A draft where none exists: the target without most of its layers, taught by the target, or an EAGLE-3 head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from advisor.errors import InputError, NotPossible
from advisor.executor.bookkeeping.journal import Journal, digest, file_errors
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.bookkeeping.spending import in_minutes
from advisor.executor.judging import pace
from advisor.executor.judging.trial import memory_errors
from advisor.executor.learning import pruning
from advisor.executor.learning.objectives import imitate
from advisor.executor.learning.training import SLOWER, Settings, Trained, cut_short, read_trained, train
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.calibration import SHORTEST, read_prompts
from advisor.executor.speculating.drafting import Order
from advisor.executor.speculating.eagle_head import Head, make_head

Kind = Literal["layers", "eagle3"]
RATES: dict[Kind, float] = {"layers": 5e-4, "eagle3": 1e-4}
"""learning rates: tried on SmolLM2-135M with 12 of 30 layers; ModelOpt 0.47's recipe general/speculative_decoding/eagle3"""
BATCH = 4
WATCHED = 8
"""texts by which the influence of the layers is measured, and by which training is stopped; none of them is learned from"""


@dataclass(frozen=True)
class Making:
    """What draft to make, and of what."""

    kind: Kind
    training: Path
    """texts to learn from: the target's own answers are the best"""
    steps: int = 50
    layers: int | None = None
    """that are kept; for kind "layers" """
    max_seconds: float | None = None
    """of its training; None: as long as the steps take"""


@dataclass(frozen=True)
class Made:
    """A draft's files and how they came about."""

    kind: Kind
    folder: Path
    training: Trained
    how: str
    problems: tuple[str, ...] = ()
    """why an engine would not load the files, as far as they tell"""


def make_draft(making: Making, order: Order, journal: Journal, progress: Progress) -> tuple[Made, Any]:
    """Make it in the journal's folder; finished work is not done again. With a head comes the model that has it, else None.

    Raises InputError, FileProblem, NotPossible, MissingExtra, Spent.
    """
    texts = _texts(making, order)
    settings = Settings(
        steps=making.steps, batch=BATCH, learning_rate=RATES[making.kind], warm_up=max(1, making.steps // 10), seed=order.seed
    )
    with memory_errors():
        most = _seconds_allowed(making, order, texts, journal, progress)
        if making.kind == "eagle3":
            causal_model.require_libraries()
            head, model = make_head(order.target, texts, settings, journal=journal, progress=progress, max_seconds=most)
            return _told(head), model
        return _make_layers(making, order, texts, settings, journal, progress, most), None


def _seconds_allowed(
    making: Making, order: Order, texts: Sequence[tuple[int, ...]], journal: Journal, progress: Progress
) -> float | None:
    """Of the training, by its own limit and the policy's; None: there is none. A training that was begun may go on.

    Raises NotPossible: its low estimate, by a forward pass of the target, is more.
    """
    spending = progress.spending
    limits = [one for one in (making.max_seconds, spending.seconds_left if spending else None) if one is not None]
    key = {"kind": making.kind, "layers": making.layers, "steps": making.steps, "texts": digest(list(texts))}
    if limits and journal.find("draft/begun", key) is None:
        model = causal_model.load_model(order.target)
        share = (making.layers or 1) / model.config.get_text_config().num_hidden_layers
        tokens = making.steps * BATCH * sum(map(len, texts)) / len(texts)
        low = tokens * (1 + 3 * share) * pace.forward_seconds(model, max(texts, key=len))
        told = f"teaching the draft takes about {in_minutes(low, SLOWER * low)} here (by a forward pass)"
        if low > min(limits):
            where = f"{min(limits) / 60:.1f} min are left"
            raise NotPossible(told, where=where, hint="fewer --training-steps, or allow more: --max-time, the policy's spend")
        progress.say("training", told, seconds=(low, SLOWER * low))
    journal.do("draft/begun", key, lambda: ({}, ()))
    return min(limits, default=None)


def _make_layers(
    making: Making, order: Order, texts: Sequence[tuple[int, ...]], settings: Settings, journal: Journal, progress: Progress,
    most: float | None,
) -> Made:  # fmt: skip
    """Drop the least influential layers and let the rest learn the target's distribution."""
    folder, watched, learned = journal.folder / "layers", texts[:WATCHED], texts[WATCHED:]
    inputs = {"target": str(order.target), "layers": making.layers, "watched": digest(list(watched))}

    def cut() -> tuple[dict[str, Any], tuple[Path, ...]]:
        model = causal_model.load_model(order.target)
        total = model.config.num_hidden_layers
        if making.layers is None or not 0 < making.layers < total:
            raise InputError(
                f"a draft of {making.layers} layers", where="--layers", hint=f"give a number from 1 to {total - 1}"
            )
        tick = progress.track("influence of the layers", total - making.layers)
        found = pruning.cut_depth(model, watched, making.layers, tick)
        with file_errors(folder):
            return asdict(found), pruning.write_model(model, order.target, folder / "cut")

    def learn() -> tuple[dict[str, Any], tuple[Path, ...]]:
        teacher, student = causal_model.load_model(order.target), causal_model.load_model(folder / "cut")
        objective = imitate(teacher.float())
        trained = train(
            student, learned, objective, settings, journal=journal, name="layers/training", inputs=key, progress=progress,
            validate=lambda model: _mean(objective, model, watched), max_seconds=most,
        )  # fmt: skip
        with file_errors(folder):
            return asdict(trained), pruning.write_model(student, order.target, folder / "checkpoint")

    taken, _ = journal.do("layers/cut", inputs, cut)
    key = {**inputs, "cut": journal.events_key("layers/cut")}
    value, _ = journal.do(
        "layers/learn", {**key, "settings": asdict(settings), "texts": digest(list(learned))}, learn,
        suffices=lambda value: not cut_short(value, most),
    )  # fmt: skip
    training = read_trained(value)
    kept = ", ".join(map(str, taken["kept"]))
    first, best = training.validations[0][1], min(each for _, each in training.validations)
    how = f"layers {kept} of the target, counted from 0; KL from it {first:.2f} nats a token cut, {best:.2f} taught"
    return Made("layers", folder / "checkpoint", training, how)


def _told(head: Head) -> Made:
    losses = head.training.losses
    ends = f"; loss {losses[0]:.2f} to {losses[-1]:.2f}" if losses else ""
    how = f"an EAGLE-3 head of {head.params / 1e6:.1f} M parameters beside the target's own embedding{ends}"
    return Made("eagle3", head.folder, head.training, how, head.problems)


def _texts(making: Making, order: Order) -> tuple[tuple[int, ...], ...]:
    """Token ids of the texts that are long enough. Raises InputError: they are too few to learn from."""
    tokenizer = causal_model.load_tokenizer(order.target)
    texts = dict.fromkeys(read_prompts(making.training, causal_model.chat_renderer(tokenizer, str(making.training))))
    ids = (tuple(tokenizer(text, truncation=True, max_length=order.prompt_tokens)["input_ids"]) for text in texts)
    found = tuple(one for one in ids if len(one) >= SHORTEST)
    if len(found) < WATCHED + BATCH:
        raise InputError(
            f"{len(found)} different texts of {SHORTEST} tokens or more are too few to learn from",
            where=str(making.training),
            hint=f"give {WATCHED + BATCH} at least; thousands, and the target's own answers, are what it takes",
        )
    return found


def _mean(objective: Any, model: Any, sequences: Sequence[tuple[int, ...]]) -> float:
    import torch

    with torch.no_grad():
        device = next(model.parameters()).device
        return sum(float(objective(model, torch.tensor([one], device=device))) for one in sequences) / len(sequences)


def check_making(making: Making, order: Order) -> None:
    """Raise NotPossible where the made draft could not be measured, FileProblem where there is nothing to learn from."""
    read_prompts(making.training, lambda _messages: "")
    if making.kind == "eagle3" and order.temperature:
        raise NotPossible(
            "a head's acceptance is measured on greedy answers alone",
            where=f"--temperature {order.temperature:g}",
            hint="its guesses depend on its own guesses: leave --temperature out",
        )
