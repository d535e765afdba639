"""In-flight batching, event by event.

Nothing loops over tokens: as long as nobody arrives, starts or ends, any number of decode steps is one event whose
duration is that many times the step at the mean context. All running sequences gain one token a step, so a sequence
that starts at step t ends at step t + osl - 1 and the next end is the top of a heap.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence

from advisor.estimator.arrivals import Request
from advisor.estimator.replica import Outcome, Server, StepCosts, share, shared_tokens, takes

WATERMARK = 0.01
"""share of the cache kept free when a sequence is admitted under max_utilization (vLLM's block manager: watermark=0.01)"""


class InFlight:
    """In-flight batching of one replica: the state that admission, steps and ends share."""

    def __init__(self, requests: Sequence[Request], costs: StepCosts, server: Server, concurrency: int | None) -> None:
        self.requests, self.costs, self.server, self.closed = requests, costs, server, concurrency
        self.outcome = Outcome(requests)
        self.now, self.tick, self.next = 0.0, 0, 0
        self.waiting: deque[int] = deque()
        self.prefilling: deque[list[int]] = deque()
        """[request, tokens still to prefill, tokens before them], oldest first"""
        self.ends: list[tuple[int, int]] = []
        self.running: dict[int, int] = {}
        """request -> the step at which its first token came; in order of admission"""
        self.gained: dict[int, int] = {}
        """output tokens of a preempted request that are kept when it comes back"""
        self.paused: dict[int, float] = {}
        self.until: int | None = None
        """the step until which prompts are held back"""
        self.context = 0.0
        self.held = self.reserved = self.growth = 0.0
        self.held_by: dict[int, tuple[float, float]] = {}
        """request -> share of the cache at its start, and what it gains per step"""

    def run(self) -> Outcome:
        """Serve every request."""
        if self.closed is not None:
            for _ in range(min(self.closed, len(self.requests))):
                self._arrive(0.0)
        while True:
            self._arrivals()
            self._admit()
            if self.prefilling:
                self._mixed_steps()
            elif self.running:
                self._decode_steps()
            elif self.next < len(self.requests) and self.closed is None:
                self._pass(self.requests[self.next].arrival - self.now)
            elif not self.waiting:
                return self.outcome

    # ------------------------------------------------------------ arrivals and admission

    def _arrive(self, when: float) -> None:
        """The next request joins the queue; in a closed loop its user asks the one after it when it is refused."""
        while self.next < len(self.requests):
            index = self.next
            self.next += 1
            self.outcome.arrived[index] = when
            if not takes(self.server, self.requests[index]):
                self.outcome.refused.append(index)
                if self.closed is not None:
                    continue
                return
            self.outcome.present += self.now - when
            self.waiting.append(index)
            return

    def _arrivals(self) -> None:
        if self.closed is None:
            while self.next < len(self.requests) and self.requests[self.next].arrival <= self.now:
                self._arrive(self.requests[self.next].arrival)
        self.outcome.queue_peak = max(self.outcome.queue_peak, len(self.waiting))

    def _admit(self) -> None:
        """First come, first served, while there is a slot, room in the cache, and room in the next step."""
        if self._holds_back():
            return
        server, room = self.server, self.server.budget - self.server.rows * len(self.running)
        room -= sum(entry[1] for entry in self.prefilling)
        while self.waiting and len(self.running) + len(self.prefilling) < server.slots and room > 0:
            index = self.waiting[0]
            request, gained = self.requests[index], self.gained.get(index, 0)
            shared = shared_tokens(self.server, request)
            tokens = request.isl + gained - shared
            if not server.chunked and tokens > room and (self.running or self.prefilling):
                return
            at_start = share(self.server, request.isl + gained) - share(self.server, shared)
            at_end = share(self.server, request.isl + request.osl) - share(self.server, shared)
            if server.evicts:
                if self.held + at_start > 1.0 - WATERMARK and (self.running or self.prefilling):
                    return
            elif self.reserved + at_end > 1.0 and (self.running or self.prefilling):
                return
            self.waiting.popleft()
            steps = self._steps(request.osl - gained)
            self.held_by[index] = (at_start, (at_end - at_start) / max(1, steps))
            self.held += at_start
            self.reserved += at_end
            self.outcome.started.setdefault(index, self.now)
            self.prefilling.append([index, tokens, shared])
            room -= tokens

    def _holds_back(self) -> bool:
        """Whether the prompts that could start wait for others to share their step, or to be looked at."""
        server, running = self.server, len(self.running)
        if not self.waiting or not running or self.prefilling or running >= server.slots:
            self.until = None
        elif server.poll_steps > 1 and self.until != self.tick:
            self.until = -(-self.tick // server.poll_steps) * server.poll_steps
        elif server.wait_steps:
            tokens = running + sum(self.requests[index].isl for index in self.waiting)
            if self.until is None and tokens < server.wait_fill * server.budget:
                self.until = self.tick + server.wait_steps
            elif self.until == self.tick or tokens >= server.wait_fill * server.budget:
                self.until = None
        return self.until is not None and self.until > self.tick

    def _steps(self, tokens: int) -> int:
        """Steps after the first token until a sequence has all its tokens."""
        return math.ceil((tokens - 1) / self.server.tokens_per_step)

    # ------------------------------------------------------------ steps

    def _pass(self, seconds: float) -> None:
        """Time goes by with everything as it is."""
        outcome, running = self.outcome, len(self.running)
        self.now += seconds
        outcome.present += seconds * (running + len(self.prefilling) + len(self.waiting))
        outcome.held_time += seconds * self.held
        if running or self.prefilling:
            outcome.busy += seconds
            outcome.batch_time += seconds * (running + len(self.prefilling))

    def _stepped(self, steps: int, seconds: float) -> None:
        """`steps` steps of `seconds` each are done: every running sequence has as many tokens more."""
        running = len(self.running)
        grown = self.growth * steps
        self.held += grown / 2
        self._pass(seconds * steps)
        self.held += grown / 2
        self.outcome.held_peak = max(self.outcome.held_peak, self.held)
        if running:
            self.outcome.gap(seconds / self.server.tokens_per_step, running * steps * self.server.tokens_per_step)
        self.tick += steps
        self.context += running * steps * self.server.tokens_per_step

    def _decode_steps(self) -> None:
        """Decode until the next end, the next arrival that could start, or the cache is full."""
        running = len(self.running)
        mean = self.context / running
        steps = self.ends[0][0] - self.tick
        if self.server.evicts and self.growth > 0.0:
            fit = int((1.0 - self.held) / self.growth)
            if fit < 1 and running > 1:
                self._preempt()
                return
            steps = min(steps, max(1, fit))
        open_to_all = self.closed is None and not self.waiting and running < self.server.slots
        if open_to_all and self.next < len(self.requests):
            until = self.requests[self.next].arrival - self.now
            steps = min(steps, max(1, math.ceil(until / self.costs.decode(running, mean))))
        if self.until is not None and self.until > self.tick:
            steps = min(steps, self.until - self.tick)
        gain = self.server.tokens_per_step
        self._stepped(steps, self.costs.decode(running, mean + (steps - 1) * gain / 2))
        self._ends()

    def _mixed_steps(self) -> None:
        """One step with prompt tokens in it, or as many equal ones as the oldest prompt fills alone."""
        running, server = len(self.running), self.server
        room = max(1, server.budget - server.rows * running)
        oldest = self.prefilling[0]
        steps, work, weighted, done = 1, 0, 0.0, []
        if server.chunked and oldest[1] > 2 * room:
            steps = oldest[1] // room - 1
            if self.ends:
                steps = max(1, min(steps, self.ends[0][0] - self.tick))
            work = room
            weighted = work * (2.0 * (oldest[2] + steps * room / 2) + work)
            oldest[1] -= steps * room
            oldest[2] += steps * room
        else:
            for entry in self.prefilling:
                tokens = min(entry[1], room - work) if server.chunked else entry[1]
                if tokens <= 0 or (work and work + tokens > room):
                    break
                work += tokens
                weighted += tokens * (2.0 * entry[2] + tokens)
                entry[1] -= tokens
                entry[2] += tokens
                done.append(entry)
        mean = self.context / running if running else 1.0
        self._stepped(steps, self.costs.mixed(running, mean, work, weighted / work))
        for entry in done:
            if entry[1] == 0:
                self.prefilling.popleft()
                self._first_token(entry[0])
        self._ends()

    def _first_token(self, index: int) -> None:
        request, gained = self.requests[index], self.gained.get(index, 0)
        self.outcome.first.setdefault(index, self.now)
        if index in self.paused:
            self.outcome.gap(self.now - self.paused.pop(index), 1.0)
        self.running[index] = self.tick
        self.context += request.isl + gained + 1
        self.growth += self.held_by[index][1]
        heapq.heappush(self.ends, (self.tick + self._steps(request.osl - gained), index))

    def _leave(self, index: int) -> int:
        """Take a sequence out; how many tokens it has had since it (last) started."""
        steps = self.tick - self.running.pop(index)
        request, gained = self.requests[index], self.gained.get(index, 0)
        tokens = min(1 + int(steps * self.server.tokens_per_step), request.osl - gained)
        at_start, growth = self.held_by.pop(index)
        self.context -= request.isl + gained + 1 + steps * self.server.tokens_per_step
        self.held -= at_start + growth * steps
        self.growth -= growth
        self.reserved -= share(self.server, request.isl + request.osl) - share(self.server, shared_tokens(self.server, request))
        if not self.running:
            self.context = self.growth = 0.0
        return tokens

    def _ends(self) -> None:
        while self.ends and self.ends[0][0] <= self.tick:
            _, index = heapq.heappop(self.ends)
            self._leave(index)
            self.outcome.ended[index] = self.now
            if self.closed is not None and self.next < len(self.requests):
                self._arrive(self.now)

    def _preempt(self) -> None:
        """The sequence that came last loses its cache and goes back to the head of the queue."""
        index = next(reversed(self.running))
        tokens = self._leave(index)
        self.ends = [entry for entry in self.ends if entry[1] != index]
        heapq.heapify(self.ends)
        self.gained[index] = self.gained.get(index, 0) + tokens
        self.paused[index] = self.now
        self.waiting.appendleft(index)
        self.outcome.preemptions += 1
