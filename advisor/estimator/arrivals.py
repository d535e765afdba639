"""Requests to simulate: a trace as it was, or lengths of a distribution arriving at a rate."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from advisor.errors import TrafficProblem

LONGEST_TOKENS = 10_000_000
"""of one request; no model in profiles/models reads a fiftieth of it"""


class Request(NamedTuple):
    """One request: arrival in seconds from the start, input and output tokens."""

    arrival: float
    isl: int
    osl: int


def from_trace(rows: Iterable[tuple[float, int, int]]) -> tuple[Request, ...]:
    """Requests from (arrival in seconds, input tokens, output tokens), sorted, the first arrival at 0.

    Raises TrafficProblem for times that are not finite and lengths below 1.
    """
    found = sorted(Request(float(arrival), int(isl), int(osl)) for arrival, isl, osl in rows)
    for number, request in enumerate(found):
        if not (1 <= request.isl <= LONGEST_TOKENS and 1 <= request.osl <= LONGEST_TOKENS):
            raise TrafficProblem(
                f"a request of {request.isl} input and {request.osl} output tokens cannot be simulated",
                where=f"request {number} in order of arrival",
                hint="both must be at least 1",
            )
    if found and not (found[-1].arrival - found[0].arrival < float("inf")):
        raise TrafficProblem("arrival times must be finite numbers of seconds", hint="check the trace's time column")
    start = found[0].arrival if found else 0.0
    return tuple(request._replace(arrival=request.arrival - start) for request in found)


def drawn(
    lengths: Sequence[tuple[int, int]], count: int, *, rate: float | None, burstiness: float = 1.0, seed: int = 0
) -> tuple[Request, ...]:
    """`count` requests with lengths drawn from `lengths`, the same for the same seed.

    rate: arrivals per second, gamma-distributed times between them with coefficient of variation `burstiness` (1 is
    Poisson, 0 a fixed beat); None: all there at the start.
    """
    if not lengths:
        raise TrafficProblem("no lengths to draw requests from", hint="give a mean or a sample of (input, output) tokens")
    if rate is not None and not rate > 0:
        raise TrafficProblem(f"an arrival rate of {rate} a second", hint="give a positive rate")
    source = random.Random(seed)
    now, found = 0.0, []
    shape = 1.0 / burstiness**2 if burstiness > 0 else 0.0
    for _ in range(count):
        isl, osl = lengths[source.randrange(len(lengths))] if len(lengths) > 1 else lengths[0]
        found.append(Request(now, max(1, int(isl)), max(1, int(osl))))
        if rate is not None:
            now += source.gammavariate(shape, 1.0 / (shape * rate)) if shape else 1.0 / rate
    return tuple(found)
