"""NVIDIA's measured operations, asked through aiconfigurator-core: its own scheduler over kernel tables of real GPUs.

The only file that imports aiconfigurator_core (extra `silicon`); never needed. What it cannot answer raises NotMeasured with
the reason. Mode SILICON answers from measured shapes alone; HYBRID extrapolates (benchmarks/peer.py scores that one).
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from advisor.errors import MissingExtra
from advisor.types import Deployment, Gpu, KvFormat, Load, Model, WeightFormat

VERSION = "0.12.0"
HINT = "pip install 'inference-advisor[silicon]' (590 MB, Linux x86-64, Python 3.11 to 3.13), or leave --estimator out"
SYSTEMS = {
    "a100-sxm-80gb": "a100_sxm", "l40s": "l40s", "h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm", "b200": "b200_sxm",
    "gb200": "gb200", "b300": "b300_sxm", "gb300": "gb300", "rtx-pro-6000-blackwell-server": "rtx_pro_6000_server",
}  # fmt: skip
"""GPU -> its name there; the others have no kernel tables"""
BACKENDS = {"tensorrt-llm": "trtllm", "vllm": "vllm", "sglang": "sglang"}
GEMM: dict[WeightFormat, str] = {
    "bf16": "bfloat16", "fp8": "fp8_static", "fp8_block": "fp8_block", "int8_sq": "sq", "int8_wo": "int8_wo",
    "int4_awq": "int4_wo", "int4_gptq": "int4_wo", "nvfp4": "nvfp4", "mxfp4": "bfloat16",
}  # fmt: skip
"""weight format -> its matrix multiplications there. ModelOpt's FP8 checkpoints have static scales; its `fp8` quantizes on the
way (error on TensorRT-LLM's ITL of Llama-70B in FP8 26.6 % against 4.1 %, a trial of 138 records)"""
MOE: dict[WeightFormat, str] = {**GEMM, "fp8": "fp8", "w4a8_awq": "w4afp8", "mxfp4": "w4a16_mxfp4"}
CACHE: dict[KvFormat, str] = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8"}
BLACKWELL = ("b200_sxm", "gb200", "b300_sxm", "gb300")
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
BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
STEP_TOKENS = 8192
"""tokens of a step: the engines' default"""


class NotMeasured(Exception):
    """It has no answer; the text says why."""


class Measured(NamedTuple):
    """Its figures of one replica."""

    ttft_ms: float
    """a heuristic of its scheduler on the measured step, not a measurement"""
    itl_ms: float
    tokens_per_s: float
    source: str
    """which tables"""


class Question(NamedTuple):
    """One deployment for it."""

    model: Model
    gpu: Gpu
    deployment: Deployment
    backend: str = "trtllm"
    mode: Literal["SILICON", "HYBRID"] = "SILICON"
    static_scales: bool = True
    """False: FP8 activations are quantized on the way"""


def ask(question: Question, load: Load, sequences: float | None) -> Measured:
    """Its figures at `sequences` requests in flight per replica; None: the largest throughput of any batch that fits.

    Raises NotMeasured with the reason, MissingExtra where it is not installed.
    """
    require()
    d = question.deployment
    width = d.tensor_parallel if d.attention_dp else 1
    model = _build(question)
    if sequences is not None:
        return _run(question, model, load, max(1, int(sequences / width)), max(512, _new_tokens(load, d)))
    found: list[Measured] = []
    reason: NotMeasured | None = None
    isl = _new_tokens(load, d)
    for batch in BATCHES:
        for tokens in (max(512, isl), STEP_TOKENS) if isl < STEP_TOKENS else (isl,):
            try:
                found.append(_run(question, model, load, batch, tokens))
            except NotMeasured as problem:
                reason = reason or problem
    if not found:
        raise reason or NotMeasured("no batch fits")
    return max(found, key=lambda one: one.tokens_per_s)


def formats(question: Question, system: str) -> tuple[str, str, str, str]:
    """(matrix multiplications, cache, prefill attention, experts) in its words. Raises NotMeasured for formats it lacks."""
    d = question.deployment
    gemm, moe, cache_format = GEMM.get(d.weights), MOE.get(d.weights), CACHE.get(d.kv_cache)
    if (moe if question.model.moe else gemm) is None:
        raise NotMeasured(f"it has no {d.weights} multiplications")
    if cache_format is None:
        raise NotMeasured(f"it has no {d.kv_cache} KV cache")
    if gemm == "fp8_static" and not question.static_scales:
        gemm = "fp8"
    if moe == "w4a16_mxfp4" and system in BLACKWELL:
        moe = "w4a8_mxfp4_mxfp8"
    eight = cache_format == "fp8" and system != "a100_sxm" and question.backend != "vllm"
    return gemm or "bfloat16", cache_format, "fp8" if eight else "bfloat16", moe or "bfloat16"


def refuse(model: Model, gpu: Gpu, deployment: Deployment) -> str:
    """Why it is not even asked; empty where it may have an answer."""
    if gpu.id not in SYSTEMS:
        return f"it has no kernel tables of {gpu.name}"
    if deployment.batching == "static":
        return "its scheduler batches in flight only"
    if deployment.speculation is not None:
        return "it is not asked about drafts: acceptance is no operation of a GPU"
    if deployment.keep_high_precision:
        return "it has one format for all layers"
    return ""


def require() -> None:
    """Raise MissingExtra where it is not installed."""
    try:
        import aiconfigurator_core.sdk  # noqa: F401
    except ImportError as problem:
        raise MissingExtra(f"--estimator silicon needs aiconfigurator-core ({problem})", hint=HINT) from None
    logging.getLogger("aiconfigurator_core").setLevel(logging.ERROR)  # which tables stand in for others: not for our stderr


@cache
def _database(system: str, backend: str, mode: str) -> tuple[Any, str]:
    from aiconfigurator_core.sdk import perf_database

    newest = perf_database.get_latest_database_version(system, backend)
    if newest is None:
        raise NotMeasured(f"it has no kernel tables of {system} with {backend}")
    return perf_database.get_database_view(system, backend, newest, database_mode=mode), newest


def _build(question: Question) -> Any:
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import get_model

    problem = refuse(question.model, question.gpu, question.deployment)
    if problem:
        raise NotMeasured(problem)
    d, tp = question.deployment, question.deployment.tensor_parallel
    gemm, kv, attention, moe = formats(question, SYSTEMS[question.gpu.id or ""])
    dp, ep = (tp, tp) if d.attention_dp else (1, d.expert_parallel)
    try:
        config = build_model_config(tp // dp, d.pipeline_parallel, dp, tp // ep, ep, gemm, kv, attention, moe, None)
        return get_model(_catalogued(question.model), config, question.backend)
    except NotMeasured:
        raise
    except Exception as error:  # a foreign library: whatever it raises is its answer
        raise NotMeasured(_said(error)) from None


def _run(question: Question, model: Any, load: Load, batch: int, tokens: int) -> Measured:
    from aiconfigurator_core.sdk.backends.factory import get_backend
    from aiconfigurator_core.sdk.config import RuntimeConfig

    system, prefix = SYSTEMS[question.gpu.id or ""], int(load.isl) - _new_tokens(load, question.deployment)
    database, version = _database(system, question.backend, question.mode)
    runtime = RuntimeConfig(batch_size=batch, isl=int(load.isl), osl=int(load.osl), prefix=prefix)
    try:
        backend = get_backend(question.backend)  # a new one each time: its cache forgets which model it was asked about
        made = backend.run_agg(
            model, database, runtime, ctx_tokens=tokens, free_gpu_memory_fraction=0.9, max_num_tokens=max(STEP_TOKENS, tokens)
        )
    except Exception as error:  # a foreign library: whatever it raises is its answer
        raise NotMeasured(_said(error)) from None
    if made is None or made.check_oom() or made.check_kv_cache_oom():
        raise NotMeasured(f"by its memory model {batch} requests a rank do not fit")
    row = made.get_result_dict()
    source = f"aiconfigurator-core {VERSION}, tables of {system} with {question.backend} {version}"
    return Measured(float(row["ttft"]), float(row["tpot"]), float(row["tokens/s"]), source)


def _new_tokens(load: Load, deployment: Deployment) -> int:
    return max(1, int(load.isl * (1 - (load.shared_prefix if deployment.prefix_reuse else 0.0))))


def _said(error: Exception) -> str:
    """The first sentence of its message, without the paths of its installation."""
    text = re.sub(r" at /\S+|/\S*/", " ", " ".join(str(error).split()))
    text = re.sub(r"\s+([;,.:])", r"\1", re.sub(r"\s{2,}", " ", text)).strip()
    return text[:300] or type(error).__name__


# ---------------------------------------------------------------- which model


@cache
def _bundled() -> Path:
    import aiconfigurator_core

    return Path(aiconfigurator_core.__file__).parent / "model_configs"


_FOLDERS: dict[str, tempfile.TemporaryDirectory[str] | str] = {}
"""model -> where its config.json is; what was written goes when the process ends"""


def _catalogued(model: Model) -> str:
    """A folder with a config.json that it understands: its own of this name, else one written from the sizes, else the
    model's. Never a name: it would look on the net for those it does not have."""
    name = ALIASES.get(model.name, model.name)
    own = _bundled() / f"{name.replace('/', '--')}_config.json"
    key = str(own) if own.is_file() else model.model_dump_json()
    if key not in _FOLDERS:
        _FOLDERS[key] = _folder(model, own)
    found = _FOLDERS[key]
    return found if isinstance(found, str) else found.name


def _folder(model: Model, own: Path) -> tempfile.TemporaryDirectory[str] | str:
    written = None if own.is_file() else config_of(model)
    if written is None and not own.is_file():
        if model.folder is None:
            raise NotMeasured(f"its catalogue has neither {model.name} nor a way to describe {model.architecture}")
        return model.folder
    folder = tempfile.TemporaryDirectory(prefix="advise-silicon-")
    text = own.read_text(encoding="utf-8") if written is None else json.dumps(written)
    (Path(folder.name) / "config.json").write_text(text, encoding="utf-8")
    return folder


def config_of(model: Model) -> dict[str, Any] | None:
    """A config.json with the sizes of a plain decoder, dense (as a Llama) or all experts (as a Qwen3-MoE); None for others."""
    if model.mla or model.window or model.recurrent or model.kv_elements is not None or not model.gated_mlp:
        return None
    moe = model.moe
    if moe is not None and (moe.layers != model.layers or moe.shared_intermediate or moe.hidden is not None):
        return None
    sizes: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "LlamaForCausalLM"], "model_type": "qwen3_moe" if moe else "llama",
        "num_hidden_layers": model.layers, "hidden_size": model.hidden, "intermediate_size": model.intermediate,
        "num_attention_heads": model.heads, "num_key_value_heads": model.kv_heads, "head_dim": model.head_dim,
        "vocab_size": model.vocab, "max_position_embeddings": model.max_context or 131072, "torch_dtype": "bfloat16",
        "tie_word_embeddings": model.tied_embeddings,
    }  # fmt: skip
    if moe is not None:
        experts = {"num_experts": moe.experts, "num_experts_per_tok": moe.active, "moe_intermediate_size": moe.intermediate}
        sizes |= experts
    return sizes
