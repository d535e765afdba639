"""Figures over a stream of requests, in memory that does not grow with it."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from advisor.types import Lengths

EXACT_BELOW = 2**17
"""token counts up to here are counted one by one; longer ones in steps of STEP, so a quantile is at most 0.1 % off"""
STEP = 2**7
SAMPLE = 512
SEED = 20_240_601
LARGEST_BLOCK = 2**16
GENERATION = 2**18
"""prefix blocks of one generation; the last one to two generations are remembered"""


class TokenTally:
    """Mean, spread and quantiles of token counts: a histogram of whole numbers, exact below EXACT_BELOW tokens."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.squares = 0
        self.largest = 0
        self.zeros = 0
        self._counts: dict[int, int] = {}

    def add(self, tokens: int) -> None:
        """Count one request of `tokens` >= 0."""
        self.count += 1
        self.total += tokens
        self.squares += tokens * tokens
        if tokens > self.largest:
            self.largest = tokens
        if not tokens:
            self.zeros += 1
        slot = tokens if tokens < EXACT_BELOW else tokens - tokens % STEP
        self._counts[slot] = self._counts.get(slot, 0) + 1

    def lengths(self) -> Lengths:
        """Mean and maximum are exact; a quantile is the nearest rank's value."""
        wanted = [max(1, math.ceil(share * self.count)) for share in (0.5, 0.9, 0.99)]
        found: list[int] = []
        seen = 0
        for tokens, count in sorted(self._counts.items()):
            seen += count
            while len(found) < len(wanted) and seen >= wanted[len(found)]:
                found.append(tokens)
        p50, p90, p99 = found
        return Lengths(mean=self.total / self.count, p50=p50, p90=p90, p99=p99, max=self.largest)

    def dispersion(self) -> float | None:
        """Coefficient of variation: standard deviation over mean; None when the mean is 0."""
        if not self.total:
            return None
        variance = self.count * self.squares - self.total * self.total
        return math.sqrt(variance) / self.total


class GapTally:
    """Rate and burstiness of arrivals in order (Welford's running variance of the gaps), in the trace's own time unit."""

    def __init__(self) -> None:
        self.first = 0.0
        self.last = 0.0
        self.gaps = -1
        self.whole = True
        self._mean = 0.0
        self._squares = 0.0

    def add(self, time: float) -> bool:
        """Count one arrival; False when it lies before the one before."""
        if self.gaps < 0:
            self.first = self.last = time
            self.gaps = 0
        else:
            gap = time - self.last
            if gap < 0:
                return False
            self.last = time
            self.gaps += 1
            off = gap - self._mean
            self._mean += off / self.gaps
            self._squares += off * (gap - self._mean)
        if self.whole and time != int(time):
            self.whole = False
        return True

    def rate(self) -> float | None:
        """Arrivals per unit of time: gaps over the time from first to last; None when that is no time at all."""
        span = self.last - self.first
        return self.gaps / span if self.gaps > 0 and span > 0 else None

    def burstiness(self) -> float | None:
        """Coefficient of variation of the gaps; None below two gaps or when all are 0."""
        if self.gaps < 2 or self._mean <= 0:
            return None
        return math.sqrt(self._squares / self.gaps) / self._mean


class PrefixTally:
    """The share of input tokens whose blocks, from the first on, were seen in an earlier request.

    That is what a prefix cache that evicts nothing would save. The last one to two times GENERATION blocks are remembered
    (two sets that take turns), more than any GPU's cache holds; a trace with fewer blocks is counted exactly.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.total = 0
        self.forgot = False
        self._repeated_whole = 0
        self._repeated_part = 0.0
        self._repeated_blocks = 0
        self._block = (1, LARGEST_BLOCK)
        self._new: set[int] = set()
        self._old: set[int] = set()

    def add(self, blocks: Sequence[int | str], tokens: int) -> None:
        """Count one request of `tokens` whose prompt has these blocks, in order; strings are remembered by their hash."""
        self.requests += 1
        self.total += tokens
        keys = [block if type(block) is int else hash(block) for block in blocks]
        new, old = self._new, self._old
        leading = 0
        for key in keys:
            if key not in new and key not in old:
                break
            leading += 1
        new.update(keys)
        if len(new) > GENERATION:
            self.forgot = self.forgot or bool(old)
            self._old, self._new = new, set()
        if keys:
            self._count(leading, len(keys), tokens)

    def block_tokens(self) -> int | None:
        """Tokens of a block, when the lengths of all prompts agree on it: 512 for Mooncake, 16 for Qwen-Bailian; else None."""
        low, high = self._block
        power = 1 << (high.bit_length() - 1)
        return None if low > high else power if power >= low else low

    def share(self) -> float | None:
        """0 to 1; None when no request had blocks. Without one block size, blocks of a prompt count as equally long."""
        if not self.total:
            return None
        block = self.block_tokens()
        partly = self._repeated_part if block is None else self._repeated_blocks * block
        return (self._repeated_whole + partly) / self.total

    def _count(self, leading: int, blocks: int, tokens: int) -> None:
        low, high = self._block
        if blocks > 1:
            self._block = (max(low, -(-tokens // blocks)), min(high, (tokens - 1) // (blocks - 1)))
        if leading == blocks:
            self._repeated_whole += tokens
        else:
            self._repeated_blocks += leading
            self._repeated_part += tokens * leading / blocks


class Reservoir:
    """A uniform sample of SAMPLE pairs, the same for the same stream (Li 1994, algorithm L, with a fixed seed)."""

    def __init__(self) -> None:
        self._random = random.Random(SEED)
        self._pairs: list[tuple[int, int]] = []
        self._seen = 0
        self._weight = 1.0
        self._next = SAMPLE

    def add(self, pair: tuple[int, int]) -> None:
        """Offer one (input, output) pair."""
        if self._seen < SAMPLE:
            self._pairs.append(pair)
            if len(self._pairs) == SAMPLE:
                self._skip()
        elif self._seen == self._next:
            self._pairs[self._random.randrange(SAMPLE)] = pair
            self._skip()
        self._seen += 1

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The sample, in the order of its slots."""
        return tuple(self._pairs)

    def _skip(self) -> None:
        self._weight *= math.exp(math.log(1 - self._random.random()) / SAMPLE)
        jump = math.log(1 - self._random.random()) / math.log(1 - self._weight)
        self._next = max(self._next, self._seen) + math.floor(jump) + 1
