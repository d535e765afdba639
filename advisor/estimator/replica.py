"""One replica in the simulation: how it is set up, what its steps cost, and what happened while the clock ran."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from advisor.estimator.arrivals import Request
from advisor.types import Batching

Step = Callable[[float, float, float, float], float]
"""(sequences that decode, their mean context, prompt tokens beside them, length of those prompts) -> seconds of one step"""
NODES_PER_DOUBLING = 4
"""contexts at which a decode step is really estimated; between them it is linear, as attention is in its context"""


class Server(NamedTuple):
    """How one replica is set up."""

    slots: int
    """sequences that run at once"""
    budget: int
    """tokens of one step (max_num_tokens)"""
    batching: Batching = "in-flight"
    chunked: bool = False
    """a prompt may be spread over several steps"""
    evicts: bool = False
    """max_utilization: admit by what is used, preempt when the cache overflows; else a sequence's whole length is reserved"""
    cache_share: Callable[[float], float] | None = None
    """share of the replica's cache that a sequence of so many tokens takes; None: memory is no limit"""
    shared_prefix: float = 0.0
    """share of every prompt that is already in the cache (prefix reuse)"""
    tokens_per_step: float = 1.0
    """tokens a sequence gains per step; above 1 with speculative decoding"""
    rows: int = 1
    """tokens of the step's budget that a running sequence takes: its drafts and one"""
    wait_steps: int = 0
    wait_fill: float = 0.0
    """prompts are held back beside running sequences for so many steps, or until so much of the budget is filled"""
    poll_steps: int = 1
    """steps between two looks at the requests that came, while sequences run"""


def shared_tokens(server: Server, request: Request) -> int:
    """Tokens of a prompt that another request's cache already holds; at least one is computed."""
    return min(request.isl - 1, int(request.isl * server.shared_prefix))


def share(server: Server, tokens: float) -> float:
    """Share of the replica's cache that a sequence of `tokens` tokens takes."""
    return server.cache_share(tokens) if server.cache_share is not None else 0.0


def takes(server: Server, request: Request) -> bool:
    """Whether the engine accepts the request: a step holds its prompt, or chunks of it, and the cache its whole length."""
    fits = server.chunked or request.isl - shared_tokens(server, request) <= server.budget
    return fits and share(server, request.isl + request.osl) <= 1.0


class StepCosts:
    """Remembers the cost of steps: decode steps between a few contexts, mixed steps by what is in them."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.nodes: dict[tuple[int, int], float] = {}
        self.mixes: dict[tuple[int, int, int, int], float] = {}

    def decode(self, sequences: int, context: float) -> float:
        """Seconds of a step in which `sequences` decode at a mean context."""
        place = NODES_PER_DOUBLING * math.log2(context) if context > 1.0 else 0.0
        node = int(place)
        low = self._node(sequences, node)
        high = self._node(sequences, node + 1)
        left, right = math.pow(2.0, node / NODES_PER_DOUBLING), math.pow(2.0, (node + 1) / NODES_PER_DOUBLING)
        return low + (high - low) * (context - left) / (right - left)

    def _node(self, sequences: int, node: int) -> float:
        key = (sequences, node)
        cost = self.nodes.get(key)
        if cost is None:
            cost = self.nodes[key] = self.step(sequences, 2.0 ** (node / NODES_PER_DOUBLING), 0.0, 1.0)
        return cost

    def mixed(self, sequences: int, context: float, tokens: int, length: float) -> float:
        """Seconds of a step in which `tokens` prompt tokens of prompts of `length` run beside `sequences` that decode."""
        key = (sequences, _coarse(context), _coarse(tokens), _coarse(length))
        cost = self.mixes.get(key)
        if cost is None:
            cost = self.mixes[key] = self.step(sequences, max(1.0, key[1]), float(key[2]), max(1.0, key[3]))
        return cost


def _coarse(value: float) -> int:
    """The value to within 1/64, so that mixed steps that hardly differ are estimated once."""
    grain = 1 << max(0, int(value).bit_length() - 7)
    return int(value / grain + 0.5) * grain


class Outcome:
    """What happens while the clock runs: times of each request, integrals over time, token gaps."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self.requests = requests
        self.arrived: dict[int, float] = {}
        self.started: dict[int, float] = {}
        self.first: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.refused: list[int] = []
        self.gaps: dict[float, float] = {}
        self.present = self.busy = self.batch_time = self.held_time = self.held_peak = 0.0
        """integrals over seconds: requests in the system, 1 while a step runs, sequences in steps, share of the cache"""
        self.queue_peak = self.preemptions = self.slot_steps = self.idle_steps = 0

    def gap(self, seconds: float, tokens: float) -> None:
        """`tokens` tokens came `seconds` after the one before them."""
        self.gaps[seconds] = self.gaps.get(seconds, 0.0) + tokens
