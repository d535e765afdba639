"""How far a model is from the unquantized one on held-out text: perplexity, KL divergence, top-1 agreement, with intervals.

The unquantized model's logits are kept on disk, one file a sequence, so that each candidate is compared with the same ones
and a killed run does not compute them again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from advisor.errors import NotPossible
from advisor.types import Interval

METRICS = ("perplexity", "kl", "top1")
RESAMPLES = 2000
CONFIDENCE = 0.95
BLOCK = 32
"""tokens resampled together: neighbours of one text are not independent"""
Verdict = Literal["passed", "failed", "inconclusive"]


@dataclass(frozen=True)
class Block:
    """Sums over up to BLOCK neighbouring tokens of one sequence."""

    tokens: int
    original: float
    """negative log likelihood of the true tokens under the unquantized model, nats"""
    other: float
    """under the other model"""
    divergence: float
    """KL(unquantized || other), nats"""
    same: int
    """tokens where both hold the same one most likely"""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def keep_logits(model: Any, sequence: tuple[int, ...], path: Path) -> None:
    """Write the model's logits for a sequence, in the model's own dtype, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"logits": _logits(model, sequence).cpu().contiguous()}, partial)
    partial.replace(path)


def compare(model: Any, sequence: tuple[int, ...], path: Path) -> list[Block]:
    """A model against the kept logits of the unquantized one, over one sequence."""
    import torch
    from safetensors.torch import load_file

    original = load_file(path)["logits"].float().log_softmax(-1)
    other = _logits(model, sequence).cpu().float().log_softmax(-1)
    if not bool(other.isfinite().all()):
        raise NotPossible(
            "the quantized model computes no finite numbers", where=str(path.parent), hint="choose another format"
        )
    truth = torch.tensor(sequence[1:])[:, None]
    rows = torch.stack(
        (
            -original[:-1].gather(1, truth)[:, 0],
            -other[:-1].gather(1, truth)[:, 0],
            (original.exp() * (original - other)).sum(-1)[:-1],
            (original.argmax(-1) == other.argmax(-1)).float()[:-1],
        )
    )
    found = []
    for start in range(0, rows.shape[1], BLOCK):
        part = rows[:, start : start + BLOCK].double()
        one, two, divergence, same = part.sum(1).tolist()
        found.append(Block(int(part.shape[1]), one, two, divergence, round(same)))
    return found


def measure(
    blocks: Sequence[Block], what: str, *, limit_on: str, budget_pct: float | None, seed: int = 0
) -> tuple[Interval, ...]:
    """Perplexity, KL (nats a token) and top-1 agreement with 95 % bootstrap intervals over blocks of tokens.

    The perplexity's interval is that of the ratio to the unquantized model's on the same tokens (paired), times the latter.
    limit_on: the metric that the budget limits; its Interval carries the limit.
    """
    ppl = math.exp(sum(block.original for block in blocks) / sum(block.tokens for block in blocks))
    tokens = sum(block.tokens for block in blocks)
    found = []
    for metric in METRICS:
        value, low, high = _bootstrap(blocks, _OF[metric], seed)
        scale = ppl if metric == "perplexity" else 1.0
        limit = _limit(metric, budget_pct, ppl) if metric == limit_on else None
        found.append(
            Interval(
                metric=metric, what=what, value=value * scale, low=low * scale, high=high * scale, samples=tokens, limit=limit
            )
        )
    return tuple(found)


def measure_original(blocks: Sequence[Block]) -> Interval:
    """The unquantized model's own perplexity."""
    tokens = sum(block.tokens for block in blocks)
    return Interval(
        metric="perplexity", what="original", value=math.exp(sum(block.original for block in blocks) / tokens), samples=tokens
    )


def loss_pct(blocks: Sequence[Block], metric: str, seed: int = 0) -> tuple[float, float, float]:
    """The loss that a budget limits, percent, with its interval: rise of perplexity; 100 x KL in nats; share of tokens whose
    most likely one changed."""
    value, low, high = _bootstrap(blocks, _OF[metric], seed)
    if metric == "perplexity":
        return 100 * (value - 1), 100 * (low - 1), 100 * (high - 1)
    if metric == "kl":
        return 100 * value, 100 * low, 100 * high
    return 100 * (1 - value), 100 * (1 - high), 100 * (1 - low)


def gain_pct(before: Sequence[Block], after: Sequence[Block], metric: str, seed: int = 0) -> tuple[float, float, float]:
    """What was won on the loss that a budget limits, percent points, with its 95 % interval: paired on the same tokens, as far
    as both were measured."""
    pairs = list(zip(before, after, strict=False))
    draw = random.Random(seed)

    def won(chosen: Sequence[tuple[Block, Block]]) -> float:
        one, two = (_OF[metric](*_sums([_row(pair[side]) for pair in chosen])) for side in (0, 1))
        return 100 * (two - one if metric == "top1" else one - two)

    drawn = sorted(won(draw.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
    edge = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return won(pairs), drawn[edge], drawn[RESAMPLES - 1 - edge]


def judge(loss: tuple[float, float, float], budget_pct: float) -> Verdict:
    """passed: the whole interval is within the budget; failed: wholly above; else inconclusive."""
    _, low, high = loss
    return "passed" if high <= budget_pct else "failed" if low > budget_pct else "inconclusive"


def _logits(model: Any, sequence: tuple[int, ...]) -> Any:
    import torch

    with torch.inference_mode():
        device = next(model.parameters()).device
        return model(input_ids=torch.tensor([sequence], device=device)).logits[0]


def _bootstrap(
    blocks: Sequence[Block], statistic: Callable[[float, float, float, float, int], float], seed: int
) -> tuple[float, float, float]:
    """The statistic over all blocks and the ends of its 95 % percentile interval (Efron 1979)."""
    rows = [_row(block) for block in blocks]
    value = statistic(*_sums(rows))
    draw = random.Random(seed)
    drawn = sorted(statistic(*_sums(draw.choices(rows, k=len(rows)))) for _ in range(RESAMPLES))
    edge = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return value, drawn[edge], drawn[RESAMPLES - 1 - edge]


def _row(block: Block) -> tuple[float, float, float, float, int]:
    return block.original, block.other, block.divergence, float(block.same), block.tokens


def _sums(rows: Sequence[tuple[float, float, float, float, int]]) -> tuple[float, float, float, float, int]:
    one, two, three, four, five = zip(*rows, strict=True)
    return sum(one), sum(two), sum(three), sum(four), sum(five)


_OF: dict[str, Callable[[float, float, float, float, int], float]] = {
    "perplexity": lambda original, other, _kl, _same, tokens: math.exp((other - original) / tokens),
    "kl": lambda _original, _other, kl, _same, tokens: kl / tokens,
    "top1": lambda _original, _other, _kl, same, tokens: same / tokens,
}


def _limit(metric: str, budget_pct: float | None, ppl: float) -> float | None:
    if budget_pct is None:
        return None
    return {"perplexity": ppl * (1 + budget_pct / 100), "kl": budget_pct / 100, "top1": 1 - budget_pct / 100}[metric]
