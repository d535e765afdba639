"""What a long run tells its user, on stderr: a bar with the time left on a terminal, plain lines elsewhere, or JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import IO, Any, Literal

from advisor.executor.bookkeeping.spending import Spending

_EVERY = 0.2
_EVERY_PLAIN = 30.0
_BAR = 24


class Progress:
    """Says what is going on. form "json": one object a line, with the key "event"."""

    def __init__(self, form: Literal["text", "json"] = "text", stream: IO[str] | None = None) -> None:
        self.form = form
        self.stream = stream or sys.stderr
        self.terminal = form == "text" and self.stream.isatty()
        self.spending: Spending | None = None
        """held against its limits at every tick: work that ticks stops within a round"""
        self._bar = False
        self._began = time.monotonic()

    def say(self, event: str, text: str, **values: Any) -> None:
        """One event, in words and in values."""
        if self.form == "json":
            line = {"event": event, "text": text, "seconds": round(time.monotonic() - self._began, 1), **values}
            self._write(json.dumps(line, ensure_ascii=False) + "\n")
            return
        self._clear()
        self._write(f"{text}\n")

    def track(self, name: str, total: int, kept: int = 0) -> Callable[[int], None]:
        """What to call with how many of `total` are done. kept: of them done by an earlier run, so not in the time taken.

        It raises Spent when the run may spend no more.
        """
        began = last = time.monotonic()

        def tick(done: int) -> None:
            nonlocal last
            if self.spending is not None:
                self.spending.check()
            now = time.monotonic()
            if self.form == "text" and done < total and now - last < (_EVERY if self.terminal else _EVERY_PLAIN):
                return
            last = now
            left = (now - began) / max(1, done - kept) * max(0, total - done)
            if self.form == "json":
                self.say("progress", name, done=done, total=total, seconds_left=round(left, 1))
            elif self.terminal:
                full = min(_BAR, _BAR * done // max(1, total))
                bar = "#" * full + "." * (_BAR - full)
                self._write(f"\r\x1b[K{name[:40]}: {bar} {done}/{total}" + (f", {_span(left)} left" if done < total else ""))
                self._bar = True
                if done >= total:
                    self._clear()
            elif done < total:
                self._write(f"{name}: {done} of {total}, {_span(left)} left\n")

        return tick

    def _clear(self) -> None:
        if self._bar:
            self._write("\r\x1b[K")
            self._bar = False

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except UnicodeEncodeError:
            self.stream.write(text.encode("ascii", "replace").decode())


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 5400 else f"{whole // 3600} h {whole % 3600 // 60} min"
