"""What a question is about, gathered: machine, model, traffic, goal, and what earlier measurements say; into a Profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advisor.errors import InputError, UnknownName
from advisor.types import Correction, Engine, Goal, Gpu, Model, Objective, Profile, Scalar, Traffic

DEFAULT_TRAFFIC = "chat"
DEFAULT_ENGINE = "tensorrt-llm"
DEFAULT_VERSIONS = {"tensorrt-llm": "1.2.1", "vllm": "0.32.0"}
METRICS = ("perplexity", "kl", "top1", "command")


def profile(
    model: str,
    *,
    gpu: str | None = None,
    gpus: int | None = None,
    traffic: str | None = None,
    isl: float | None = None,
    osl: float | None = None,
    concurrency: float | None = None,
    rate: float | None = None,
    objective: Objective | None = None,
    ttft_ms: float | None = None,
    itl_ms: float | None = None,
    accuracy_budget_pct: float | None = None,
    accuracy_metric: str | None = None,
    engine: str | None = None,
    engine_version: str | None = None,
    batching: str | None = None,
    measured: str | None = None,
    evidence: str | None = None,
) -> Profile:
    """Look at the machine, the model and the traffic. The arguments are the options of `advise`; raises InputError."""
    from advisor.profiler.model import read_model

    limits = {"ttft_ms": ttft_ms, "itl_ms": itl_ms, "accuracy_budget_pct": accuracy_budget_pct}
    _check_version(engine_version)
    found_model, sources = read_model(model)
    found_gpu, gpu_sources = find_gpus(gpu, gpus)
    found_traffic, traffic_sources, facts = find_traffic(traffic, isl=isl, osl=osl, concurrency=concurrency, rate=rate)
    if measured is not None:
        facts = facts | read_measured(Path(measured))
    found_engine = Engine.model_validate(
        {
            "name": engine or DEFAULT_ENGINE,
            "version": engine_version or DEFAULT_VERSIONS[engine or DEFAULT_ENGINE],
            "batching": batching,
        }
    )
    corrections, told = find_corrections(found_model, found_gpu, found_engine, evidence)
    return assemble(
        found_model,
        found_gpu,
        found_traffic,
        goal=_goal(objective or "throughput", ttft_ms, itl_ms, accuracy_budget_pct, accuracy_metric or "perplexity"),
        engine=found_engine,
        measured=facts,
        corrections=corrections,
        sources=sources
        | told
        | gpu_sources
        | traffic_sources
        | {
            "engine.name": "flag --engine" if engine else "default",
            "engine.version": "flag --engine-version" if engine_version else "default",
            "goal.objective": "flag --objective" if objective else "default",
            "goal.accuracy_metric": "flag --accuracy-metric" if accuracy_metric else "default",
        }
        | {f"goal.{name}": f"flag --{name.replace('_', '-')}" for name, value in limits.items() if value is not None}
        | ({"engine.batching": "flag --batching"} if batching else {})
        | {f"measured.{name}": str(measured or traffic) for name in facts},
    )


def assemble(
    model: Model,
    gpu: Gpu,
    traffic: Traffic,
    *,
    goal: Goal | None = None,
    engine: Engine | None = None,
    measured: dict[str, Scalar] | None = None,
    corrections: dict[str, Correction] | None = None,
    sources: dict[str, str] | None = None,
) -> Profile:
    """A Profile from its parts. Raises InputError when the traffic cannot be served by the model at all."""
    longest = traffic.isl.mean + traffic.osl.mean
    if model.max_context is not None and longest > model.max_context:
        raise InputError(
            f"requests of {longest:,.0f} tokens are longer than {model.name} can take ({model.max_context:,} tokens)",
            where=f"traffic {traffic.name}: {traffic.isl.mean:,.0f} in + {traffic.osl.mean:,.0f} out",
            hint="give shorter lengths (--isl, --osl), or a model with a longer context",
        )
    return Profile(
        gpu=gpu,
        model=model,
        traffic=traffic,
        goal=goal or Goal(),
        engine=engine or Engine(),
        measured=measured or {},
        corrections=corrections or {},
        sources=dict(sorted((sources or {}).items())),
    )


def find_gpus(gpu: str | None, gpus: int | None) -> tuple[Gpu, dict[str, str]]:
    """A GPU by name, else those of this machine, and the sources. Raises GpuProblem, UnknownName."""
    from advisor.profiler.gpu import find_gpu, read_gpus

    if gpu is not None:
        return find_gpu(gpu, gpus or 1)
    found, sources = read_gpus()
    if gpus is None:
        return found, sources
    if gpus > found.count:
        from advisor.errors import GpuProblem

        raise GpuProblem(
            f"{gpus} GPUs wanted, {found.count} on this machine",
            where="--gpus",
            hint="leave --gpus out, or plan for another machine with --gpu NAME --gpus N",
        )
    return found.model_copy(update={"count": gpus}), sources | {"gpu.count": "flag --gpus"}


def find_traffic(name: str | None, **flags: Any) -> tuple[Traffic, dict[str, str], dict[str, Scalar]]:
    """A named traffic, a trace or a server's metrics under the flags isl, osl, concurrency, rate; what it measured too."""
    from advisor.profiler.prometheus import is_metrics, read_metrics
    from advisor.profiler.traffic import adjust, read_traffic

    measured: dict[str, Scalar] = {}
    if name is not None and (name.startswith(("http://", "https://")) or is_metrics(Path(name))):
        traffic, sources, measured = read_metrics(name)
    else:
        traffic, sources = read_traffic(DEFAULT_TRAFFIC if name is None else name)
    if name is None:
        sources = {fact: f"default: {source}" for fact, source in sources.items()}
    if any(value is not None for value in flags.values()):
        traffic, sources = adjust(traffic, sources, **flags)
    if name is None and flags.get("isl") is not None and flags.get("osl") is not None:
        traffic = traffic.model_copy(update={"name": f"as given, spread as in {DEFAULT_TRAFFIC}"})
    return traffic, sources, measured


