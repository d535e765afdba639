"""Shapes of smaller models cut from a larger one, and what published students of that size lost."""

from __future__ import annotations

import math
from typing import Any, Literal

from advisor import library
from advisor.errors import FileProblem
from advisor.estimator.memory import parameter_count
from advisor.estimator.shapes import matrices
from advisor.types import Loss, Model

PER_LAYER = ("attention", "mlp", "experts", "shared_experts", "router", "norms")
"""parts of Model.params_by_part that go with their layer"""
STEP = 128
"""widths are multiples of it, as tensor cores and block scales want them"""


def is_uniform(model: Model) -> bool:
    """Whether every layer has attention and an MLP, so that any of them can be dropped."""
    return model.known and model.recurrent is None and model.attention_layers == model.mlp_layers == model.layers


def shallower(model: Model, layers: int) -> Model:
    """The model with fewer of its layers, its embedding, head and widths as they are (16 bits).

    Of local and of expert layers as many go as of all. Only for models that are uniform.
    """
    share = layers / model.layers
    kept = dict.fromkeys(PER_LAYER, share)
    window = model.window and model.window.model_copy(update={"layers": round(model.window.layers * share)})
    moe = model.moe and model.moe.model_copy(update={"layers": max(1, round(model.moe.layers * share))})
    changes = {"layers": layers, "attention_layers": layers, "mlp_layers": layers, "window": window, "moe": moe}
    return _cut(model, f"{model.name} with {layers} of {model.layers} layers", changes, kept)


def narrower(model: Model, hidden: int) -> Model:
    """The model with a narrower hidden state and MLPs narrowed as much; layers and heads as they are, as the Minitron 4B
    width student (arXiv 2408.11796). Only for dense models with plain attention."""
    share = hidden / model.hidden
    intermediate = max(STEP, round(model.intermediate * share / STEP) * STEP)
    kept = dict.fromkeys(("embedding", "lm_head", "attention", "norms"), share)
    kept["mlp"] = share * intermediate / model.intermediate
    return _cut(model, f"{model.name} of width {hidden}", {"hidden": hidden, "intermediate": intermediate}, kept)


def _cut(model: Model, name: str, changes: dict[str, Any], kept: dict[str, float]) -> Model:
    """The cut shape with its parameters counted: those of the parts by what is kept of each, else those of its matrices."""
    cut: dict[str, Any] = {
        "quantized": None,
        "weight_bytes": None,
        "bytes_by_dtype": {},
        "drafts": (),
        "siblings": (),
        "checkpoints": {},
    }
    cut |= {"mtp_layers": 0, "folder": None, "name": name, "params_by_part": {}, "params": None, "active_params": None}
    made = model.model_copy(update=cut | changes)
    parts = {part: round(count * kept.get(part, 1.0)) for part, count in model.params_by_part.items() if part != "mtp"}
    before = sum(count for part, count in model.params_by_part.items() if part not in ("mtp", "vision"))
    if not before:
        return made.model_copy(update={"params": sum(matrix.elements for matrix in matrices(made))})
    params = sum(count for part, count in parts.items() if part != "vision")
    active = round(model.active_params * params / before) if model.active_params else None
    return made.model_copy(update={"params_by_part": parts, "params": params, "active_params": active})


def share_of(model: Model, teacher: Model) -> float:
    """Parameters of the model over the teacher's."""
    return parameter_count(model) / parameter_count(teacher)


def rounds_of(share: float) -> int:
    """How often to cut and distil in turn: once down to half of the parameters, else so much a round as is published."""
    return 1 if share >= 0.5 else math.ceil(math.log(share) / math.log(_published()["per_round"]))


def expected_student_loss(how: Literal["depth", "width"], share: float) -> Loss | None:
    """What distilled students that keep about this share of the parameters lost, percent of the teacher's score.

    A smaller cut than any published one is expected to lose at most what that one did after as many tokens. None: nothing
    published is near. Only students that were distilled on 1e9 tokens or more count.
    """
    data = _published()
    runs = [run for run in data["students"] if run["tokens_b"] >= 1 and run["how"] in (how, "both")]
    near = [run for run in runs if abs(run["share"] - share) <= data["near"]]
    largest = max(run["share"] for run in runs)
    low = 0.0
    if near:
        low = min(run["lost_pct"] for run in near)
    elif share > largest:
        near = [run for run in runs if run["share"] == largest]
    else:
        return None
    spans = [run["tokens_b"] for run in near]
    told = f"{min(spans):g}" if len(set(spans)) == 1 else f"{min(spans):g} to {max(spans):g}"
    sources = "; ".join(dict.fromkeys(data["sources"][run["source"]] for run in near))
    return Loss(
        metric=f"benchmark score after {told}e9 tokens",
        low_pct=low,
        high_pct=max(run["lost_pct"] for run in near),
        basis="published",
        source=sources,
    )


def untrained_loss() -> tuple[float, float]:
    """(share kept, percent lost) of the published student that lost most when it was cut and not distilled."""
    run = max((run for run in _published()["students"] if run["tokens_b"] == 0), key=lambda run: run["lost_pct"])
    return run["share"], run["lost_pct"]


def short_run(layers: float) -> dict[str, Any]:
    """What a few thousand tokens gave a small model: the measured run whose share of layers is nearest."""
    runs: list[dict[str, Any]] = _published()["short_runs"]
    return min(runs, key=lambda run: abs(run["layers"] - layers))


def _published() -> Any:
    data = library.profile("training", "students")
    if data is None:
        raise FileProblem("profiles/training/students.yaml is missing", hint="install the package again")
    return data
