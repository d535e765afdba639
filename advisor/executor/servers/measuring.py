"""What a server gives under a load: rounds of the same requests until the figures are narrow enough, with their intervals."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from advisor.errors import AdvisorError
from advisor.executor.servers import load
from advisor.executor.servers.engines import Server, fetch
from advisor.executor.servers.load import Admission, Request, Round
from advisor.types import Interval

SAMPLE = 0.2
"""seconds between two looks at how many requests run"""
HEADLINES = ("ttft_ms", "itl_ms", "output_tokens_per_s")
"""the figures that must be narrow before measuring ends; the others are reported as they come out"""
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13)
"""two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom"""
Requests = Callable[[int], Sequence[Request]]
"""number -> requests of the same lengths and other tokens; from 1 on for rounds, 0, -1, ... for warm-ups"""
Sender = Callable[[Server, Sequence[Request], Admission, int, float], Round]
"""sends requests to a server, so many at once, for at most so many seconds"""
OWN = "the advisor's own client"
ReadMetrics = Callable[[str], Mapping[str, float]]
"""Prometheus text -> sample name -> value"""


class NotMeasured(AdvisorError):
    """A server that answered no request."""


@dataclass(frozen=True)
class Arm:
    """One way of serving that is measured: a server and how requests are admitted to it."""

    what: str
    """ "baseline", "plan", "static batching" ..."""
    server: Server
    admission: Admission
    slots: int
    """requests at once; the batch of a static admission"""
    send: Sender = load.send
    client: str = OWN
    """what sends the requests"""


@dataclass(frozen=True)
class Bounds:
    """When measuring ends."""

    least: int = 3
    most: int = 8
    """rounds"""
    seconds: float = 300.0
    """for each arm, warm-up included"""
    precision: float = 0.05
    """half width of the 95 % interval over the mean, of the headline figures"""


@dataclass
class Measured:
    """One arm's rounds and what they come to."""

    arm: Arm
    rounds: list[Round] = field(default_factory=list)
    warm_up: Round | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """the server's own: batch size, cache use, preemptions, acceptance"""
    ended: str = ""
    """why measuring ended"""
    seconds: float = 0.0

    @property
    def errors(self) -> int:
        """Requests that got no complete answer, over the rounds."""
        return sum(len(each.answers) - len(each.good) for each in self.rounds)

    @property
    def figures(self) -> tuple[Interval, ...]:
        """Each figure's mean over the rounds with its 95 % interval; the samples are requests."""
        per_round = [figures_of(each) for each in self.rounds if each.good]
        samples = sum(len(each.good) for each in self.rounds)
        names = [name for name in (per_round[0] if per_round else {}) if all(name in found for found in per_round)]
        return tuple(interval(name, self.arm.what, [found[name] for found in per_round], samples) for name in names)

    def figure(self, metric: str) -> Interval | None:
        """One of the figures."""
        return next((found for found in self.figures if found.metric == metric), None)


