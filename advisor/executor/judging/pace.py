"""How long one token takes here: greedy decoding of one sequence with transformers, models in turns so that a busy machine
slows each alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

RESAMPLES = 2000


def time_turns(models: Sequence[Any], sequence: tuple[int, ...], *, tokens: int = 16, turns: int = 7) -> list[list[float]]:
    """Seconds per decoded token of each model, one figure a turn; the first turn warms caches and is left out."""
    rows = [[_time_one(model, sequence, tokens) for model in models] for _ in range(turns + 1)][1:]
    return [list(column) for column in zip(*rows, strict=True)]


def ratio_of(one: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Median of the turns' ratios one / other, with its 95 % bootstrap interval."""
    ratios = [left / right for left, right in zip(one, other, strict=True)]
    draw = random.Random(seed)
    drawn = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return statistics.median(ratios), drawn[round(0.025 * RESAMPLES)], drawn[round(0.975 * RESAMPLES) - 1]


def bytes_read(model: Any) -> int:
    """Bytes of weights that decoding one token reads: all but the input embedding, unless it is the output head too."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    unread = 0 if tied else embedding.weight.numel() * embedding.weight.element_size()
    return int(sum(each.numel() * each.element_size() for each in model.parameters()) - unread)


def forward_seconds(model: Any, sequence: tuple[int, ...]) -> float:
    """Seconds a token that reading a sequence takes: median of three, after one to warm up."""
    import torch

    took = []
    ids = torch.tensor([sequence], device=next(model.parameters()).device)
    with torch.inference_mode():
        for _ in range(4):
            began = time.monotonic()
            float(model(input_ids=ids).logits[0, -1, 0])
            took.append(time.monotonic() - began)
    return statistics.median(took[1:]) / len(sequence)


def _time_one(model: Any, sequence: tuple[int, ...], tokens: int) -> float:
    import torch

    with torch.inference_mode():
        device = next(model.parameters()).device
        made = model(input_ids=torch.tensor([sequence], device=device), use_cache=True)
        began = time.monotonic()
        for _ in range(tokens):
            last = made.logits[:, -1:].argmax(-1)
            made = model(input_ids=last, past_key_values=made.past_key_values, use_cache=True)
        float(made.logits[0, 0, 0])
        return (time.monotonic() - began) / tokens
