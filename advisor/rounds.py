"""A report checked again and again against a server's metrics or a trace that grows.

A live server counts since its start, so from the second round on the traffic is that between two readings of it.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

from advisor.errors import InputError
from advisor.freshness import Freshness, check, refresh
from advisor.types import Policy, Report, Value


class Round(Value):
    """One look."""

    number: int
    at: str
    """UTC, ISO 8601"""
    window: str
    """what the traffic was read from"""
    found: Freshness | None = None
    """None: there was no reading"""
    problem: str = ""
    """why there was none"""


def go_round(
    report: Report,
    source: str,
    *,
    every_s: float,
    times: int,
    policy: Policy | str | Path | None = None,
    overlay: str | Path | None = None,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Round]:
    """`times` rounds, `every_s` seconds from start to start; a reading that fails is a round of its own and not the end.

    source: a /metrics URL, a saved text or a trace. Raises RuleProblem, PolicyProblem: they would fail every round.
    """
    is_live = source.startswith(("http://", "https://"))
    with tempfile.TemporaryDirectory(prefix="advise-watch-") as folder:
        readings = _Readings(source, Path(folder)) if is_live else None
        for number in range(1, times + 1):
            started = time.monotonic()
            at = datetime.now(timezone.utc).isoformat(timespec="seconds")
            traffic, window = source, source
            try:
                if readings is not None:
                    traffic, window = readings.next()
                now = refresh(report.profile, traffic=traffic)
            except InputError as error:
                yield Round(number=number, at=at, window=window, problem=f"{error.what} ({error.where or source})")
            else:
                found = check(report, now, policy=policy, overlay=overlay)
                yield Round(number=number, at=at, window=window, found=found)
            if number < times:
                sleep(max(0.0, every_s - (time.monotonic() - started)))


class _Readings:
    """The texts of a live server: the newest and the one before it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.last: Path | None = None
        self.count = 0

    def next(self) -> tuple[str, str]:
        """What to read the traffic from, and in words. Raises TrafficProblem: the server does not answer."""
        from advisor.profiler.prometheus import fetch_text

        text = fetch_text(self.url)
        self.count += 1
        path = self.folder / f"reading-{self.count}.prom"
        path.write_text(text, encoding="utf-8")
        now = time.time()
        os.utime(path, (now, now))
        before, self.last = self.last, path
        if before is None:
            return str(path), f"{self.url} since the server started"
        return f"{before},{path}", f"{self.url} since the round before"
