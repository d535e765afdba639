"""Time to first token: the prompt's own prefill, beside other work, plus the queue that the arrivals cause.

TTFT depends on how requests arrive as much as on the engine, so each function names its protocol:

- closed loop: C clients, each sends its next request when the last is answered, as benchmark clients with a maximal
  concurrency do (vLLM's benchmark_serving, InferenceX). All C send at once at the start, so the first of every client's
  requests waits for (C + 1)/2 prefills on average, the others only for the step under way and for prompts that come at the
  same time. With n requests a client the opening burst weighs 1/n; n is 10 in InferenceX and where nothing is said.
- open loop: Poisson arrivals; the wait for other prompts is that of an M/D/1 queue.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.estimator.batching import Flow, Steps

TURNS = 10.0
"""requests of each client in a closed loop when the load does not say: InferenceX sends 10 x concurrency prompts"""
FULLEST = 0.8
"""share of steps with prompts beyond which the queue formula, made for open arrivals, would overstate a closed loop's wait"""


class FirstToken(NamedTuple):
    """Seconds, by cause."""

    request: float
    """the engine's handling of a request: HTTP, tokenisation, scheduling"""
    prefill: float
    """the prompt's own steps, with the other sequences' tokens in them"""
    waiting: float
    """for the step under way and for other prompts, in the steady state"""
    burst: float
    """share of the opening burst in the mean"""
    slot: float
    """for a free slot: more requests than fit"""

    @property
    def seconds(self) -> float:
        """Mean time to first token."""
        return sum(self)


def closed_loop(
    step: Steps, flow: Flow, clients: float, isl: float, budget: float, request: float, turns: float = TURNS
) -> FirstToken:
    """`clients` clients that each send `turns` requests in turn, all at once at the start; at most as many as fit."""
    opening = 1.0 / max(turns, 1.0)
    steady = _waiting(flow) + step.balance * flow.seconds_per_token
    rounds = max(1.0, clients / step.width)
    each = max(flow.alone, flow.chunks * step.step(clients / 2, isl, min(isl, budget) * step.width, isl))
    burst = (rounds + 1) / 2 * each
    return FirstToken(request, (1 - opening) * flow.first_token, (1 - opening) * steady, opening * burst, 0.0)


def drained(fits: float, turns: float) -> float:
    """Mean wait for a slot in a finite closed loop, relative to that of an endless one.

    fits: share of the clients that have a slot. The queue is as long as in the endless loop until every client has sent its
    last request, and then shrinks to nothing: 1 - 1/turns of the requests see the first, the others half of the second.
    """
    last = 1.0 / max(turns, 1.0)
    return 1.0 - last + last * (1.0 - fits) / 2


def open_loop(step: Steps, flow: Flow, request: float) -> FirstToken:
    """Poisson arrivals at the rate that keeps `flow.sequences` in flight."""
    waiting = _waiting(flow) + step.balance * flow.seconds_per_token
    return FirstToken(request, flow.first_token, waiting, burst=0.0, slot=0.0)


def _waiting(flow: Flow) -> float:
    """Half of the step under way, and other prompts' steps: M/D/1, rho/(2(1 - rho)) services."""
    busy = min(flow.prompt_share, FULLEST)
    return 0.5 * flow.seconds_per_token + busy / (2 * (1 - busy)) * flow.first_token
