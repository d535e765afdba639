"""How fast the simulation is: requests a second, by kind of batching, load and lengths.

    python benchmarks/simulation.py [REQUESTS]

Prints a table; the aim is 10,000 requests in well under a second on one core. CPU seconds, best of three.
"""

from __future__ import annotations

import sys
import time

from advisor.estimator.simulation import simulate
from advisor.types import Deployment, Gpu, Load, Model, TensorRates

MODEL = Model(
    name="Llama-3.1-8B", architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336, vocab=128256, heads=32,
    kv_heads=8, head_dim=128, attention="gqa", attention_layers=32, mlp_layers=32, params=8_030_261_248,
)  # fmt: skip
GPU = Gpu(
    id="h100-sxm-80gb", name="H100", sm=90, memory_gib=79.6, bandwidth_gb_s=3352, tflops=TensorRates(bf16=989, fp8=1979),
    link="nvlink", link_gb_s=450,
)  # fmt: skip
MIXED = tuple((isl, osl) for isl in (128, 700, 1500, 4000) for osl in (20, 150, 400, 900))
CASES: tuple[tuple[str, dict[str, object], dict[str, object]], ...] = (
    ("uniform 1024/256, 5 a second", {}, {"isl": 1024, "osl": 256, "rate": 5.0}),
    ("mixed lengths, 5 a second", {}, {"isl": 1582, "osl": 367, "rate": 5.0, "lengths": MIXED}),
    ("mixed lengths, 64 users", {}, {"isl": 1582, "osl": 367, "concurrency": 64, "lengths": MIXED}),
    ("mixed lengths, all at once", {}, {"isl": 1582, "osl": 367, "lengths": MIXED}),
    (
        "chunks of 2048, all at once",
        {"chunked_prefill": True, "max_num_tokens": 2048},
        {"isl": 1582, "osl": 367, "lengths": MIXED},
    ),
    ("max_utilization, all at once", {"scheduler_policy": "max_utilization"}, {"isl": 1582, "osl": 367, "lengths": MIXED}),
    ("static batches of 64", {"batching": "static", "max_batch_size": 64}, {"isl": 1582, "osl": 367, "lengths": MIXED}),
)


def main() -> None:
    """Print the table."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    print(f"{'case':32} {'requests/s':>12} {'seconds':>8} {'simulated':>10} {'tokens/s':>10} {'TTFT p99':>10} {'ITL p99':>8}")
    for name, how, load in CASES:
        best, result = float("inf"), None
        for _ in range(3):
            start = time.process_time()
            result = simulate(MODEL, GPU, Deployment.model_validate(how), Load.model_validate({**load, "requests": count}))
            best = min(best, time.process_time() - start)
        assert result is not None
        print(
            f"{name:32} {count / best:12,.0f} {best:8.3f} {result.seconds:9,.0f}s {result.output_tokens_per_s:10,.0f} "
            f"{result.ttft_ms.p99:7,.0f} ms {result.itl_ms.p99:5,.1f} ms"
        )


if __name__ == "__main__":
    main()
