"""Speculative decoding: how many drafted tokens are accepted, from a rate, or from published acceptance lengths.

A step drafts k tokens and verifies k + 1 positions of every sequence at once. With the probability a that one drafted
token is accepted, it gives (1 - a^(k+1)) / (1 - a) tokens (Leviathan et al. 2023, arXiv 2211.17192, equation 1).
"""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import NamedTuple

from advisor import library
from advisor.errors import NotPossible
from advisor.types import Draft, Model, SpeculationMethod


class Acceptance(NamedTuple):
    """Probability that one drafted token is accepted, as a range of published values, effective at one draft length."""

    low: float
    typical: float
    high: float
    source: str


def expected_tokens(acceptance: float, draft_len: int) -> float:
    """Tokens per verification step: (1 - a^(k+1)) / (1 - a), between 1 and k + 1."""
    if not 0.0 <= acceptance <= 1.0:
        raise NotPossible(f"an acceptance of {acceptance}", where="speculation.acceptance", hint="a probability, 0 to 1")
    if acceptance > 1.0 - 1e-9:
        return draft_len + 1.0
    return (1.0 - acceptance ** (draft_len + 1)) / (1.0 - acceptance)


@cache
def acceptance_rate(length: float, draft_len: int) -> float:
    """The acceptance whose expected_tokens at this draft length is `length`, by bisection; clipped to 0 and 1."""
    if length >= draft_len + 1:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        if expected_tokens(middle, draft_len) < length:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@cache
def prior(method: SpeculationMethod, draft_len: int, task: str | None = None) -> Acceptance:
    """Published acceptance of a method at a draft length: least, median and largest over the rows of profiles/speculation.

    task: chat, coding, math, editing, translation, mixed; None: all of them. A row that has no value at this length lends
    the rate of its nearest length (acceptance falls with the position in the draft, so a longer draft's rate is the lower).
    """
    data = library.profile("speculation", method)
    assert data is not None  # one file per method is shipped
    rows = [row for row in data["rows"] if task is None or row["task"] == task]
    if not rows:
        known = sorted({row["task"] for row in data["rows"]})
        raise NotPossible(f"no acceptance of {method} is published for {task!r}", where="task", hint=", ".join(known))
    rates = [_rate(row.get("lengths"), row.get("rate"), draft_len) for row in rows]
    sources = dict.fromkeys(data["sources"][row["source"]] for row in rows)
    return Acceptance(min(rates), median(rates), max(rates), "; ".join(sources))


def _rate(lengths: dict[int, float] | None, rate: float | None, draft_len: int) -> float:
    if lengths is None:
        assert rate is not None
        return rate
    nearest = min(lengths, key=lambda known: (abs(known - draft_len), known))
    return acceptance_rate(lengths[nearest], nearest)


def published(model: Model, method: SpeculationMethod) -> Draft | None:
    """The draft of that method that somebody has published for this model."""
    return next((draft for draft in model.drafts if draft.method == method), None)


def acceptance_of(model: Model, method: SpeculationMethod, draft_len: int) -> Acceptance:
    """The method's range, with the acceptance published for this model's own draft as the typical value where there is one;
    what was measured with the draft itself, where it was."""
    draft = published(model, method)
    if draft is not None and draft.lengths:
        rate = _rate(draft.lengths, None, draft_len)
        return Acceptance(rate, rate, rate, draft.source)
    found = prior(method, draft_len)
    if draft is None or draft.acceptance_length is None or draft.draft_len is None:
        return found
    rate = acceptance_rate(draft.acceptance_length, draft.draft_len)
    return Acceptance(min(found.low, rate), rate, max(found.high, rate), draft.source or found.source)