def find_corrections(
    model: Model, gpu: Gpu, engine: Engine, evidence: str | None = None
) -> tuple[dict[str, Correction], dict[str, str]]:
    """How earlier measurements of this model on this GPU with this engine correct its estimates, and each one's source.

    evidence: the file; else the user's own, where there is one; "none" for no corrections. Raises FileProblem.
    """
    from advisor.executor.servers.evidence import corrections, evidence_file, read

    if evidence == "none":
        return {}, {}
    path = evidence_file(evidence)
    found = corrections(read(path, gpu=gpu.id or gpu.name, model=model.name, engine=engine.name))
    return found, {f"corrections.{name}": f"{path}: {each.count} measured" for name, each in found.items()}


def read_measured(path: Path) -> dict[str, Scalar]:
    """Measured facts from a JSON object {name: value}, as the executor writes them. Raises FileProblem, UnknownName."""
    import json

    from advisor.errors import FileProblem
    from advisor.library import read_text
    from advisor.reasoner.facts import check_measured

    try:
        content = json.loads(read_text(path, what="file of measured facts"))
    except (json.JSONDecodeError, RecursionError) as error:
        line = f":{error.lineno}:{error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise FileProblem("not valid JSON", where=f"{path}{line}", hint="an object of names and values is wanted") from None
    if not isinstance(content, dict):
        raise FileProblem("measured facts are a JSON object", where=str(path), hint='for example {"accuracy_loss_pct": 1.4}')
    measured = {name.removeprefix("measured."): value for name, value in content.items()}
    check_measured(measured, where=str(path))
    return measured


def known_model(name: str) -> Model | None:
    """A model of profiles/models, or None."""
    from advisor.profiler.known_models import find_known, read_known

    stem = find_known(name)
    return None if stem is None else read_known(stem)[0]


def _check_version(version: str | None) -> None:
    from advisor.reasoner.support import parse_version

    if version is not None and parse_version(version) is None:
        raise InputError(f"{version!r} is not a version", where="--engine-version", hint="numbers with dots, for example 1.2.1")


def _goal(objective: Objective, ttft_ms: float | None, itl_ms: float | None, budget: float | None, metric: str) -> Goal:
    for flag, value in (("--ttft-ms", ttft_ms), ("--itl-ms", itl_ms)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"a limit of {value} ms cannot be kept", where=flag, hint="give a number of milliseconds above 0")
    if metric not in METRICS and not metric.startswith("task:"):
        raise UnknownName(
            "accuracy metric", metric, METRICS, where="--accuracy-metric", hint=f"{', '.join(METRICS)} or task:NAME"
        )
    return Goal(objective=objective, ttft_ms=ttft_ms, itl_ms=itl_ms, accuracy_budget_pct=budget, accuracy_metric=metric)
