"""What a draft would have given over text that the target wrote itself: expected steps by draft length, without serving it.

A step that begins at token t drafts k tokens and the target settles them in order. rates[t][i] is the probability that the
i-th of them is accepted, given that those before it were and that the text goes on as it does:

    greedy     1 where the drafted token is the text's, else 0
    sampled    min(1, q / p) of the text's token, p the target's probability of it and q the draft's

The second follows from the rejection rule (Leviathan et al. 2023, arXiv 2211.17192, theorem 1): a token is given by an accepted
draft with probability min(p, q), and given at all with probability p. So no draft need be drawn, and no coin is thrown.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

LONGEST = 8
"""longest draft that is replayed: the estimator considers none longer"""
RESAMPLES = 2000
Rates = Sequence[Sequence[float]]
Figure = tuple[float, float, float]
"""value and the ends of its 95 % bootstrap interval over texts"""


@dataclass(frozen=True)
class Replay:
    """One text, replayed with every draft length."""

    tokens: int
    """that the steps gave: the first token of an answer comes from the prompt's own step"""
    steps: tuple[float, ...]
    """expected verification steps with drafts of 1, 2, … tokens"""
    reached: tuple[float, ...]
    """expected drafted tokens that were looked at, by position in the longest draft"""
    accepted: tuple[float, ...]
    """of them accepted"""

    def plain(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def replay(rates: Rates, longest: int = LONGEST) -> Replay:
    """The text's expected steps. rates: one row a token, of at most `longest` positions and never past the text's end."""
    steps = tuple(_steps(rates, length) for length in range(1, longest + 1))
    reached, accepted = _positions(rates, longest)
    return Replay(len(rates), steps, reached, accepted)


def rates_of_run(agreement: Sequence[float], longest: int = LONGEST) -> tuple[tuple[float, ...], ...]:
    """Rates of a draft whose guess for a token depends on the text before it alone: a model that drafts token by token."""
    return tuple(tuple(agreement[start : start + longest]) for start in range(len(agreement)))


def tokens_per_step(replays: Sequence[Replay], draft_len: int, seed: int = 0) -> Figure:
    """Tokens that a verification step gives, over all texts: between 1 and draft_len + 1."""
    return _ratio([(one.tokens, one.steps[draft_len - 1]) for one in replays], seed)


def acceptance_at(replays: Sequence[Replay], position: int, seed: int = 0) -> Figure | None:
    """Probability that the draft's token at a position (from 1) is accepted once those before it were; None: never reached."""
    pairs = [(one.accepted[position - 1], one.reached[position - 1]) for one in replays]
    return _ratio(pairs, seed) if sum(reached for _, reached in pairs) > 0 else None


def _chances(row: Sequence[float], draft_len: int) -> list[float]:
    """Probability that exactly 0, 1, … drafted tokens are accepted."""
    found, alive = [], 1.0
    for rate in row[:draft_len]:
        found.append(alive * (1 - rate))
        alive *= rate
    return [*found, alive]


def _steps(rates: Rates, draft_len: int) -> float:
    """Expected steps from the first token on, backwards from the end: a step gives the accepted tokens and one more."""
    end = len(rates)
    left = [0.0] * (end + 1)
    for start in range(end - 1, -1, -1):
        chances = _chances(rates[start], draft_len)
        left[start] = 1 + sum(chance * left[min(end, start + given + 1)] for given, chance in enumerate(chances))
    return left[0]


def _positions(rates: Rates, longest: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Expected tokens looked at and accepted by their position in the draft, over the steps that the longest draft takes."""
    end = len(rates)
    begins = [1.0, *[0.0] * end]
    reached, accepted = [0.0] * longest, [0.0] * longest
    for start in range(end):
        if not begins[start]:
            continue
        alive = begins[start]
        for position in range(min(longest, end - start)):  # a step without a guess at a position refuses it
            rate = rates[start][position] if position < len(rates[start]) else 0.0
            reached[position] += alive
            accepted[position] += alive * rate
            alive *= rate
        for given, chance in enumerate(_chances(rates[start], longest)):
            begins[min(end, start + given + 1)] += begins[start] * chance
    return tuple(reached), tuple(accepted)


def _ratio(pairs: Sequence[tuple[float, float]], seed: int) -> Figure:
    """Ratio of the sums, and its percentile interval over resampled texts (Efron 1979)."""
    draw = random.Random(seed)
    value = sum(up for up, _ in pairs) / sum(down for _, down in pairs)
    drawn = []
    for _ in range(RESAMPLES):
        some = draw.choices(pairs, k=len(pairs))
        below = sum(down for _, down in some)
        drawn.append(sum(up for up, _ in some) / below if below else value)
    drawn.sort()
    edge = RESAMPLES // 40
    return value, drawn[edge], drawn[-1 - edge]
