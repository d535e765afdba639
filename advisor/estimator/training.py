"""GPU-hours of quantization-aware training, distillation and draft-head training, as ranges from published runs.

    GPU-hours = tokens x FLOPs per token / (peak x utilisation)

FLOPs per token are 6 per parameter of the network that is trained (2 forward, 4 backward) and 2 per parameter of a frozen
teacher or base model (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; attention over the context is left out). The
utilisation is what published runs reached (profiles/training/anchors.yaml): a range of a factor of two for dense models,
ten for mixtures of experts.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from advisor import library
from advisor.errors import FileProblem, NotPossible
from advisor.estimator.drafting import active_bytes, draft_params
from advisor.estimator.memory import GIB, parameter_count
from advisor.types import Gpu, Model, Speculation, TrainingCost

Method = Literal["qat", "qad", "distillation", "draft_head"]
TRAINED_BYTES = 16.0
"""per trained parameter: 16-bit weight and gradient, FP32 master weight and two Adam moments (mixed precision, ZeRO paper,
arXiv 1910.02054, section 3.1)"""
FROZEN_BYTES = 2.0
MEMORY_SHARE = 0.8
"""of a GPU's memory that these may take; the rest is activations"""


def training_cost(
    method: Method, model: Model, gpu: Gpu, *, teacher: Model | None = None, tokens: float | None = None
) -> TrainingCost | None:
    """GPU-hours on this GPU; None when its 16-bit peak is not known.

    qat: the model alone. qad: the model with itself at 16 bits as teacher. distillation: the model is the student,
    `teacher` the model it learns from. draft_head: an EAGLE-3 head for the model. tokens: how many are trained on; None:
    the published range. Raises NotPossible for a distillation without a teacher and for tokens that are not positive.
    """
    if method == "distillation" and teacher is None:
        raise NotPossible("a distillation needs a teacher", where="teacher", hint="name the larger model")
    if tokens is not None and not 0 < tokens < math.inf:
        raise NotPossible(f"training on {tokens} tokens", where="tokens", hint="give a positive number")
    peak = gpu.tflops.bf16 or gpu.tflops.fp16
    if not peak:
        return None
    data = _anchors()
    default = data["tokens_b"][method]
    low, high = (tokens, tokens) if tokens is not None else (1e9 * default["range"][0], 1e9 * default["range"][1])
    flops, trained, frozen = _work(method, model, teacher, data)
    utilisation = data["utilisation"]["moe" if model.moe is not None and method != "draft_head" else "dense"]
    hours = [count * flops / (peak * 1e12 * share) / 3600 for count, share in ((low, utilisation[1]), (high, utilisation[0]))]
    source = "; ".join(dict.fromkeys(data["sources"][run["source"]] for run in data["runs"]))
    if tokens is None:
        source += f"; tokens: {default['why']}"
    return TrainingCost(
        method=method,
        gpu_hours=(hours[0], hours[1]),
        tokens=(low, high),
        flops_per_token=flops,
        utilisation=(utilisation[0], utilisation[1]),
        least_gpus=_least_gpus(trained, frozen, gpu),
        source=source,
    )


def _anchors() -> Any:
    data = library.profile("training", "anchors")
    if data is None:
        raise FileProblem("profiles/training/anchors.yaml is missing", hint="install the package again")
    return data


def active_params(model: Model) -> float:
    """Parameters that one token multiplies with, the output head included and the input embedding not."""
    return active_bytes(model, "bf16") / 2.0


def _work(method: Method, model: Model, teacher: Model | None, data: Any) -> tuple[float, float, float]:
    """FLOPs per token, parameters that are trained, parameters that are only read."""
    own, whole = active_params(model), float(parameter_count(model))
    if method == "qat":
        return 6 * own, whole, 0.0
    if method == "draft_head":
        head = draft_params(model, Speculation(method="eagle3"))
        assert head is not None  # only a draft model's size can be unknown
        return 2 * own + 6 * head * data["draft_unroll"], head, whole
    frozen = model if teacher is None or method == "qad" else teacher
    return 6 * own + 2 * active_params(frozen), whole, float(parameter_count(frozen))


def _least_gpus(trained: float, frozen: float, gpu: Gpu) -> int | None:
    if not gpu.memory_gib:
        return None
    return max(1, math.ceil((trained * TRAINED_BYTES + frozen * FROZEN_BYTES) / (gpu.memory_gib * GIB * MEMORY_SHARE)))
