"""Deployments in words."""

from __future__ import annotations

from advisor.report import units
from advisor.types import Deployment

METHODS = {"ngram": "n-gram", "draft": "draft-model", "eagle3": "EAGLE-3", "mtp": "MTP"}


def describe_changes(changes: dict[str, object]) -> str:
    """A step's changed fields in words: {"weights": "fp8"} -> "FP8 weights, FP8 activations"."""
    return ", ".join(text for name, value in changes.items() if (text := describe_field(name, value))) or "no change"


def describe_field(name: str, value: object) -> str:
    """One field of a Deployment in words; "" for what needs none."""
    if value is None:
        return {"speculation": "no speculation"}.get(name, "")
    if name == "weights":
        weights = units.WEIGHTS.get(value, str(value))  # type: ignore[call-overload]
        activations = units.ACTIVATIONS.get(value, "")  # type: ignore[call-overload]
        return f"{weights} weights" + (f", {activations}" if activations else "")
    if name == "kv_cache":
        return f"{units.KV_CACHE.get(value, str(value))} KV cache"  # type: ignore[call-overload]
    if name == "speculation":
        return _describe_speculation(value)
    if name == "keep_high_precision":
        modules = tuple(value) if isinstance(value, tuple | list) else (str(value),)
        return f"{len(modules)} module patterns kept at high precision" if modules else ""
    switches = {
        "chunked_prefill": ("chunked prefill", "no chunked prefill"),
        "prefix_reuse": ("prefix reuse", "no prefix reuse"),
        "cuda_graphs": ("CUDA graphs", "no CUDA graphs"),
        "attention_dp": ("attention data-parallel", "attention not data-parallel"),
    }
    if name in switches:
        return switches[name][0 if value else 1]
    words = {
        "batching": "{} batching",
        "tensor_parallel": "tensor parallel {}",
        "pipeline_parallel": "pipeline parallel {}",
        "expert_parallel": "expert parallel {}",
        "replicas": "replicas {}",
        "max_batch_size": "max batch size {}",
        "max_num_tokens": "max tokens per step {}",
        "scheduler_policy": "scheduler {}",
        "batch_wait_steps": "prompts held back {} steps",
        "poll_steps": "requests fetched every {} steps",
        "batch_wait_fill": "or until {:.0%} of a step is filled",
    }
    return words[name].format(value) if name in words else f"{name} {value}"


def _describe_speculation(value: object) -> str:
    data = value if isinstance(value, dict) else value.model_dump() if hasattr(value, "model_dump") else {}
    method = METHODS.get(data.get("method", ""), "")
    length = data.get("draft_len")
    return f"{method or value} speculation" + (f", draft length {length}" if length else "")


def short_deployment(deployment: Deployment) -> str:
    """For a table: "FP8, KV FP8, TP2 x 4"."""
    parts = [units.WEIGHTS.get(deployment.weights, deployment.weights), "KV " + units.KV_CACHE[deployment.kv_cache]]
    for letters, size in (
        ("TP", deployment.tensor_parallel),
        ("PP", deployment.pipeline_parallel),
        ("EP", deployment.expert_parallel),
    ):
        if size > 1:
            parts.append(f"{letters}{size}")
    if deployment.attention_dp:
        parts.append("ADP")
    if deployment.replicas > 1:
        parts.append(f"{deployment.replicas} replicas")
    if deployment.batching == "static":
        parts.append("static batching")
    if deployment.speculation:
        parts.append(f"{METHODS[deployment.speculation.method]} draft {deployment.speculation.draft_len}")
    return ", ".join(parts)


def settings(changes: dict[str, object]) -> str:
    """A step's changed fields as settings: "weights: fp8, speculation: (method: mtp, draft_len: 4)"."""
    return ", ".join(f"{name}: {_setting(value)}" for name, value in changes.items())


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return f"({settings({name: item for name, item in value.items() if item is not None})})"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(str, value)) + "]"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
