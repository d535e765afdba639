"""What a numeric format is expected to cost in accuracy: a range of published losses, never a promise.

The tables are profiles/accuracy/weights.yaml and kv_cache.yaml. Losses of weights and KV cache are added: both are
small, and the only published pair (Meta-Llama-3-70B-Instruct, FP8 weights 0.44 %, FP8 cache 0.20 %, both 0.64 % on
OpenLLM v1) adds to within rounding.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from advisor import library
from advisor.errors import FileProblem
from advisor.estimator.memory import parameter_count
from advisor.types import KvFormat, Loss, Model, WeightFormat

SIZES_B = (1.0, 4.0, 16.0, 64.0)
"""upper ends of the size classes, billions of parameters; the last class has none"""
SPREAD = 2.0
"""A single published figure is widened by this factor each way: two publishers' FP8 figures of one size (Llama 8B, MMLU)
are 0.5 % (Red Hat) and 1.5 % (ModelOpt), and INT4 AWQ of one model 3.4 and 5.7 % (both ModelOpt)."""
NOISE_PCT = 0.6
"""Least upper end of a single score: the standard error of 66.55 % on MMLU's 14,042 questions, sqrt(p (1 - p) / n) / p."""
MOST_NAMED = 3
PERPLEXITY = "perplexity"
SCORE = "score"


class Published(NamedTuple):
    """A row of a table: the loss as a range, percent of the 16-bit figure."""

    format: str
    size_class: int
    model: str
    benchmark: str
    low: float
    high: float
    source: str


class Span(NamedTuple):
    """What is published for one format and size class."""

    low: float
    high: float
    benchmarks: tuple[str, ...]
    sources: tuple[str, ...]


NOTHING_LOST = Span(0.0, 0.0, (), ())


def expected_loss(model: Model, weights: WeightFormat, kv_cache: KvFormat, *, metric: str | None = None) -> Loss | None:
    """Expected loss from these formats, percent against the checkpoint as it is; None: nothing is published.

    metric: "perplexity" (rise), "score" (fall of benchmark scores) or "task:NAME" (that benchmark); None: scores, and
    perplexity where no scores are published. A format that the checkpoint already has, or bf16, costs nothing more.

    The range is the least to the largest loss published for models of this size class. Where only smaller models were
    published their largest loss is the upper end (a larger model of the same format loses less: INT4 AWQ on MMLU 8B 5.7 %,
    70B 1.1 %; FP8 1.5 and 0.4 %) and the lower end is 0. Where only larger models were: None.
    """
    quantized = model.quantized
    same_weights = weights == "bf16" or (quantized is not None and quantized.weights == weights)
    same_cache = kv_cache == "bf16" or (quantized is not None and quantized.kv_cache == kv_cache)
    if same_weights and same_cache:
        return _no_loss(metric or SCORE)
    size = size_class(parameter_count(model))
    return _loss(size, None if same_weights else weights, None if same_cache else kv_cache, metric)


def size_class(params: float) -> int:
    """Index of the size class of a model of `params` parameters: 0 below 1e9, then below 4e9, 16e9, 64e9, and above."""
    return sum(params >= limit * 1e9 for limit in SIZES_B)


@cache
def _no_loss(metric: str) -> Loss:
    return Loss(metric=metric, low_pct=0.0, high_pct=0.0, basis="arithmetic", source="the formats of the checkpoint itself")


@cache
def _loss(size: int, weights: str | None, kv_cache: str | None, metric: str | None) -> Loss | None:
    for name in (metric,) if metric else (SCORE, PERPLEXITY):
        spans = [
            NOTHING_LOST if chosen is None else _span(table, chosen, size, name)
            for table, chosen in (("weights", weights), ("kv_cache", kv_cache))
        ]
        found = [span for span in spans if span is not None]
        if len(found) == len(spans):
            return Loss(
                metric=name if metric else _named(name, found),
                low_pct=round(sum(span.low for span in found), 3),
                high_pct=round(sum(span.high for span in found), 3),
                basis="published",
                source="; ".join(dict.fromkeys(source for span in found for source in span.sources)),
            )
    return None


def _named(name: str, spans: list[Span]) -> str:
    if name == PERPLEXITY:
        return name
    names = list(dict.fromkeys(benchmark for span in spans for benchmark in span.benchmarks))
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:MOST_NAMED])} and {more} other benchmarks"


@cache
def _span(table: str, chosen: str, size: int, metric: str) -> Span | None:
    """The published range of a format for a size class."""
    rows = [row for row in _rows(table, chosen) if _asked(row.benchmark, metric)]
    here = [row for row in rows if row.size_class == size]
    smaller = [row for row in rows if row.size_class < size]
    if not here and not smaller:
        return None
    larger = _span(table, chosen, size + 1, metric) if size < len(SIZES_B) else None
    if not here:
        nearest = max(row.size_class for row in smaller)
        here = [row for row in smaller if row.size_class == nearest]
        low = 0.0
    else:
        low = max(0.0, min(row.low for row in here))
    high = max(0.0, max(row.high for row in here))
    if len(here) == 1 and here[0].low == here[0].high:
        low, high = low / SPREAD, max(high * SPREAD, 0.0 if metric == PERPLEXITY else NOISE_PCT)
    benchmarks = tuple(dict.fromkeys(row.benchmark for row in here))
    high = max(high, larger.high if larger else 0.0)
    return Span(low, high, benchmarks, tuple(dict.fromkeys(row.source for row in here)))


def _asked(benchmark: str, metric: str) -> bool:
    if metric == PERPLEXITY or benchmark == PERPLEXITY:
        return metric == benchmark
    return metric == SCORE or metric.removeprefix("task:").lower() == benchmark.lower()


@cache
def _rows(table: str, chosen: str) -> tuple[Published, ...]:
    """The table's rows of a format, and of the coarser format that bounds it when the table names one."""
    data = library.profile("accuracy", table)
    if data is None:
        raise FileProblem(f"profiles/accuracy/{table}.yaml is missing", hint="install the package again")
    formats = {chosen, data["no_worse_than"].get(chosen, chosen)}
    return tuple(_row(row, data["sources"]) for row in data["rows"] if row["format"] in formats)


def _row(row: dict[str, Any], sources: dict[str, str]) -> Published:
    printed = row.get("loss_pct")
    if printed is None:
        base, treated = row["base"], row["treated"]
        rise = treated - base if row["benchmark"] == PERPLEXITY else base - treated
        printed = 100.0 * rise / base
    low, high = printed if isinstance(printed, list) else (printed, printed)
    size = size_class(row["params_b"] * 1e9)
    return Published(row["format"], size, row["model"], row["benchmark"], low, high, sources[row["source"]])
