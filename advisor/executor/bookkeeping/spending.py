"""What a run may spend: time, GPU time and disk, over all the processes that it took.

`check` is called wherever work makes progress (each prompt, each training step), so a limit holds within a round too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from advisor.executor.bookkeeping.journal import Journal

GIB = 2.0**30
_EVERY = 1.0
"""seconds between two signs of life"""


class Spent(Exception):
    """A limit was reached. Nobody is at fault: the run ends as one whose gate did not pass, and what was made is kept."""


@dataclass(frozen=True)
class Limit:
    """The most of something that a run may spend."""

    of: Literal["seconds", "gpu_seconds", "bytes"]
    most: float
    says: str
    """where it stands and what it says: advise.yaml:17 (hours: 6)"""


class Spending:
    """What one run has spent so far."""

    def __init__(self, journal: Journal, limits: Sequence[Limit], gpus: int) -> None:
        """gpus: of this machine, all of which count as used while the run lasts."""
        self.journal, self.limits = journal, limits
        self.before = journal.seconds_before()
        self.gpus = gpus
        self._began = self._beat = time.monotonic()
        journal.record("session", before=round(self.before, 1), gpus=gpus)

    @property
    def seconds(self) -> float:
        """Of this process and those before it."""
        return self.before + time.monotonic() - self._began

    @property
    def seconds_left(self) -> float | None:
        """Until the first limit on time; None: there is none."""
        ends = [one.most / self._rate(one) for one in self.limits if self._rate(one)]
        return min(ends) - self.seconds if ends else None

    def check(self, writes: float = 0.0) -> None:
        """Raise Spent when a limit is reached, or would be by writing so many more bytes."""
        limit = self.reached(writes)
        if limit is not None:
            raise limit

    def reached(self, writes: float = 0.0) -> Spent | None:
        """The limit that is reached, or would be; None: none is."""
        now = time.monotonic()
        if now - self._beat > _EVERY:
            self._beat = now
            self.journal.beat()
        for one in self.limits:
            if one.of != "bytes" and self._rate(one) * self.seconds >= one.most:
                return Spent(f"{one.says} is spent: {_hours(self._rate(one) * self.seconds, one.of)}")
            if one.of == "bytes":
                used = self.written()
                if used + writes > one.most:
                    more = f" and {writes / GIB:,.3g} GiB are to come" if writes else ""
                    return Spent(f"{one.says} is spent: {used / GIB:,.3g} GiB are written{more}")
        return None

    def written(self) -> int:
        """Bytes of the work folder; a file under two names counts once."""
        found = {}
        for path in self.journal.folder.rglob("*"):
            try:
                stat = path.stat()
            except OSError:  # a temporary file that is gone by now
                continue
            found[stat.st_ino] = stat.st_size if path.is_file() else 0
        return sum(found.values())

    def _rate(self, limit: Limit) -> float:
        """What a second spends of it."""
        return {"seconds": 1.0, "gpu_seconds": float(self.gpus), "bytes": 0.0}[limit.of]


def in_minutes(low: float, high: float) -> str:
    """A span of seconds as it is told."""
    return " to ".join(f"{each / 60:.0f}" if high >= 600 else f"{each / 60:.1f}" for each in (low, high)) + " min"


def _hours(seconds: float, of: str) -> str:
    span = f"{seconds / 3600:,.3g} hours" if seconds >= 3600 else f"{seconds / 60:,.3g} minutes"
    return span + (" of GPU time" if of == "gpu_seconds" else "")
