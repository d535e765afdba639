"""CPU milliseconds of a whole plan: rules judged, every deployment tried, steps in order, and what would change the decision.

    python benchmarks/plans.py [--against CHECKOUT]

advisor.pipeline.advise of a profile that is given: the first of a process, which still reads rules and constants; then the
least of several with a model, GPU and traffic for which nothing is remembered. Last, `advise --model …` as a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from checkout import show

from advisor import pipeline
from advisor.reasoner import diagnosis, grid, planning, students  # noqa: F401  (imports are no part of a plan)
from advisor.types import Profile

CASES = (
    ("meta-llama/Llama-3.1-8B-Instruct", "h100", 1),
    ("meta-llama/Llama-3.1-405B-Instruct", "h100", 8),
    ("deepseek-ai/DeepSeek-R1", "h200", 8),
    ("Qwen/Qwen3-235B-A22B", "h100", 8),
)
LATER = 15
STARTS = 5


def milliseconds(profile: Profile) -> float:
    """CPU time of one plan."""
    began = time.process_time()
    pipeline.advise(profile)
    return 1e3 * (time.process_time() - began)


def unknown(profile: Profile) -> Profile:
    """The same question of values that nothing made before is remembered for."""
    parts = {name: getattr(profile, name).model_copy() for name in ("model", "gpu", "traffic")}
    return profile.model_copy(update=parts)


def start(model: str, gpu: str, count: int) -> float:
    """CPU milliseconds of a process that advises."""
    command = [
        sys.executable,
        "-c",
        "from advisor.cli import main; main()",
        "--model",
        model,
        "--gpu",
        gpu,
        "--gpus",
        str(count),
    ]
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return 1e3 * (after.children_user + after.children_system - before.children_user - before.children_system)


def figures() -> dict[str, float]:
    """Milliseconds by case."""
    found: dict[str, float] = {}
    for model, gpu, count in CASES:
        profile = pipeline.profile(model=model, gpu=gpu, gpus=count)
        first = milliseconds(profile)
        if not found:
            found["first plan of a process"] = first
        found[f"plan for {model} on {count} x {gpu}"] = min(milliseconds(unknown(profile)) for _ in range(LATER))
    found[f"advise --model {CASES[0][0]}"] = min(start(*CASES[0]) for _ in range(STARTS))
    return found


if __name__ == "__main__":
    show(__file__, __doc__, figures, "ms", more_is_better=False)
