"""How many analytic estimates a second of CPU time one core makes.

    python benchmarks/estimates.py [--against CHECKOUT]

An estimate is one call of advisor.estimator.deployment.estimate: memory, TTFT, ITL, throughput, bounds, intervals, notes; every
call has a load of its own. The first of a model, GPU and deployment also builds its coefficients; both are timed, and a line of
`advise predict`, JSON to JSON. Of several rounds the fastest counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from checkout import show

from advisor.estimator.batching import in_flight
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.step_time import step_time
from advisor.prediction import predict_lines
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Gpu, Load

COUNT = 20_000
ROUNDS = 10
CASES = (
    ("meta-llama/Llama-3.1-8B", "h100-sxm-80gb", Deployment(weights="fp8")),
    ("meta-llama/Llama-3.3-70B-Instruct", "h100-sxm-80gb", Deployment(weights="fp8", tensor_parallel=4)),
    ("deepseek-ai/DeepSeek-R1", "h200-sxm-141gb", Deployment(weights="fp8", tensor_parallel=8, attention_dp=True)),
)
Asked = TypeVar("Asked")


def rate(call: Callable[[Asked], object], asked: Sequence[Asked]) -> float:
    """Calls per second of CPU time, each with another of `asked`: the most of ROUNDS."""
    size = len(asked) // ROUNDS
    least = float("inf")
    for start in range(0, size * ROUNDS, size):
        part = asked[start : start + size]
        began = time.process_time()
        for one in part:
            call(one)
        least = min(least, time.process_time() - began)
    return size / least


def rates(name: str, gpu: Gpu, deployment: Deployment) -> dict[str, float]:
    """The rates of one model and deployment."""
    model, engine, constants = read_model(name)[0], Engine(), constants_of(gpu)
    assert constants is not None
    # coprime periods: no pair comes twice; strides: every round has prompts of all lengths, which take different paths
    lengths = [(500.0 + 1009 * n % 4999, 100.0 + n % 997) for n in range(COUNT)]
    loads = [Load(isl=isl, osl=osl, concurrency=1.0 + n % 64) for n, (isl, osl) in enumerate(lengths)]
    offline = [Load(isl=isl, osl=osl, requests=1000) for isl, osl in lengths]
    point = deployment.model_dump(exclude_defaults=True) | {"model": name, "gpu": gpu.id}
    lines = [
        json.dumps({**point, "isl": int(isl), "osl": int(osl), "concurrency": 1 + n % 64})
        for n, (isl, osl) in enumerate(lengths)
    ]
    step = step_time(constants, model, deployment, engine)

    def first(load: Load) -> None:
        estimate(model.model_copy(), gpu, deployment, load, engine)  # models are known again by identity

    return {
        f"{name}: {what}": found
        for what, found in (
            ("estimate at a concurrency", rate(lambda load: estimate(model, gpu, deployment, load, engine), loads)),
            ("estimate of an offline run", rate(lambda load: estimate(model, gpu, deployment, load, engine), offline)),
            ("first of a deployment", rate(first, loads[: COUNT // 4])),
            ("line of advise predict", rate(lambda line: next(predict_lines([line])), lines)),
            (
                "steady state alone",
                rate(lambda load: in_flight(step, load.concurrency or 1.0, load.isl, load.osl, 8192), loads),
            ),
            ("one step", rate(lambda load: step.step(load.concurrency or 1.0, load.isl, load.osl, load.isl), loads)),
        )
    }


def figures() -> dict[str, float]:
    """The rates of every case."""
    found: dict[str, float] = {}
    for name, gpu, deployment in CASES:
        found |= rates(name, find_gpu(gpu, 8)[0], deployment)
    return found


if __name__ == "__main__":
    show(__file__, __doc__, figures, "/s", more_is_better=True)
