"""The published measurements of the development data as estimates to make: what was measured, of what, under which load.

One place decides how a record is read; benchmarks/fit.py, benchmarks/accuracy.py and tests/test_accuracy_bar.py use it.
Records that are left out, and why, are in `left_out`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from inferencex import is_warm, released, server_settings

from advisor.errors import AdvisorError, InputError
from advisor.estimator.batching import published_requests
from advisor.estimator.deployment import estimate
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Model

TRUTH = Path(__file__).resolve().parents[1].parent / "shared" / "facts" / "truth"
Regime = Literal["offline", "itl", "ttft", "served itl", "served ttft"]
WEIGHTS = {"fp16": "bf16", "bf16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4", "fp4": "nvfp4", "mxfp4": "mxfp4", "int4": "int4_awq"}
ENGINES = {"TensorRT-LLM": "tensorrt-llm", "vLLM": "vllm", "SGLang": "sglang"}
BLOCK_SCALED = ("zai-org/GLM-5", "Qwen/Qwen3.5-397B-A17B")
OLDEST = (0, 14)
"""TensorRT-LLM before 0.14 is not estimated"""


class Measured(NamedTuple):
    """One published number and the estimate that should meet it."""

    id: str
    source: str
    regime: Regime
    model: Model
    gpu: Gpu
    deployment: Deployment
    load: Load
    engine: Engine
    field: str
    """of Estimate"""
    value: float
    layout_stated: bool
    """False: a mixture of experts whose expert and attention parallelism the source does not state"""
    protocol_known: bool
    """whether the source says how requests arrived"""
    warm: bool
    """False: kernels may have been compiled while the opening burst waited"""

    @property
    def group(self) -> str:
        """Model, GPU and format: what is held out together."""
        return f"{self.model.name}|{self.gpu.id}|{self.deployment.weights}"

    @property
    def era(self) -> str:
        """Engine and release line."""
        if self.engine.name != "tensorrt-llm":
            return self.engine.name
        return "tensorrt-llm 0.14 to 0.17" if version(self.engine.version) < (0, 19) else "tensorrt-llm 0.19 and later"


def version(text: str) -> tuple[int, int]:
    """Major and minor number of a release; (1, 1) for builds without one (gpt-oss-dev was cut between 1.0 and 1.1)."""
    head = text.split("-")[0].split("_")[0].split("rc")[0].split(".")
    try:
        return int(head[0]), int(head[1])
    except (ValueError, IndexError):
        return (1, 1)


@cache
def model(name: str) -> Model | None:
    """The model of that name, None when nobody here knows it."""
    try:
        return read_model(name)[0]
    except AdvisorError:
        return None


@cache
def gpu(name: str, count: int) -> Gpu | None:
    """The GPU of that id, None when the source does not say which it is."""
    try:
        return find_gpu(name, count)[0]
    except InputError:
        return None


def read_measurements(path: Path = TRUTH / "throughput.jsonl") -> tuple[list[Measured], Counter[str]]:
    """Every record that can be compared, and how many were left out for which reason."""
    found: list[Measured] = []
    left_out: Counter[str] = Counter()
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        made = _measured(record)
        if isinstance(made, str):
            left_out[made] += 1
        else:
            found.append(made)
    return found, left_out


def _measured(record: dict[str, Any]) -> Measured | str:
    read = _regime(record)
    if isinstance(read, str):
        return read
    regime, field, load = read
    engine = Engine.model_validate({"name": ENGINES[record["engine"]], "version": record.get("trtllm_version") or "1.1"})
    if engine.name == "tensorrt-llm" and version(engine.version) < OLDEST:
        return "TensorRT-LLM older than 0.14"
    if record["engine"] != "TensorRT-LLM":
        release = released(record)
        engine = Engine.model_validate({"name": engine.name, "version": "0" if release in ("", "None") else release})
    if record["spec_decoding"] != "none":
        return "speculative decoding, or not known whether"
    if record["weights_dtype"] not in WEIGHTS:
        return f"weight format {record['weights_dtype']}"
    known, where = model(record["model"]), gpu(record["gpu"], max(64, record["num_gpus"]))
    if known is None:
        return "model not in the catalogue"
    if where is None:
        return "GPU not stated"
    if record["tp"] is None:
        return "parallelism not stated"
    if "concurrency blank" in record.get("note", ""):
        return "concurrency not stated"
    deployment, stated = _deployment(record, known)
    known_protocol = "client and settings not published" not in record.get("note", "")
    return Measured(
        record["id"], record["source"], regime, known, where, deployment, load, engine, field, record["value"], stated,
        known_protocol, engine.name == "tensorrt-llm" or is_warm(record),
    )  # fmt: skip


def _regime(record: dict[str, Any]) -> tuple[Regime, str, Load] | str:
    mode, metric = record["mode"], record["metric"]
    isl, osl, requests = record.get("isl"), record.get("osl"), record.get("num_requests")
    if isl is None:
        return "lengths not stated"
    if mode == "max_throughput_offline" and metric in ("output_tok_s_total", "output_tok_s_per_gpu"):
        if "tuning guide" in record["source"] or "blog" in record["source"]:
            return "tuning steps and blogs whose settings are not stated"
        field = "output_tokens_per_s" if metric.endswith("total") else "output_tokens_per_s_per_gpu"
        return "offline", field, Load(isl=isl, osl=osl, requests=requests or published_requests(isl, osl))
    if mode.startswith("concurrency=") and metric in ("tpot_ms", "itl_ms"):
        return "itl", "itl_ms", Load(isl=isl, osl=osl, concurrency=float(mode.split("=")[1]))
    if mode.startswith("concurrency=") and metric in ("ttft_mean_ms", "ttft_ms"):
        return "ttft", "ttft_ms", Load(isl=isl, osl=osl, concurrency=float(mode.split("=")[1]))
    if mode.startswith("request_rate=") and not mode.endswith("INF") and metric in ("itl_ms", "ttft_ms"):
        load = Load(isl=isl, osl=osl, rate=float(mode.split("=")[1]), requests=requests)
        return ("served itl" if metric == "itl_ms" else "served ttft"), metric, load
    return f"{mode.split('=')[0]} {metric}"


def _deployment(record: dict[str, Any], known: Model) -> tuple[Deployment, bool]:
    """The deployment, and whether the source states its layout.

    A mixture of experts without one is taken as TensorRT-LLM's documentation of those tables runs them: attention-DP and
    expert parallelism over all ranks. KV caches follow the weights where they are not stated: FP8 and FP4 checkpoints of
    NVIDIA quantize the cache, trtllm-bench builds FP8 engines with an FP8 cache.
    """
    weights = WEIGHTS[record["weights_dtype"]]
    if _is_block_scaled(record):
        weights = "fp8_block"
    tp = record["tp"]
    stated = known.moe is None or record.get("attention_dp") is not None or tp == 1
    spread = not stated and tp > 1
    default = "fp8" if weights in ("fp8", "fp8_block", "nvfp4") else "bf16"
    cache_format = {"fp8": "fp8", "fp16": "bf16", "bf16": "bf16"}.get(record.get("kv_dtype") or "", default)
    return Deployment.model_validate(
        {
            "tensor_parallel": tp,
            "pipeline_parallel": record["pp"],
            "expert_parallel": tp if spread else record.get("ep") or 1,
            "attention_dp": spread or bool(record.get("attention_dp")),
            "weights": weights,
            "kv_cache": cache_format,
            **server_settings(record),
        }
    ), stated


def _is_block_scaled(record: dict[str, Any]) -> bool:
    """FP8 records of Qwen3-32B by the aiconfigurator team do not name the checkpoint; they meet the block-scaled one that Qwen
    publishes (2 % at every batch) and not per-tensor scales (13 %, growing with the batch). InferenceX serves zai-org/GLM-5-FP8
    and Qwen/Qwen3.5-397B-A17B-FP8 (its nvidia-master.yaml @1cb92d21), whose weights have scales of 128 x 128 too."""
    if "InferenceX" in record["source"] and record["weights_dtype"] == "fp8" and record["model"] in BLOCK_SCALED:
        return True
    return record["model"] == "Qwen/Qwen3-32B" and record["weights_dtype"] == "fp8" and "AIC team" in record["source"]


def unsaid(measured: Measured) -> Measured:
    """The record for one who knows nothing of the source's scripts: the engine's own settings."""
    usual = Deployment()
    fields = ("max_num_tokens", "batch_wait_steps", "batch_wait_fill", "poll_steps")
    plain = measured.deployment.model_copy(update={field: getattr(usual, field) for field in fields})
    return measured._replace(deployment=plain)


def error(measured: Measured) -> float | None:
    """Logarithm of estimate over measurement; None when there is no estimate."""
    value = getattr(prediction(measured), measured.field)
    return math.log(value / measured.value) if value and value > 0 and math.isfinite(value) else None


def prediction(measured: Measured) -> Estimate:
    """The estimate for a record."""
    return estimate(measured.model, measured.gpu, measured.deployment, measured.load, measured.engine)
