"""How many plans a second a sweep makes in one process, and how much memory it takes.

    python benchmarks/sweep.py [--plans 2000]

CPU seconds of this process, after the models, GPUs and rules are read once; models of 1 B to 671 B on 1 to 8 GPUs.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter

from advisor.sweep import Sweep

MODELS = ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.3-70B-Instruct", "Qwen/Qwen3-32B", "deepseek-ai/DeepSeek-R1")
GPUS = (("l40s", 1), ("a100", 4), ("h100", 1), ("h100", 8), ("h200", 8), ("b200", 8))


def questions(count: int) -> list[dict[str, object]]:
    """`count` different questions, the models and GPUs mixed evenly."""
    found: list[dict[str, object]] = []
    for number in range(count):
        gpu, gpus = GPUS[number % len(GPUS)]
        model = MODELS[number // len(GPUS) % len(MODELS)]
        load = number // (len(GPUS) * len(MODELS))
        found.append(
            {"model": model, "gpu": gpu, "gpus": gpus, "isl": 256 + 64 * load, "osl": 256, "concurrency": 1 + 7 * load}
        )
    return found


def main() -> None:
    """Prints plans per CPU second over all and by model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plans", type=int, default=2000)
    count = parser.parse_args().plans
    list(Sweep(questions(len(GPUS) * len(MODELS))).answers())
    spent = dict.fromkeys(MODELS, 0.0)
    made: Counter[str] = Counter()
    before = time.process_time()
    for answer in Sweep(questions(count)).answers():
        now = time.process_time()
        spent[str(answer.question["model"])] += now - before
        made[str(answer.question["model"])] += 1
        before = now
    total = sum(spent.values())
    print(f"{count} plans, {total:.1f} CPU-s: {count / total:.0f} plans/s, {1e3 * total / count:.1f} ms a plan")
    for model in MODELS:
        print(f"  {model:<36} {made[model] / spent[model]:6.0f} plans/s")
    print(f"largest resident size {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
