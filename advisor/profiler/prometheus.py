"""What a running server's metrics say about its traffic: vLLM's and TensorRT-LLM's Prometheus text, saved or live."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from advisor.errors import TrafficProblem
from advisor.library import read_text
from advisor.profiler.exposition import Histogram, Snapshot, parse
from advisor.types import Lengths, Scalar, Traffic

_T = TypeVar("_T")
LARGEST_REPLY = 16 * 2**20
SECONDS = 10.0
SAMPLE = 64
_LOOKS = re.compile(rb"^(?:# (?:HELP|TYPE) |vllm:|trtllm_)", re.MULTILINE)


@dataclass(frozen=True)
class _Names:
    """What one engine calls its metrics, without the prefix; the first that is there counts."""

    engine: str
    prefix: str
    isl: tuple[str, ...] = ()
    osl: tuple[str, ...] = ()
    itl: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    asked: tuple[str, ...] = ()
    drafted: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    cache_use: tuple[str, ...] = ()


_VLLM = _Names(
    "vLLM",
    "vllm:",
    isl=("request_prompt_tokens",),
    osl=("request_generation_tokens",),
    itl=("inter_token_latency_seconds", "time_per_output_token_seconds", "request_time_per_output_token_seconds"),
    reused=("prefix_cache_hits_total", "gpu_prefix_cache_hits_total"),
    asked=("prefix_cache_queries_total", "gpu_prefix_cache_queries_total"),
    drafted=("spec_decode_num_draft_tokens_total",),
    accepted=("spec_decode_num_accepted_tokens_total",),
    cache_use=("kv_cache_usage_perc", "gpu_cache_usage_perc"),
)
_TRTLLM = _Names(
    "TensorRT-LLM",
    "trtllm_",
    itl=("time_per_output_token_seconds",),
    reused=("prompt_cached_tokens_total",),
    asked=("prompt_tokens_total",),
    drafted=("spec_decode_drafted_tokens_total", "spec_decode_num_draft_tokens_total"),
    accepted=("spec_decode_accepted_tokens_total", "spec_decode_num_accepted_tokens_total"),
    cache_use=("kv_cache_utilization",),
)


def is_metrics(path: Path) -> bool:
    """Whether a file begins like a Prometheus text. False for what can't be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _LOOKS.search(file.read(2**16)) is not None
    except OSError:
        return False


def read_metrics(path_or_url: str) -> tuple[Traffic, dict[str, str], dict[str, Scalar]]:
    """The traffic that a server's metrics tell, its sources, and measured facts (ttft_ms, itl_ms, acceptance: means).

    A saved text, an http(s) URL, or two saved texts of one server "earlier.prom,later.prom": then everything counted is of
    the time between them, which is taken from the files' modification times, and a rate is known. One reading of a live
    server has the mean rate since its start. Length quantiles are interpolated in the histogram's buckets.
    Raises FileProblem, TrafficProblem.
    """
    if path_or_url.startswith(("http://", "https://")):
        now = parse(fetch_text(path_or_url), path_or_url)
        started = now.value("process_start_time_seconds")
        return _conclude(now, time.time() - started if started else None, "since the server started")
    paths = [Path(part) for part in path_or_url.split(",")] if not Path(path_or_url).exists() else [Path(path_or_url)]
    if len(paths) > 2:
        raise TrafficProblem("more than two readings", where=path_or_url, hint="give one file, or the first and the last")
    readings = [parse(read_text(path, largest=LARGEST_REPLY, what="metrics text"), str(path)) for path in paths]
    if len(readings) == 1:
        return _conclude(readings[0], None, "")
    seconds = paths[1].stat().st_mtime - paths[0].stat().st_mtime
    if seconds <= 0:
        raise TrafficProblem(
            "the second reading is not newer than the first",
            where=path_or_url,
            hint="give the earlier file first; the files' modification times must be those of the readings",
        )
    return _conclude(readings[1].since(readings[0]), seconds, "between the files' modification times")


