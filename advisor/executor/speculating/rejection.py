"""The rule by which the target settles drafted tokens when it samples, and the test that the output is still the target's.

A token x drafted with probability q(x) is accepted with probability min(1, p(x) / q(x)); else one is drawn from what p has
beyond q. Then every token comes out with the target's own probability p (Leviathan et al. 2023, arXiv 2211.17192, theorem 1;
Chen et al. 2023, arXiv 2302.01318, theorem 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

LEAST_EXPECTED = 5.0
"""draws that a cell of the test must be expected to hold (Cochran 1954); tokens with fewer share one cell"""

Settle = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def settle(target: Any, draft: Any, drafted: Any, generator: Any) -> tuple[Any, Any]:
    """What comes out where tokens were drafted, and whether each was accepted.

    target, draft: probabilities over the vocabulary, shape (vocabulary,). drafted: token ids, shape (draws,), drawn from
    `draft`. generator: torch's, for the coins.
    """
    import torch

    coins = torch.rand(drafted.shape, generator=generator, dtype=target.dtype)
    accepted = coins * draft[drafted] < target[drafted]
    beyond = (target - draft).clamp_min(0)
    if not bool(beyond.sum() > 0):  # the two are the same: nothing is refused but by rounding
        beyond = target
    instead = torch.multinomial(beyond, len(drafted), replacement=True, generator=generator)
    return torch.where(accepted, drafted, instead), accepted


class Unchanged(NamedTuple):
    """A test of "every token comes out with the target's own probability", summed over positions."""

    statistic: float
    """Pearson's chi-square"""
    freedom: int
    p_value: float
    """probability of a statistic at least so large if the output is the target's"""

    def __add__(self, other: object) -> Unchanged:
        if not isinstance(other, Unchanged):
            return NotImplemented
        return _judged(self.statistic + other.statistic, self.freedom + other.freedom)


NOTHING = Unchanged(0.0, 0, 1.0)


def check_position(target: Any, draft: Any, draws: int, generator: Any, rule: Settle = settle) -> Unchanged:
    """Let a rule settle many drafts at one position and hold what came out against the target's probabilities."""
    import torch

    drafted = torch.multinomial(draft, draws, replacement=True, generator=generator)
    given, _ = rule(target, draft, drafted, generator)
    expected, order = (target.double() * draws).sort(descending=True)
    seen = torch.bincount(given, minlength=len(target)).double()[order]
    own = int((expected >= LEAST_EXPECTED).sum())
    if float(expected[own:].sum()) < LEAST_EXPECTED:  # too few for a cell of their own: with the last that has one
        own = max(0, own - 1)
    cells = [torch.cat((each[:own], each[own:].sum()[None])) for each in (expected, seen)]
    return _judged(float(((cells[1] - cells[0]) ** 2 / cells[0]).sum()), own)


def accept_everything(target: Any, draft: Any, drafted: Any, generator: Any) -> tuple[Any, Any]:
    """The rule that the test must catch: the draft's tokens come out as they are."""
    return drafted, drafted == drafted


def _judged(statistic: float, freedom: int) -> Unchanged:
    import torch

    if freedom < 1:
        return Unchanged(statistic, freedom, 1.0)
    half = torch.tensor(freedom / 2, dtype=torch.float64)
    return Unchanged(statistic, freedom, float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64))))
