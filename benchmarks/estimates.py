"""How many analytic estimates a second of CPU time one core makes.

    python benchmarks/estimates.py

An estimate is one call of advisor.estimator.deployment.estimate: memory, TTFT, ITL, throughput, bounds, intervals and notes. The
first of a model, GPU and deployment also builds its coefficients; both are timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from advisor.estimator import deployment as deployments
from advisor.estimator.batching import in_flight
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.step_time import step_time
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Load

SECONDS = 1.0


def rate(call: Callable[[int], object]) -> float:
    """Calls per second of CPU time; `call` gets a running number."""
    count, start = 0, time.process_time()
    while time.process_time() - start < SECONDS:
        for _ in range(200):
            call(count)
            count += 1
    return count / (time.process_time() - start)


def main() -> None:
    """Print the rates."""
    gpu, engine = find_gpu("h100-sxm-80gb", 8)[0], Engine()
    for name, fields in (
        ("meta-llama/Llama-3.1-8B", {"weights": "fp8"}),
        ("meta-llama/Llama-3.3-70B-Instruct", {"weights": "fp8", "tensor_parallel": 4}),
        ("deepseek-ai/DeepSeek-R1", {"weights": "fp8", "tensor_parallel": 8, "attention_dp": True}),
    ):
        model, deployment = read_model(name)[0], Deployment.model_validate(fields)
        target = find_gpu("h200-sxm-141gb", 8)[0] if "DeepSeek" in name else gpu
        loads = [Load(isl=500 + 10 * n, osl=100 + n, concurrency=1.0 + n % 64) for n in range(256)]
        offline = [Load(isl=500 + 10 * n, osl=100 + n, requests=1000) for n in range(256)]
        constants = constants_of(target)
        assert constants is not None
        step = step_time(constants, model, deployment, engine)

        def first(n: int) -> None:
            deployments.CACHED.clear()
            estimate(model, target, deployment, loads[n % 256], engine)  # noqa: B023

        print(name)
        print(
            f"  estimate at a concurrency   {rate(lambda n: estimate(model, target, deployment, loads[n % 256], engine)):10,.0f} /s"
        )  # noqa: B023
        print(
            f"  estimate of an offline run  {rate(lambda n: estimate(model, target, deployment, offline[n % 256], engine)):10,.0f} /s"
        )  # noqa: B023
        print(f"  first of a deployment       {rate(first):10,.0f} /s")
        print(f"  steady state alone          {rate(lambda n: in_flight(step, 1.0 + n % 64, 500, 100, 8192)):10,.0f} /s")  # noqa: B023
        print(f"  one step                    {rate(lambda n: step.step(1.0 + n % 64, 600, 100, 500)):10,.0f} /s")  # noqa: B023


if __name__ == "__main__":
    main()
