"""NVIDIA's aiconfigurator-core on the same records, where it is installed.

    python benchmarks/peer.py [--write]

As it ships: its own scheduler, memory model and kernel tables (hybrid mode, which extrapolates missing shapes); the best of a
sweep over batch sizes and prompt tokens a step for maximum throughput, the asked concurrency for ITL. Prints its errors beside
ours on the records that it can estimate; with --write they stand in benchmarks/peer.csv, which docs/accuracy.md shows.
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from measurements import Measured, error, read_measurements

from advisor.estimator import silicon

PATH = Path(__file__).resolve().parent / "peer.csv"


def peer_estimate(measured: Measured) -> float | None:
    """Its estimate of the measured number, None where it has none. Raises NotMeasured."""
    deployment, load = measured.deployment, measured.load
    if measured.gpu.id not in silicon.SYSTEMS:
        return None
    question = silicon.Question(measured.model, measured.gpu, deployment, mode="HYBRID", static_scales=False)
    if measured.regime == "itl":
        return silicon.ask(question, load, load.concurrency or 1.0).itl_ms
    gpus = deployment.tensor_parallel * deployment.pipeline_parallel
    return silicon.ask(question, load, None).tokens_per_s / (gpus if measured.field.endswith("per_gpu") else 1)


def peer_errors() -> dict[str, float]:
    """Record id -> its log error, as written."""
    if not PATH.is_file():
        return {}
    with PATH.open(encoding="utf-8") as file:
        return {row["id"]: float(row["log_error"]) for row in csv.DictReader(file)}


def main() -> None:
    """Run it on every TensorRT-LLM record of throughput and ITL."""
    silicon.require()
    records = [
        m
        for m in read_measurements()[0]
        if m.engine.name == "tensorrt-llm" and m.regime in ("offline", "itl") and m.layout_stated
    ]
    found: dict[str, float] = {}
    failures: dict[str, int] = defaultdict(int)
    for number, m in enumerate(records):
        try:
            value = peer_estimate(m)
        except silicon.NotMeasured as problem:
            failures[str(problem)[:80]] += 1
            continue
        if value and value > 0 and math.isfinite(value):
            found[m.id] = math.log(value / m.value)
        if number % 100 == 0:
            print(f"{number} of {len(records)}", file=sys.stderr)
    print("aiconfigurator-core", len(found), "of", len(records), dict(failures))
    for regime in ("offline", "itl"):
        both = [
            (m, found[m.id], e) for m in records if m.regime == regime and m.id in found for e in [error(m)] if e is not None
        ]
        for name, index in (("its", 1), ("ours", 2)):
            sizes = [abs(math.expm1(item[index])) for item in both]  # type: ignore[arg-type]
            print(
                f"{regime:8s} {name:5s} n {len(sizes)} mean {statistics.fmean(sizes):.3f} median {statistics.median(sizes):.3f}"
            )
    if "--write" in sys.argv:
        lines = ["id,log_error", *(f"{key},{value:.4f}" for key, value in sorted(found.items()))]
        PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
