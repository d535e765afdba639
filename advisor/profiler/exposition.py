"""The Prometheus text format: samples, counters and histograms of one snapshot or of the time between two."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass, field

from advisor.errors import TrafficProblem

_SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?")
_LE = re.compile(r'(?:^|,)\s*le="([^"]*)"')


@dataclass
class Histogram:
    """Upper bounds -> requests at or below them (cumulative), with their sum and count."""

    buckets: dict[float, float]
    total: float
    count: float

    @property
    def mean(self) -> float:
        """Exact: sum over count."""
        return self.total / self.count

    def quantile(self, share: float) -> float:
        """Linear interpolation within the bucket, from 0 in the first, as PromQL's histogram_quantile does.

        A quantile in the open last bucket is that bucket's lower bound: at least this much.
        """
        rank = share * self.count
        low, below = 0.0, 0.0
        for bound, upto in sorted(self.buckets.items()):
            if upto >= rank and upto > below:
                return low if math.isinf(bound) else low + (bound - low) * (rank - below) / (upto - below)
            low, below = (low if math.isinf(bound) else bound), upto
        return low

    def largest(self) -> tuple[float, bool]:
        """The bound of the highest bucket that holds a request, and whether that bucket is open (then: at least this)."""
        low, below, found, is_open = 0.0, 0.0, 0.0, False
        for bound, upto in sorted(self.buckets.items()):
            if upto > below:
                found, is_open = (low, True) if math.isinf(bound) else (bound, False)
            low, below = (low if math.isinf(bound) else bound), upto
        return found, is_open

    def dispersion(self) -> float | None:
        """Coefficient of variation with each bucket spread evenly from bound to bound; None when the mean is 0."""
        low, below, first, second = 0.0, 0.0, 0.0, 0.0
        for bound, upto in sorted(self.buckets.items()):
            high = low if math.isinf(bound) else bound
            first += (upto - below) * (low + high) / 2
            second += (upto - below) * (low * low + low * high + high * high) / 3
            low, below = high, upto
        if not first:
            return None
        mean = first / self.count
        return math.sqrt(max(0.0, second / self.count - mean * mean)) / mean


@dataclass
class Snapshot:
    """One reading of a server's metrics: sample name -> value, summed over the label sets (models, engines, ranks)."""

    name: str
    values: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)
    label_sets: dict[str, int] = field(default_factory=dict)

    def value(self, *names: str) -> float | None:
        """The first of these samples that is there."""
        return next((self.values[name] for name in names if name in self.values), None)

    def histogram(self, *names: str) -> Histogram | None:
        """The first of these histograms that has counted a request. Raises TrafficProblem when its buckets go down."""
        for name in names:
            count = self.values.get(f"{name}_count", 0.0)
            if not count:
                continue
            buckets = self.buckets.get(name, {})
            ordered = [upto for _, upto in sorted(buckets.items())]
            if any(a > b for a, b in itertools.pairwise(ordered)):
                raise TrafficProblem(
                    f"the buckets of {name} are not cumulative", where=self.name, hint="save the server's /metrics as it is"
                )
            return Histogram(buckets, self.values.get(f"{name}_sum", 0.0), count)
        return None

    def since(self, earlier: Snapshot) -> Snapshot:
        """What was counted between two readings; gauges are the later one's. Raises TrafficProblem when a counter fell."""
        between = Snapshot(self.name, dict(self.values), {}, self.label_sets)
        for name, value in self.values.items():
            if name.endswith(("_total", "_sum", "_count")):
                between.values[name] = value - earlier.values.get(name, 0.0)
                if between.values[name] < 0:
                    raise TrafficProblem(
                        f"{name} is lower in the second reading than in the first",
                        where=f"{earlier.name}, {self.name}",
                        hint="give the earlier file first; if the server was restarted between them, read it again",
                    )
        for name, buckets in self.buckets.items():
            before = earlier.buckets.get(name, {})
            between.buckets[name] = {bound: upto - before.get(bound, 0.0) for bound, upto in buckets.items()}
        return between


def parse(text: str, name: str) -> Snapshot:
    """The samples of a text in Prometheus' exposition format 0.0.4 (OpenMetrics' exemplars are left out).

    Raises TrafficProblem with file:line.
    """
    snapshot = Snapshot(name)
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        match = _SAMPLE.fullmatch(line.split(" # ", 1)[0].rstrip())
        value = _value(match.group(3)) if match else None
        if match is None or value is None:
            raise TrafficProblem(
                f"this line is not a Prometheus sample: {line[:80]!r}",
                where=f"{name}:{number}",
                hint="save the text of the server's /metrics (vLLM) or /prometheus/metrics (TensorRT-LLM) as it is",
            )
        sample, labels = match.group(1), match.group(2) or ""
        if math.isnan(value):
            continue
        if sample.endswith("_bucket"):
            bound = _LE.search(labels)
            limit = _value(bound.group(1)) if bound else None
            if limit is None:
                raise TrafficProblem(
                    "this bucket has no bound le", where=f"{name}:{number}", hint="save the metrics as they are"
                )
            buckets = snapshot.buckets.setdefault(sample.removesuffix("_bucket"), {})
            buckets[limit] = buckets.get(limit, 0.0) + value
        else:
            snapshot.values[sample] = snapshot.values.get(sample, 0.0) + value
            snapshot.label_sets[sample] = snapshot.label_sets.get(sample, 0) + 1
    return snapshot


def _value(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
