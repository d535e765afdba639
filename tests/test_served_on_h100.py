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

from compare import GAINS, deployment_of, predicted_rate, served_model, shape_of

RESULTS = Path(__file__).parents[1] / "benchmarks" / "gpu" / "results"
MODEL = served_model()
SERVERS: dict[str, Any] = json.loads((RESULTS / "h100-2026-11-28.json").read_text())["sections"]["serving"]["servers"]
ON_FOUR = json.loads((RESULTS / "h100-x4-2026-11-28.json").read_text())["sections"]
PARTS_ON_FOUR: dict[str, Any] = ON_FOUR["serving"]["servers"]
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
    assert sum(map(abs, errors)) / len(errors) < 0.08
    assert max(map(abs, errors)) < 0.22


def rates(part: str, level: int) -> tuple[float, float]:
    """Measured and predicted tokens/s of a server on the machine of four GPUs."""
    server = PARTS_ON_FOUR[part]
    row = next(row for row in server["levels"] if row["concurrency"] == level)
    return row["output_tokens_per_s"], predicted_rate(part, server, row, find_gpu("h100")[0]) or 0.0


def levels_of(*parts: str) -> list[int]:
    return sorted(set.intersection(*({row["concurrency"] for row in PARTS_ON_FOUR[part]["levels"]} for part in parts)))


@pytest.mark.parametrize(("one", "other", "most"), [(*pair, 0.31 if "eager" in pair[1] else 0.18) for pair in GAINS])
def test_gains_of_drafts_gpus_and_graphs(one: str, other: str, most: float) -> None:
    for level in levels_of(one, other):
        (measured_one, said_one), (measured_other, said_other) = rates(one, level), rates(other, level)
        gain, said = measured_one / measured_other, said_one / said_other
        assert said == pytest.approx(gain, rel=most), f"{level} at once: measured {gain:.2f}, predicted {said:.2f}"
        assert (said > 1) == (gain > 1)


@pytest.mark.parametrize("part", ["fp8kv-eagle3", "bf16-tp2", "70b-fp8-tp2", "70b-fp8-tp4"])
def test_servers_that_nothing_was_fitted_on_are_within_a_fifth(part: str) -> None:
    errors = [said / found - 1 for found, said in (rates(part, level) for level in levels_of(part))]
    assert max(map(abs, errors)) < 0.2 and sum(map(abs, errors)) / len(errors) < 0.12


@pytest.mark.parametrize("part", [name for name in PARTS_ON_FOUR if shape_of(name) and "draft1b" not in name])
def test_weights_of_each_rank_and_drafts_take_the_memory_that_was_logged(part: str) -> None:
    server = PARTS_ON_FOUR[part]
    logged = re.search(r"Model loading took ([\d.]+) GiB", " ".join(server["log"]))
    assert logged is not None
    deployment = deployment_of(server, server["levels"][0])
    load = Load(isl=1024, osl=256, concurrency=1)
    found = estimate(served_model(shape_of(part)), find_gpu("h100")[0], deployment, load, Engine(name="vllm", version="0.24.0"))
    assert found.memory_gib.weights == pytest.approx(float(logged[1]), rel=0.03)


def test_one_front_end_holds_a_fast_gpu_back() -> None:
    """What advisor/executor/emitting/vllm.py adds API servers for."""
    (one, _), (four, said) = rates("fp8kv-clients", 256), rates("fp8kv-fronts", 256)
    assert four > 1.2 * one and said == pytest.approx(four, rel=0.1)


def test_a_draft_model_does_not_pay_before_its_steps_are_graphs() -> None:
    server = PARTS_ON_FOUR["fp8kv-draft1b"]
    row = server["levels"][0]
    assert rates("fp8kv-draft1b", 1)[1] < rates("fp8kv-plain", 1)[1]
    later = predicted_rate("fp8kv-draft1b", {**server, "vllm": "0.25.0"}, row, find_gpu("h100")[0])
    assert later is not None and later > rates("fp8kv-plain", 1)[1]


def test_exports_lose_on_the_gpu_what_they_lose_on_a_cpu() -> None:
    """The same prompts, the executor's own trials on both: perplexity within its interval, KL within a tenth."""
    on_cpu = {row["scheme"]: row["exported"] for row in ON_FOUR["smollm_cpu"]["rows"] if "exported" in row}
    on_gpu = {row["scheme"]: row["exported"] for row in ON_FOUR["smollm"]["rows"] if "exported" in row}
    assert len(on_cpu) == 4 and set(on_cpu) < set(on_gpu)
    for scheme, there in on_cpu.items():
        value, low, high = on_gpu[scheme]["loss_pct"]
        assert low < there["loss_pct"][0] < high and there["loss_pct"][1] < value < there["loss_pct"][2]
        assert there["kl"][0] == pytest.approx(on_gpu[scheme]["kl"][0], rel=0.1)
    both = on_gpu["auto int4_awq 6"]["loss_pct"][0] / on_gpu["int4_awq"]["loss_pct"][0]
    assert both < 0.5  # mixed precision takes back most of INT4's loss
