"""What is refused before any work: what the machine, ModelOpt's export or the engine cannot do, and folders in the way."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from advisor.errors import FileProblem, InputError, NoPlanFits, NotPossible, UnknownName
from advisor.executor.judging import evaluation, tasks
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.calibration import sample_trace
from advisor.executor.quantizing.checkpoint import (
    CACHE_ALGORITHMS,
    RENAMED,
    accepted_algorithms,
    accepted_groups,
    tied_fault,
)
from advisor.executor.quantizing.quantization import GROUPED, group_size, linear_inputs, refuse_impossible
from advisor.executor.request import Request
from advisor.executor.speculating.drafting import Order
from advisor.executor.speculating.speculation import check_order
from advisor.types import Deployment, Plan, Profile

WRITES = {
    "fp8": "FP8", "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN", "fp8_block": "FP8_PB_WO", "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int8_wo": "W8A16", "int4_awq": "W4A16_AWQ", "int4_gptq": "W4A16_AWQ", "w4a8_awq": "W4A8_AWQ", "nvfp4": "NVFP4",
}  # fmt: skip
"""weight format -> the quant_algo that ModelOpt 0.47's export writes"""
ANSWERED = 32
"""prompts that a draft is measured on, at most"""


def find_model(request: Request, profile: Profile, plan: Plan) -> Path:
    """The model's folder. Raises NoPlanFits, InputError for a model that is not here, FileProblem for no place to publish."""
    if not plan.feasible:
        makes = [one for one in plan.distillation.students if one.here] if plan.distillation else []
        told = [f"a student of {one.layers} layers would do (--student-layers auto)" for one in makes if one.rounds == 1]
        hint = "; ".join((*plan.shortfall, *told))
        raise NoPlanFits("there is nothing to apply: no plan satisfies the limits", hint=hint)
    if profile.model.folder is None:
        raise InputError(
            f"{profile.model.name} is not on this machine",
            where="--model",
            hint="download it and give the folder with its files",
        )
    for path in (request.calibration, request.production, request.training, request.tasks):
        if path is not None and not path.exists():
            raise FileProblem("this cannot be read: it is not there", where=str(path), hint="check the path")
    if not request.out.parent.is_dir():
        raise FileProblem("the folder to publish into has no parent", where=str(request.out.parent), hint="make it first")
    return Path(profile.model.folder)


def check_request(request: Request, profile: Profile, plan: Plan, folder: Path, *, begun: bool) -> None:
    """Refuse what can be refused without work. begun: an earlier run left work behind. Raises AdvisorErrors."""
    if begun and not (request.resume or request.renew):
        raise FileProblem(
            "a run was begun here and is not finished",
            where=str(request.work),
            hint="go on with --resume, or remove that folder",
        )
    order = order_of(request, profile, plan, folder, None)
    if order is not None:
        check_order(order)
    if needs_prompts(request, plan.deployment, profile):
        causal_model.require_libraries()
        causal_model.check_folder(folder)
        _check_formats(plan.deployment, profile)
        group_of(plan.deployment, profile, folder)
        _check_kept(request.keep, folder)
        _check_prompts(request, trace_of(profile))
        _check_metric(request, profile.goal.accuracy_metric)


def order_of(request: Request, profile: Profile, plan: Plan, target: Path, served: Path | None) -> Order | None:
    """What applying a plan measures: the draft that was given or that the plan names, where it is a folder, or n-grams where
    the plan looks them up; None: neither. Raises InputError: there are no prompts."""
    wanted = plan.deployment.speculation
    named = Path(wanted.draft_model) if wanted is not None and wanted.method == "draft" and wanted.draft_model else None
    draft = request.draft or (named if named is not None and named.is_dir() else None)
    if draft is None and (wanted is None or wanted.method != "ngram"):
        return None
    prompts = request.production or request.calibration
    if prompts is None:
        raise InputError(
            "a draft is measured on prompts, and there are none", where="--calibration", hint="give a JSONL file of prompts"
        )
    return Order(
        target, prompts, profile.engine.name, draft, served, count=min(ANSWERED, request.held_out),
        prompt_tokens=request.tokens, seed=request.seed,
    )  # fmt: skip


