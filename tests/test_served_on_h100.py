"""The estimates for vLLM beside what a real vLLM gave on a real H100 (benchmarks/gpu/results, docs/evidence.md)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from advisor.estimator.deployment import estimate
from advisor.profiler.gpu import find_gpu
from advisor.types import Deployment, Engine, Estimate, Load

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks" / "gpu"))

from compare import served_model

RESULTS = Path(__file__).parents[1] / "benchmarks" / "gpu" / "results" / "h100-2026-11-28.json"
MODEL = served_model()
SERVERS: dict[str, Any] = json.loads(RESULTS.read_text())["sections"]["serving"]["servers"]
LEVELS = (1, 8, 32, 64, 128, 256)


def predicted(name: str, concurrency: int) -> Estimate:
    server = SERVERS[name]
    deployment = Deployment.model_validate({**server["deployment"], "max_batch_size": 256})
    load = Load(isl=1024, osl=256, concurrency=concurrency)
    return estimate(MODEL, find_gpu("h100")[0], deployment, load, Engine(name="vllm", version=server["vllm"]))


def measured(name: str, concurrency: int) -> float:
    rows = SERVERS[name]["levels"]
    return float(next(row["output_tokens_per_s"] for row in rows if row["concurrency"] == concurrency))


@pytest.mark.parametrize("name", list(SERVERS))
def test_weights_take_the_memory_that_the_engine_logged(name: str) -> None:
    logged = next(
        re.search(r"Model loading took ([\d.]+) GiB", line) for line in SERVERS[name]["log"] if "loading took" in line
    )
    assert logged is not None
    assert predicted(name, 1).memory_gib.weights == pytest.approx(float(logged[1]), rel=0.01)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("one", "other"), [("fp8kv", "bf16"), ("int4", "bf16"), ("int4", "fp8kv")])
def test_the_gain_of_a_format_is_on_the_right_side(one: str, other: str, level: int) -> None:
    gain = measured(one, level) / measured(other, level)
    said = (predicted(one, level).output_tokens_per_s or 0) / (predicted(other, level).output_tokens_per_s or 1)
    assert said == pytest.approx(gain, rel=0.2), f"measured {gain:.2f}, predicted {said:.2f}"
    if abs(gain - 1) > 0.1:  # nearer to 1 is within what two servers of one format differ by
        assert (said > 1) == (gain > 1)


def test_throughput_is_within_its_errors() -> None:
    errors = [
        (predicted(name, level).output_tokens_per_s or 0) / measured(name, level) - 1 for name in SERVERS for level in LEVELS
    ]
    assert sum(map(abs, errors)) / len(errors) < 0.1
    assert max(map(abs, errors)) < 0.3