def fetch_text(url: str) -> str:
    """The text behind a URL; a server's root is taken as its /metrics."""
    import http.client
    import urllib.error
    import urllib.parse
    import urllib.request

    hint = "check that the server runs and that the URL is its /metrics (TensorRT-LLM: /prometheus/metrics)"
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.path in ("", "/"):
            url = urllib.parse.urlunsplit(parts._replace(path="/metrics"))
        with urllib.request.urlopen(url, timeout=SECONDS) as reply:
            body: bytes = reply.read(LARGEST_REPLY + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise TrafficProblem(f"the server answers {error.code} {error.reason}", where=url, hint=hint) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise TrafficProblem(f"no metrics from there: {reason}", where=url, hint=hint) from None
    if len(body) > LARGEST_REPLY:
        raise TrafficProblem(f"more than {LARGEST_REPLY // 2**20} MiB of metrics", where=url, hint=hint)
    if body.lstrip()[:1] in (b"[", b"{"):
        raise TrafficProblem(
            "this is JSON, not Prometheus text", where=url, hint="TensorRT-LLM has its Prometheus text at /prometheus/metrics"
        )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise TrafficProblem("this is not text", where=url, hint=hint) from None


def _conclude(reading: Snapshot, seconds: float | None, window: str) -> tuple[Traffic, dict[str, str], dict[str, Scalar]]:
    names = next((n for n in (_VLLM, _TRTLLM) if any(key.startswith(n.prefix) for key in reading.values)), None)
    if names is None:
        raise TrafficProblem(
            "no metrics of vLLM or TensorRT-LLM in this text",
            where=reading.name,
            hint="their names begin with vllm: and trtllm_; give the server's own /metrics, not an exporter's",
        )
    return _Reading(reading, names, seconds, window).traffic()


class _Reading:
    """One reading with the names its engine uses."""

    def __init__(self, reading: Snapshot, names: _Names, seconds: float | None, window: str) -> None:
        self.reading = reading
        self.names = names
        self.seconds = seconds
        self.window = window
        self.notes: list[str] = []
        self.sources: dict[str, str] = {}

    def traffic(self) -> tuple[Traffic, dict[str, str], dict[str, Scalar]]:
        """Traffic, sources, measured facts."""
        inputs, outputs = self._histogram(self.names.isl), self._histogram(self.names.osl)
        isl = self._lengths("isl", inputs, "prompt_tokens_total")
        osl = self._lengths("osl", outputs, "generation_tokens_total")
        rate = self._rate()
        concurrency = self._concurrency(rate)
        dispersion = self._told("length_dispersion", outputs.dispersion() if outputs else None, "interpolated in its buckets")
        shared = self._ratio("shared_prefix", self.names.reused, self.names.asked)
        sample: tuple[tuple[int, int], ...] = ()
        if inputs and outputs:
            sample = _independent(inputs, outputs)
            self._told("lengths", sample, "quantiles, input and output taken as independent")
        use = self._value(*self.names.cache_use)
        if use is not None:
            self.notes.append(f"{use:.0%} of the KV cache was in use at the reading.")
        labels = self.reading.label_sets.get(f"{self.names.prefix}num_requests_running", 1)
        if labels > 1:
            self.notes.append(f"{labels} models or engines report here; their figures are added up.")
        traffic = Traffic(
            name=self.reading.name,
            isl=isl,
            osl=osl,
            concurrency=concurrency,
            rate=rate,
            length_dispersion=dispersion,
            shared_prefix=shared,
            lengths=sample,
            notes=tuple(self.notes),
        )
        return traffic, self.sources, self._measured()

    def _value(self, *names: str) -> float | None:
        return self.reading.value(*(self.names.prefix + name for name in names))

    def _histogram(self, names: tuple[str, ...]) -> Histogram | None:
        found = self.reading.histogram(*(self.names.prefix + name for name in names))
        return found if found and found.buckets else None

    def _lengths(self, fact: str, histogram: Histogram | None, total: str) -> Lengths:
        word = "input" if fact == "isl" else "output"
        if histogram is not None:
            self._told(fact, histogram, "quantiles interpolated in its buckets")
            largest, is_open = histogram.largest()
            if is_open:
                self.notes.append(f"The longest {word} is above the last bucket: at least {largest:,.0f} tokens.")
            p50, p90, p99 = (histogram.quantile(share) for share in (0.5, 0.9, 0.99))
            return Lengths(mean=histogram.mean, p50=p50, p90=p90, p99=p99, max=max(largest, histogram.mean))
        tokens, requests = self._value(total), self._value("request_success_total")
        if not tokens or not requests:
            raise TrafficProblem(
                f"these metrics count no {word} tokens of finished requests",
                where=self.reading.name,
                hint="read them again when the server has answered requests",
            )
        self.notes.append(
            f"Only the mean {word} length is counted: its percentiles equal the mean, and the spread is not known."
        )
        self._told(fact, tokens, f"{total} over request_success_total")
        mean = tokens / requests
        return Lengths(mean=mean, p50=mean, p90=mean, p99=mean, max=mean)

    def _rate(self) -> float | None:
        requests = self._value("request_success_total")
        if requests is None or not self.seconds or self.seconds <= 0:
            self.notes.append("One reading has no rate: give two, EARLIER.prom,LATER.prom, or the rate with --rate.")
            return None
        return self._told("rate", requests / self.seconds, f"finished requests {self.window}, {self.seconds:,.0f} s")

    def _concurrency(self, rate: float | None) -> float | None:
        running, waiting = self._value("num_requests_running"), self._value("num_requests_waiting")
        if running:
            return self._told("concurrency", running + (waiting or 0.0), "requests running and waiting at the reading")
        latency = self._histogram(("e2e_request_latency_seconds",))
        if rate is not None and latency is not None:
            return self._told("concurrency", rate * latency.mean, "Little's law: rate x mean request latency")
        self.notes.append("No request was running at the reading, so the concurrency is not known; give it with --concurrency.")
        return None

    def _ratio(self, fact: str, part: tuple[str, ...], whole: tuple[str, ...]) -> float | None:
        some, of = self._value(*part), self._value(*whole)
        if some is None or not of or some < 0 or some > of:
            return None
        return self._told(fact, some / of, f"{part[0]} over {whole[0]}: what this server's cache reused")

    def _measured(self) -> dict[str, Scalar]:
        measured: dict[str, Scalar] = {}
        for fact, names in (("ttft_ms", ("time_to_first_token_seconds",)), ("itl_ms", self.names.itl)):
            histogram = self._histogram(names)
            if histogram is not None:
                measured[fact] = histogram.mean * 1000
                self.sources[f"measured.{fact}"] = f"{self.names.engine} metrics {self.reading.name}: mean of the histogram"
        drafted, accepted = self._value(*self.names.drafted), self._value(*self.names.accepted)
        if drafted and accepted is not None:
            measured["acceptance"] = accepted / drafted
            self.sources["measured.acceptance"] = (
                f"{self.names.engine} metrics {self.reading.name}: accepted over drafted tokens"
            )
        return measured

    def _told(self, fact: str, value: _T, how: str) -> _T:
        if value is not None:
            self.sources[f"traffic.{fact}"] = f"{self.names.engine} metrics {self.reading.name}: {how}"
        return value


def _independent(inputs: Histogram, outputs: Histogram) -> tuple[tuple[int, int], ...]:
    """SAMPLE pairs: the quantiles of one against those of the other, shuffled by a fixed stride."""
    stride = 27
    shares = [(i + 0.5) / SAMPLE for i in range(SAMPLE)]
    return tuple(
        (max(1, round(inputs.quantile(share))), round(outputs.quantile(shares[i * stride % SAMPLE])))
        for i, share in enumerate(shares)
    )
