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


class Prompts(NamedTuple):
    """How prompts come into steps. A step here is that of one rank, under attention-DP."""

    isl: float
    osl: float
    budget: float
    """tokens of a step"""
    abreast: float
    """whole prompts in a step when many wait; 1 where nobody stated the budget: servers tuned for latency hold it to little
    more than one prompt (InferenceX's DeepSeek-R1 scripts: ISL + concurrency)"""
    wait_steps: float = 0.0
    wait_fill: float = 0.0
    """prompts are held back for so many steps, or until so much of the budget is filled"""
    poll_steps: float = 1.0
    """steps between two looks at what came"""


def closed_loop(step: Steps, flow: Flow, clients: float, prompts: Prompts, request: float, turns: float = TURNS) -> FirstToken:
    """`clients` clients that each send `turns` requests in turn, all at once at the start; at most as many as fit."""
    isl, osl, budget = prompts.isl, prompts.osl, prompts.budget
    opening = 1.0 / turns if turns > 1.0 else 1.0
    held, _ = gathered(prompts, flow.sequences / osl)
    steady = _waiting(flow) + (step.balance + held) * flow.seconds_per_token
    each_rank = clients / step.width if clients > step.width else 1.0
    abreast = prompts.abreast if prompts.abreast < each_rank else each_rank
    each = flow.chunks * step.step(clients / 2, isl, abreast * (isl if isl < budget else budget) * step.width, isl)
    if each < flow.alone.seconds:
        each = flow.alone.seconds
    burst = (each_rank / abreast + 1) / 2 * each
    return FirstToken(request, (1 - opening) * flow.first_token, (1 - opening) * steady, opening * burst, 0.0)


def gathered(prompts: Prompts, rate: float) -> tuple[float, float]:
    """Steps that a prompt is held back on average, and prompts that then share a step, at `rate` arrivals a step.

    The first to come starts the wait; those that come during it wait half of it on average, as all do for the next look.
    """
    if not prompts.wait_steps:
        return (prompts.poll_steps - 1) / 2, max(1.0, rate * prompts.poll_steps)
    others = max(0.0, prompts.wait_fill * prompts.budget / prompts.isl - 1.0)
    steps = min(prompts.wait_steps, others / rate)
    return steps * (1 + rate * steps / 2) / (1 + rate * steps), 1 + rate * steps


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
    busy = flow.prompt_share if flow.prompt_share < FULLEST else FULLEST
    return 0.5 * flow.seconds_per_token + busy / (2 * (1 - busy)) * flow.first_token