def group_of(deployment: Deployment, profile: Profile, folder: Path) -> int | None:
    """The group size of a plan's weights; None: its format has none. Raises NotPossible when the model's widths allow none."""
    if deployment.weights not in GROUPED:
        return None
    sizes = accepted_groups(profile.engine.name, profile.engine.version, WRITES[deployment.weights])
    return group_size(linear_inputs(causal_model.load_skeleton(folder)), sizes)


def trace_of(profile: Profile) -> Path | None:
    """The file of the request trace that the traffic was read from; None: from something else."""
    traced = profile.sources.get("traffic.requests", "").startswith("trace ")
    path = Path(profile.traffic.name)
    return path if traced and path.is_file() else None


def needs_prompts(request: Request, deployment: Deployment, profile: Profile) -> bool:
    """Whether there is something to calibrate, to learn or to judge."""
    return quantizes(deployment, profile) or request.student_layers is not None


def quantizes(deployment: Deployment, profile: Profile) -> bool:
    """Whether the plan wants a checkpoint that the model is not already."""
    quantized = profile.model.quantized
    have = (quantized.weights if quantized else "bf16", (quantized.kv_cache if quantized else None) or "bf16")
    return (deployment.weights, deployment.kv_cache) != have and (deployment.weights != "bf16" or deployment.kv_cache != "bf16")


def _check_kept(patterns: tuple[str, ...], folder: Path) -> None:
    modules = linear_inputs(causal_model.load_skeleton(folder)) if patterns else {}
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in modules):
            raise UnknownName("module", pattern, modules, where="--keep-high-precision", hint="for example '*self_attn*'")


def _check_prompts(request: Request, trace: Path | None) -> None:
    if request.calibration is None and (trace is None or not sample_trace(trace, str, count=1)):
        raise InputError(
            "there is nothing to calibrate on and to judge by" + (": the trace has lengths and no texts" if trace else ""),
            where=str(trace or "--calibration"),
            hint="give a JSONL file of prompts with --calibration" + ("; they are cut to the trace's lengths" if trace else ""),
        )


def _check_metric(request: Request, metric: str) -> None:
    if metric == "command":
        if not request.command:
            raise InputError(
                "--accuracy-metric command needs the command",
                where="--score-command",
                hint="for example 'python score.py {checkpoint}'",
            )
    elif metric.startswith("task:"):
        tasks.check_task(metric.removeprefix("task:"), request.tasks)
    elif metric not in evaluation.METRICS:
        raise NotPossible(
            f"{metric} is not measured by this program",
            where="--accuracy-metric",
            hint=f"{', '.join(evaluation.METRICS)}, task:NAME, or command with a script of yours",
        )


def _check_formats(deployment: Deployment, profile: Profile) -> None:
    import torch

    refuse_impossible(deployment.weights, deployment.kv_cache, cuda=torch.cuda.is_available())
    engine = profile.engine
    word = WRITES.get(deployment.weights)
    listed = accepted_algorithms(engine.name, engine.version)
    named = RENAMED.get(word or "", word) if engine.name == "tensorrt-llm" else word
    if named is not None and named not in listed:
        raise NotPossible(
            f"{engine.name} {engine.version} does not list {word}, which ModelOpt's export of {deployment.weights} says",
            where=f"weights {deployment.weights}",
            hint=f"it lists {', '.join(listed)}",
        )
    if word is not None and (fault := tied_fault(engine.name, engine.version, profile.model.tied_embeddings)):
        raise NotPossible(fault, where=f"weights {deployment.weights}", hint="serve it with vLLM 0.25 or later")
    if engine.name == "vllm" and deployment.weights == "bf16" and deployment.kv_cache != "bf16":
        raise NotPossible(
            "vLLM loads no checkpoint of ModelOpt's whose cache alone is quantized: it wants a quant_algo (tried with 0.32.0)",
            where="kv_cache",
            hint="serve the model as it is with its option --kv-cache-dtype (`advise emit`; the scales are then 1)",
        )
    if deployment.kv_cache != "bf16" and deployment.kv_cache.upper() not in CACHE_ALGORITHMS.get(engine.name, ()):
        raise NotPossible(
            f"{engine.name} takes no {deployment.kv_cache} cache from a checkpoint", where="kv_cache", hint="plan for fp8"
        )
