"""80 % intervals: how far published measurements lay from estimates that were fitted without them.

profiles/constants/_intervals.yaml holds, per engine and release line, regime and kind of model, the factors between which 80 %
of the held-out measurements fell (benchmarks/fit.py). Outside what was measured the interval is wider, by factors that are
judgement: a GPU without kernel measurements, a weight format for which no engine's throughput was published, an architecture
nobody here has heard of.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from advisor import library
from advisor.estimator.constants import Constants
from advisor.types import Engine, Load, Model, WeightFormat

Factors = tuple[float, float]
UNKNOWN: Factors = (0.6, 1.6)
"""an engine that was never compared"""
MEASURED_FORMATS = frozenset({"bf16", "fp8", "fp8_block", "nvfp4", "mxfp4"})
"""weight formats of the published throughput tables"""
WIDER_GPU, WIDER_FORMAT, WIDER_MODEL = 1.4, 1.6, 1.6
"""exponents on the factors. GPU: the trial's error rose from 9.4 to 11.3 % with another GPU's constants (facts/estimator.md,
ablation), and PCIe links add to it; format and architecture: judgement"""


@cache
def _table() -> dict[str, Any]:
    return library.profile("constants", "_intervals") or {}


def line_of(engine: Engine) -> str:
    """The engine and release line as benchmarks/fit.py names it."""
    if engine.name != "tensorrt-llm":
        return engine.name
    head = engine.version.split(".")
    old = head[0] == "0" and len(head) > 1 and head[1].isdigit() and int(head[1]) < 19
    return "tensorrt-llm 0.14 to 0.17" if old else "tensorrt-llm 0.19 and later"


def _factors(line: str, regime: str, kind: str, exponent: float) -> Factors:
    kinds = _table().get(line, {}).get(regime) or _table().get("tensorrt-llm 0.19 and later", {}).get(regime)
    low, high = (kinds.get(kind) or next(iter(kinds.values())))[:2] if kinds else UNKNOWN
    return min(low, 1.0) ** exponent, max(high, 1.0) ** exponent


class Spread(NamedTuple):
    """What the width of a deployment's intervals depends on, beside the load."""

    line: str
    kind: str
    exponent: float


def spread_of(model: Model, constants: Constants, weights: WeightFormat, engine: Engine) -> Spread:
    """The engine's release line, the kind of model, and how far the case lies outside what was measured."""
    exponent = 1.0
    if not constants.fitted:
        exponent *= WIDER_GPU
    if weights not in MEASURED_FORMATS:
        exponent *= WIDER_FORMAT
    if not model.known:
        exponent *= WIDER_MODEL
    return Spread(line_of(engine), "moe" if model.moe else "dense", exponent)


def ranges(numbers: dict[str, float], spread: Spread, load: Load) -> dict[str, Factors]:
    """The interval of every number, in its own unit."""
    regime = "rate" if load.rate is not None else "offline" if load.concurrency is None else "concurrency"
    factors = _by_number(spread, regime)
    return {name: (value * factors[name][0], value * factors[name][1]) for name, value in numbers.items()}


@cache
def _by_number(spread: Spread, regime: str) -> dict[str, Factors]:
    line, kind, exponent = spread
    token, first = ("served itl", "served ttft") if regime == "rate" else ("itl", "ttft")
    if regime == "offline":  # a step takes as long as the throughput says
        throughput = _factors(line, "offline", kind, exponent)
        latency = 1 / throughput[1], 1 / throughput[0]
    else:
        latency = _factors(line, token, kind, exponent)
        throughput = 1 / latency[1], 1 / latency[0]
    return {
        "ttft_ms": _factors(line, first, kind, exponent),
        "itl_ms": latency,
        "request_latency_ms": latency,
        "output_tokens_per_s": throughput,
        "output_tokens_per_s_per_gpu": throughput,
    }
