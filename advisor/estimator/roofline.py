"""Where prefill and decode of a deployment stand under the roofline of one GPU."""

from __future__ import annotations

from typing import Literal

from advisor.errors import NotPossible
from advisor.estimator.constants import constants_of
from advisor.estimator.drafting import active_bytes
from advisor.estimator.memory import kv_bytes, parameter_count, ranks
from advisor.estimator.step_time import step_time
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Model, RooflinePoint, TensorRates, WeightFormat

# The tensor-core format that a weight format multiplies in; weight-only formats are widened to 16 bits first.
COMPUTES_IN: dict[WeightFormat, Literal["bf16", "fp8", "int8", "fp4"]] = {
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8_rowwise": "fp8",
    "fp8_block": "fp8",
    "int8_sq": "int8",
    "int8_wo": "bf16",
    "int4_awq": "bf16",
    "int4_gptq": "bf16",
    "w4a8_awq": "fp8",
    "nvfp4": "fp4",
    "mxfp4": "bf16",
}


def roofline_points(
    label: str, model: Model, gpu: Gpu, deployment: Deployment, made: Estimate, load: Load, engine: Engine
) -> tuple[RooflinePoint, ...]:
    """Prefill of one prompt and one plain decode step, per GPU; empty when it does not fit or the GPU's peaks are not known.

    Operations: 2 per active parameter and token, and 4 * heads * head_dim per pair of tokens that attend to each other.
    Bytes: the weights that the step reads once, and the cache of its sequences. Time: the estimator's own step. Drafts are
    left out: they change neither the weights read nor the peak.
    """
    constants = constants_of(gpu)
    peak = _peak(gpu.tflops, deployment.weights)
    if constants is None or peak is None or not made.fits or not made.concurrency:
        return ()
    plain = deployment.model_copy(update={"speculation": None})
    try:
        step = step_time(constants, model, plain, engine)
    except NotPossible:
        return ()
    gpus = ranks(deployment)
    active = float(model.active_params or parameter_count(model))
    batch, context = max(1.0, made.concurrency / deployment.replicas), load.isl + load.osl / 2
    pair = 4.0 * model.attention_layers * model.heads * model.head_dim
    weights = active_bytes(model, deployment.weights)
    phases: tuple[tuple[Literal["prefill", "decode"], float, float, float], ...] = (
        ("prefill", 2 * active * load.isl + pair * load.isl**2 / 2, weights, step.prompt(load.isl).seconds),
        (
            "decode",
            batch * (2 * active + pair * context),
            weights + batch * kv_bytes(model, deployment.kv_cache, context),
            step.step(batch, context),
        ),
    )
    return tuple(
        RooflinePoint(
            label=label,
            phase=phase,
            flops_per_byte=float(f"{flops / read:.4g}"),
            tflops=float(f"{flops / seconds / gpus / 1e12:.4g}"),
            peak_tflops=peak,
        )
        for phase, flops, read, seconds in phases
    )


def _peak(rates: TensorRates, weights: WeightFormat) -> float | None:
    return getattr(rates, COMPUTES_IN[weights]) or rates.bf16 or rates.fp16
