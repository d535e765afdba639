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
from dataclasses import dataclass

LONGEST = 8
"""longest draft that is replayed: the estimator considers none longer"""
RESAMPLES = 2000
Rates = Sequence[Sequence[float]]
Figure = tuple[float, float, float]
"""value and the ends of its 95 % bootstrap interval over texts"""


@dataclass(frozen=True)
class Replay:
    """One text, replayed with every draft length: each tuple has one value a length, or a position in the longest draft."""

    tokens: int
    """that the steps gave: the first token of an answer comes from the prompt's own step"""
    steps: tuple[float, ...]
    """expected verification steps for all of them"""
    whole: tuple[float, ...]
    """expected steps that the text's end does not cut short"""
    given: tuple[float, ...]
    """expected tokens of those"""
    reached: tuple[float, ...]
    """expected drafted tokens that were looked at, by position in the longest draft"""
    accepted: tuple[float, ...]
    """of them accepted"""


def replay(rates: Rates, longest: int = LONGEST) -> Replay:
    """The text's expected steps. rates: one row a token, of at most `longest` positions and never past the text's end."""
    walks = [_walk(rates, length) for length in range(1, longest + 1)]
    reached, accepted = _positions(rates, longest)
    steps, whole, given = (tuple(each) for each in zip(*walks, strict=True))
    return Replay(len(rates), steps, whole, given, reached, accepted)


def rates_of_run(agreement: Sequence[float], longest: int = LONGEST) -> tuple[tuple[float, ...], ...]:
    """Rates of a draft whose guess for a token depends on the text before it alone: a model that drafts token by token."""
    return tuple(tuple(agreement[start : start + longest]) for start in range(len(agreement)))


def tokens_per_step(replays: Sequence[Replay], draft_len: int, seed: int = 0) -> Figure | None:
    """Tokens that a verification step gives, over all texts and the steps that no end cuts short; None: there is none."""
    pairs = [(one.given[draft_len - 1], one.whole[draft_len - 1]) for one in replays]
    return _ratio(pairs, seed) if sum(whole for _, whole in pairs) > 0 else None


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


def _begins(rates: Rates, draft_len: int) -> list[float]:
    """Probability that a step begins at each token: a step gives the accepted tokens and one more."""
    end = len(rates)
    begins = [1.0, *[0.0] * end]
    for start in range(end):
        for more, chance in enumerate(_chances(rates[start], draft_len)):
            begins[min(end, start + more + 1)] += begins[start] * chance
    return begins[:end]


def _walk(rates: Rates, draft_len: int) -> tuple[float, float, float]:
    """Expected steps, and of those that no end cuts short their number and their tokens."""
    begins = _begins(rates, draft_len)
    last = max(0, len(rates) - draft_len)  # a step from there on could have given more than is left
    given = sum(
        begin * sum((more + 1) * chance for more, chance in enumerate(_chances(rates[start], draft_len)))
        for start, begin in enumerate(begins[:last])
    )
    return sum(begins), sum(begins[:last]), given


def _positions(rates: Rates, longest: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Expected tokens looked at and accepted by their position in the draft, over the steps that the longest draft takes."""
    end = len(rates)
    reached, accepted = [0.0] * longest, [0.0] * longest
    for start, begin in enumerate(_begins(rates, longest)):
        alive = begin
        for position in range(min(longest, end - start)):  # a step without a guess at a position refuses it
            rate = rates[start][position] if position < len(rates[start]) else 0.0
            reached[position] += alive
            accepted[position] += alive * rate
            alive *= rate
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
