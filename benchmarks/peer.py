"""NVIDIA's aiconfigurator-core on the same records, where it is installed.

    python benchmarks/peer.py [--write]

As it ships: its own scheduler, memory model and kernel tables (hybrid mode, which extrapolates missing shapes); the best of a
sweep over batch sizes and prompt tokens a step for maximum throughput, the asked concurrency for ITL. Prints its errors beside
ours on the records that it can estimate; with --write they stand in benchmarks/peer.csv, which docs/accuracy.md shows.
"""

from __future__ import annotations

import csv
import math
import shutil
import statistics
import sys
import tempfile
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

from measurements import Measured, error, read_measurements

PATH = Path(__file__).resolve().parent / "peer.csv"
BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
GEMM = {"bf16": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "mxfp4": "bfloat16"}
MOE = {**GEMM, "mxfp4": "w4a16_mxfp4"}
FOLDERS = {
    "a100-sxm-80gb": "a100_sxm", "l40s": "l40s", "h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm", "b200": "b200_sxm",
    "gb200": "gb200", "b300": "b300_sxm", "gb300": "gb300", "rtx-pro-6000-blackwell-server": "rtx_pro_6000_server",
}  # fmt: skip
"""GPU -> its name there"""
ALIASES = {
    "meta-llama/Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Meta-Llama-3-70B": "meta-llama/Meta-Llama-3.1-70B",
    "meta-llama/Llama-3.1-405B": "meta-llama/Meta-Llama-3.1-405B",
    "meta-llama/Llama-3.1-405B-Instruct": "meta-llama/Meta-Llama-3.1-405B",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-ai/DeepSeek-R1",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
}
"""same shapes under the name that its catalogue has"""


@cache
def _database(system: str) -> Any:
    from aiconfigurator_core.sdk import perf_database

    newest = perf_database.get_latest_database_version(system, "trtllm")
    return perf_database.get_database_view(system, "trtllm", newest, database_mode="HYBRID")


@cache
def _bundled(name: str) -> str:
    """A folder with the config.json that the package brings for a model; some of its own names it would look for on the net."""
    import aiconfigurator_core

    file = Path(aiconfigurator_core.__file__).parent / "model_configs" / f"{name.replace('/', '--')}_config.json"
    if not file.is_file() or "Mixtral" not in name:
        return name
    folder = Path(tempfile.mkdtemp())
    shutil.copy(file, folder / "config.json")
    return str(folder)


def peer_estimate(measured: Measured) -> float | None:
    """Its estimate of the measured number, None where it has none."""
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.config import RuntimeConfig
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import get_model

    d, load = measured.deployment, measured.load
    system = FOLDERS.get(measured.gpu.id or "")
    if system is None:
        return None
    dp = d.tensor_parallel if d.attention_dp else 1
    ep = d.tensor_parallel if d.attention_dp else d.expert_parallel
    cache_format = "fp8" if d.kv_cache == "fp8" else "bfloat16"
    attention = "fp8" if cache_format == "fp8" and system != "a100_sxm" else "bfloat16"
    moe = MOE[d.weights]
    if moe == "w4a16_mxfp4" and system in ("b200_sxm", "gb200", "b300_sxm", "gb300"):
        moe = "w4a8_mxfp4_mxfp8"
    config = build_model_config(
        d.tensor_parallel // dp, d.pipeline_parallel, dp, d.tensor_parallel // ep, ep, GEMM[d.weights], cache_format, attention,
        moe, None,
    )  # fmt: skip
    model = get_model(_bundled(ALIASES.get(measured.model.name, measured.model.name)), config, "trtllm")
    backend, database = get_backend("trtllm"), _database(system)

    def run(batch: int, tokens: int) -> dict[str, Any] | None:
        runtime = RuntimeConfig(batch_size=batch, isl=int(load.isl), osl=int(load.osl))
        made = backend.run_agg(
            model, database, runtime, ctx_tokens=tokens, free_gpu_memory_fraction=0.9, max_num_tokens=max(8192, tokens)
        )
        if made is None or made.check_oom() or made.check_kv_cache_oom():
            return None
        return dict(made.get_result_dict())

    tokens = [max(512, int(load.isl)), 8192] if load.isl < 8192 else [int(load.isl)]
    if measured.regime == "itl":
        made = run(max(1, int((load.concurrency or 1) / dp)), tokens[0])
        return float(made["tpot"]) if made else None
    rates = [float(made["tokens/s"]) for batch in BATCHES for n in tokens for made in [run(batch, n)] if made]
    if not rates:
        return None
    gpus = d.tensor_parallel * d.pipeline_parallel
    return max(rates) / (gpus if measured.field.endswith("per_gpu") else 1)


def peer_errors() -> dict[str, float]:
    """Record id -> its log error, as written."""
    if not PATH.is_file():
        return {}
    with PATH.open(encoding="utf-8") as file:
        return {row["id"]: float(row["log_error"]) for row in csv.DictReader(file)}


def main() -> None:
    """Run it on every TensorRT-LLM record of throughput and ITL."""
    try:
        import aiconfigurator_core
    except ImportError:
        sys.exit("aiconfigurator-core is not installed: pip install aiconfigurator-core==0.12.0")
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
        except Exception as problem:  # a foreign library: whatever it raises is its answer for this record
            failures[f"{type(problem).__name__}: {str(problem)[:80]}"] += 1
            continue
        if value and value > 0 and math.isfinite(value):
            found[m.id] = math.log(value / m.value)
        if number % 100 == 0:
            print(f"{number} of {len(records)}", file=sys.stderr)
    print(aiconfigurator_core.__name__, len(found), "of", len(records), dict(failures))
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