def figures_of(found: Round) -> dict[str, float]:
    """The figures of one round.

    ttft_ms, itl_ms, request_latency_ms: means over requests, with _p50, _p90, _p99. A request's ITL is the time from its
    first to its last token over the tokens after the first. output_tokens_per_s: all tokens over the round's whole time.
    idle_share: time that slots were without a request, over that and the requests' decoding (first to last token). It is
    what the output lengths alone predict where every step takes equally long.
    """
    good = found.good
    spread = {
        "ttft_ms": [(a.first - a.sent) * 1e3 for a in good if a.first is not None],
        "itl_ms": [(a.last - a.first) * 1e3 / (a.tokens - 1) for a in good if a.first is not None and a.tokens > 1],
        "request_latency_ms": [(a.last - a.sent) * 1e3 for a in good],
    }
    figures: dict[str, float] = {}
    for name, values in spread.items():
        if values:
            figures[name] = statistics.fmean(values)
            figures |= {f"{name}_p{share}": percentile(values, share / 100) for share in (50, 90, 99)}
    wall = max(found.ended - found.started, 1e-9)
    figures["output_tokens_per_s"] = sum(a.tokens for a in good) / wall
    figures["requests_per_s"] = len(good) / wall
    idle = max(0.0, found.slots * wall - sum(a.last - a.sent for a in good))
    decoding = sum(a.last - a.first for a in good if a.first is not None)
    if idle + decoding > 0:
        figures["idle_share"] = idle / (idle + decoding)
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the order statistics, as numpy's default does."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interval(metric: str, what: str, values: Sequence[float], samples: int) -> Interval:
    """Mean and 95 % interval by Student's t over rounds; requests of one round share its queue and are no samples of their own.

    One round has no interval.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(metric=metric, what=what, value=mean, samples=samples)
    quantile = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96 + 2.6 / (len(values) - 1)
    half = quantile * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(metric=metric, what=what, value=mean, low=max(0.0, mean - half), high=mean + half, samples=samples)


def measure(
    arms: Sequence[Arm],
    requests: Requests,
    *,
    limits: Mapping[str, float],
    bounds: Bounds,
    read_metrics: ReadMetrics | None = None,
    tell: Callable[[str], None] = lambda _line: None,
) -> tuple[Measured, ...]:
    """Warm every arm up, then let them take turns, a round each, until every one's figures decide or its bound is hit.

    limits: metric -> limit; a figure that is wholly on one side of its limit decides whatever its width.
    Raises NotMeasured for an arm whose warm-up got no answer.
    """
    made = [Measured(arm) for arm in arms]
    for index, found in enumerate(made):
        began = time.monotonic()
        found.warm_up = found.arm.send(found.arm.server, requests(-index), found.arm.admission, found.arm.slots, bounds.seconds)
        found.seconds = time.monotonic() - began
        if not found.warm_up.good:
            first = found.warm_up.answers[0].error if found.warm_up.answers else "nothing was sent in time"
            raise NotMeasured(f"no request was answered: {first}", where=found.arm.server.url, hint="see the server's log")
        tell(f"{found.arm.what}: warm-up of {len(found.warm_up.answers)} requests took {found.seconds:,.1f} s")
    number = 0
    while open_arms := [found for found in made if not found.ended]:
        for found in open_arms:
            number += 1  # arms may share a server: what one asked, its cache knows when the next one's turn comes
            _round(found, requests(number), bounds, read_metrics)
            found.ended = _why_end(found, limits, bounds)
            tell(f"{found.arm.what}: {_line(found)}" + (f"; {found.ended}" if found.ended else ""))
    return tuple(made)


def _round(found: Measured, requests: Sequence[Request], bounds: Bounds, read_metrics: ReadMetrics | None) -> None:
    began = time.monotonic()
    left = max(1.0, bounds.seconds - found.seconds)
    arm = found.arm
    with watched(arm.server, read_metrics) as seen:
        found.rounds.append(arm.send(arm.server, requests, arm.admission, arm.slots, left))
    for name, value in seen.items():  # means over the rounds; a sum where it counts events
        before = found.metrics.get(name)
        if name == "preemptions":
            found.metrics[name] = (before or 0.0) + value
        elif name.endswith("_max"):
            found.metrics[name] = max(before or 0.0, value)
        else:
            rounds = len(found.rounds)
            found.metrics[name] = value if before is None else before + (value - before) / rounds
    found.seconds += time.monotonic() - began


def _why_end(found: Measured, limits: Mapping[str, float], bounds: Bounds) -> str:
    rounds = len(found.rounds)
    if rounds >= bounds.least and _decided(found, limits, bounds.precision):
        return f"decided after {rounds} rounds"
    if rounds >= bounds.most:
        return f"ended at the bound of {rounds} rounds"
    if found.seconds >= bounds.seconds or found.rounds[-1].cut:
        return f"ended at the bound of {bounds.seconds:,.0f} s after {rounds} rounds"
    return ""


def _decided(found: Measured, limits: Mapping[str, float], precision: float) -> bool:
    for metric in HEADLINES:
        figure = found.figure(metric)
        if figure is None or figure.low is None or figure.high is None:
            continue
        limit = limits.get(metric)
        if limit is not None and (figure.high <= limit or figure.low > limit):
            continue
        if figure.value > 0 and (figure.high - figure.low) / 2 > precision * figure.value:
            return False
    return True


def _line(found: Measured) -> str:
    last = figures_of(found.rounds[-1])
    shown = f"round {len(found.rounds)}: {last['output_tokens_per_s']:,.1f} output tokens/s"
    if "ttft_ms" in last:
        shown += f", TTFT {last['ttft_ms']:,.0f} ms"
    if "itl_ms" in last:
        shown += f", ITL {last['itl_ms']:,.1f} ms"
    return shown


# ---------------------------------------------------------------- the server's own figures


@contextmanager
def watched(server: Server, read: ReadMetrics | None) -> Iterator[dict[str, float]]:
    """The server's own figures of the time in between, there once it is over; empty when it has none."""
    seen: dict[str, float] = {}
    before = _metrics(server, read)
    if before is None or read is None:
        yield seen
        return
    running, use, over = [], [], threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE):
            now = _metrics(server, read)
            if now is not None:
                running.append(_first(now, "vllm:num_requests_running", "trtllm_num_requests_running") or 0.0)
                use.append(_first(now, "vllm:kv_cache_usage_perc", "trtllm_kv_cache_utilization") or 0.0)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield seen
    finally:
        over.set()
        sampler.join()
        after = _metrics(server, read)
        if after is not None:
            seen |= _between(before, after)
        busy = [value for value in running if value]
        if busy:
            seen |= {"batch_size": statistics.fmean(busy), "batch_size_max": max(busy), "kv_cache_use_max": max(use)}


def _metrics(server: Server, read: ReadMetrics | None) -> Mapping[str, float] | None:
    if read is None:
        return None
    try:
        status, text = fetch(server.url.rstrip("/") + server.metrics, timeout=5.0)
        return read(text) if status == 200 else None
    except (OSError, AdvisorError):
        return None


def _between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Preemptions, acceptance and reuse between two readings of the counters; what a server does not count is left out."""

    def grown(*names: str) -> float | None:
        return next((after[name] - before.get(name, 0.0) for name in names if name in after), None)

    seen: dict[str, float] = {}
    preempted = grown("vllm:num_preemptions_total")
    if preempted is not None:
        seen["preemptions"] = preempted
    drafts = grown("vllm:spec_decode_num_drafts_total")
    drafted = grown("vllm:spec_decode_num_draft_tokens_total", "trtllm_spec_decode_drafted_tokens_total")
    accepted = grown("vllm:spec_decode_num_accepted_tokens_total", "trtllm_spec_decode_accepted_tokens_total")
    if drafted and accepted is not None:
        seen["acceptance"] = accepted / drafted
        if drafts:
            seen["acceptance_length"] = 1.0 + accepted / drafts
    asked = grown("vllm:prefix_cache_queries_total", "trtllm_prompt_tokens_total")
    hit = grown("vllm:prefix_cache_hits_total", "trtllm_prompt_cached_tokens_total")
    if asked and hit is not None:
        seen["prefix_reuse_share"] = hit / asked
    return seen


def _first(values: Mapping[str, float], *names: str) -> float | None:
    return next((values[name] for name in names if name in values), None)
