"""Profiles for the reasoner's tests: real sizes of real models and GPUs, built without the profiler."""

from __future__ import annotations

from typing import Any

from advisor.types import Gpu, Lengths, Model, Profile, TensorRates, Traffic


def gpu(**changes: Any) -> Gpu:
    """An H100 SXM as its datasheet and NVML have it."""
    h100 = Gpu(
        id="h100-sxm-80gb",
        name="NVIDIA H100 80GB HBM3",
        architecture="Hopper",
        sm=90,
        memory_gib=79.6,
        bandwidth_gb_s=3350,
        tflops=TensorRates(fp16=989.4, bf16=989.4, fp8=1978.9, int8=1978.9),
        link="nvlink",
        link_gb_s=450,
    )
    return h100.model_copy(update=changes)


def model(**changes: Any) -> Model:
    """Llama-3.1-8B."""
    llama = Model(
        name="meta-llama/Llama-3.1-8B-Instruct",
        architecture="LlamaForCausalLM",
        layers=32,
        hidden=4096,
        intermediate=14336,
        vocab=128256,
        heads=32,
        kv_heads=8,
        head_dim=128,
        attention="gqa",
        attention_layers=32,
        mlp_layers=32,
        max_context=131072,
        params=8030261248,
        active_params=8030261248,
    )
    return llama.model_copy(update=changes)


def large_model(**changes: Any) -> Model:
    """Llama-3.3-70B."""
    sizes = {"name": "meta-llama/Llama-3.3-70B-Instruct", "layers": 80, "hidden": 8192, "intermediate": 28672, "heads": 64}
    more = {"attention_layers": 80, "mlp_layers": 80, "params": 70553706496, "active_params": 70553706496}
    return model(**(sizes | more | changes))


def lengths(mean: float) -> Lengths:
    """A length that is always the same."""
    return Lengths(mean=mean, p50=mean, p90=mean, p99=mean, max=mean)


def traffic(isl: float = 1024, osl: float = 256, **changes: Any) -> Traffic:
    """32 requests at once."""
    given: dict[str, Any] = {"name": "flags", "isl": lengths(isl), "osl": lengths(osl), "concurrency": 32.0}
    return Traffic(**(given | changes))


def profile(**changes: Any) -> Profile:
    """Llama-3.1-8B on one H100."""
    given: dict[str, Any] = {"gpu": gpu(), "model": model(), "traffic": traffic()}
    return Profile(**(given | changes))
