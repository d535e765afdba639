"""How many analytic estimates a second of CPU time one core makes.

    python benchmarks/estimates.py

An estimate is one call of advisor.estimator.deployment.estimate: memory, TTFT, ITL, throughput, bounds, intervals, notes. The
first of a model, GPU and deployment also builds its coefficients; both are timed, and a line of `advise predict`, JSON to JSON.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from advisor.estimator import deployment as deployments
from advisor.estimator.batching import in_flight
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.step_time import step_time
from advisor.prediction import predict_lines
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Gpu, Load

SECONDS = 1.0


def rate(call: Callable[[int], object]) -> float:
    """Calls per second of CPU time; `call` gets a running number."""
    count, start = 0, time.process_time()
    while time.process_time() - start < SECONDS:
        for _ in range(200):
            call(count)
            count += 1
    return count / (time.process_time() - start)


def measure(name: str, gpu: Gpu, deployment: Deployment) -> list[str]:
    """The rates of one model and deployment, a line each."""
    model, engine, constants = read_model(name)[0], Engine(), constants_of(gpu)
    assert constants is not None
    loads = [Load(isl=500 + 10 * n, osl=100 + n, concurrency=1.0 + n % 64) for n in range(256)]
    offline = [Load(isl=500 + 10 * n, osl=100 + n, requests=1000) for n in range(256)]
    point = deployment.model_dump(exclude_defaults=True) | {"model": name, "gpu": gpu.id}
    lines = [json.dumps({**point, "isl": 500 + 10 * n, "osl": 100 + n, "concurrency": 1 + n % 64}) for n in range(256)]
    step = step_time(constants, model, deployment, engine)

    def first(n: int) -> None:
        deployments.CACHED.clear()
        estimate(model, gpu, deployment, loads[n % 256], engine)

    timed: tuple[tuple[str, Callable[[int], object]], ...] = (
        ("estimate at a concurrency", lambda n: estimate(model, gpu, deployment, loads[n % 256], engine)),
        ("estimate of an offline run", lambda n: estimate(model, gpu, deployment, offline[n % 256], engine)),
        ("first of a deployment", first),
        ("line of advise predict", lambda n: next(predict_lines(lines[n % 256 : n % 256 + 1]))),
        ("steady state alone", lambda n: in_flight(step, 1.0 + n % 1009, 500, 100, 8192)),
        ("one step", lambda n: step.step(1.0 + n % 1009, 600, 100, 500)),
    )
    return [name, *(f"  {what:28s} {rate(call):10,.0f} /s" for what, call in timed)]


def main() -> None:
    """Print the rates."""
    h100, h200 = (find_gpu(name, 8)[0] for name in ("h100-sxm-80gb", "h200-sxm-141gb"))
    cases = (
        ("meta-llama/Llama-3.1-8B", h100, Deployment(weights="fp8")),
        ("meta-llama/Llama-3.3-70B-Instruct", h100, Deployment(weights="fp8", tensor_parallel=4)),
        ("deepseek-ai/DeepSeek-R1", h200, Deployment(weights="fp8", tensor_parallel=8, attention_dp=True)),
    )
    for case in cases:
        print("\n".join(measure(*case)))


if __name__ == "__main__":
    main()
