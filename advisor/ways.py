"""What there is to measure of a report: ways of serving with their estimates and weights, the machine, a trace's arrivals."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from advisor.errors import GpuProblem, InputError, MissingExtra, NotPossible
from advisor.executor.servers.checking import LEAST, SHARE, Way
from advisor.types import Deployment, Estimate, Profile, Report

BASELINE, PLAN, AS_SERVED = "baseline", "plan", "as served"
STATIC, IN_FLIGHT = "static batching", "in-flight batching"
MOST_REPLAYED = 100_000


@dataclass(frozen=True)
class Machine:
    """What the server runs on."""

    name: str
    planned: bool
    """it is the GPU that the plan was made for"""
    gpus: int = 0


def ways_of(
    report: Report,
    machine: Machine,
    *,
    url: str | None = None,
    keep_formats: bool = False,
    baseline: bool = True,
    static: bool = False,
) -> tuple[Way, ...]:
    """The deployments to measure, the plan last: it is the one that the limits are judged on."""
    planned = machine.planned
    profile, plan = report.profile, report.plan
    before, after = plan.baseline_deployment, plan.deployment
    if keep_formats:
        after = after.model_copy(
            update={"weights": before.weights, "kv_cache": before.kv_cache, "keep_high_precision": before.keep_high_precision}
        )
    ways = []
    first = before if url is None else after
    if static and first.batching != "static":
        ways.append(_way(profile, STATIC, first.model_copy(update={"batching": "static"}), planned))
    if baseline and url is None:
        ways.append(_way(profile, BASELINE, before, planned))
    if static and first.batching == "static":
        ways.append(_way(profile, IN_FLIGHT, first.model_copy(update={"batching": "in-flight"}), planned))
    ways.append(_way(profile, PLAN if url is None else AS_SERVED, after, planned, gated=True))
    return tuple(ways)


def _way(profile: Profile, what: str, deployment: Deployment, planned: bool, *, gated: bool = False) -> Way:
    return Way(what, deployment, deployment.batching == "static", _expected(profile, deployment, planned), gated)


def _expected(profile: Profile, deployment: Deployment, planned: bool) -> Estimate | None:
    """The estimator's own word, without the corrections that a report's estimates may have."""
    from advisor.estimator.deployment import estimate
    from advisor.reasoner.baseline import load_of

    if not planned:
        return None
    try:
        return estimate(profile.model, profile.gpu, deployment, load_of(profile.traffic), profile.engine)
    except NotPossible:
        return None


def with_weights(ways: Sequence[Way], checkpoint: str | None) -> tuple[Way, ...]:
    """The ways with the folder of their weights: a checkpoint is for those that want the formats it is in.

    Raises ModelProblem for a folder that is no checkpoint, InputError for one in other formats than the plan's.
    """
    if checkpoint is None:
        return tuple(ways)
    from advisor.profiler.model import read_model

    quantized = read_model(checkpoint)[0].quantized
    weights, cache = ("bf16", None) if quantized is None else (quantized.weights, quantized.kv_cache)
    last = ways[-1].deployment
    if weights not in (last.weights, None):  # None: a format without a name here, as mixed precision
        raise InputError(
            f"this checkpoint is in {weights}, what is to be measured in {last.weights}",
            where=f"--checkpoint {checkpoint}",
            hint="give the checkpoint that `advise apply` made, or --keep-formats with one that is as the model is",
        )

    def of(way: Way) -> Path | None:
        same = way is ways[-1] or (way.deployment.weights == weights and cache in (None, way.deployment.kv_cache))
        return Path(checkpoint) if same else None

    return tuple(replace(way, checkpoint=of(way)) for way in ways)


def machine_of(profile: Profile, url: str | None = None, on_planned_gpu: bool = False) -> Machine:
    """What a server behind the URL runs on; without one this machine."""
    from urllib.parse import urlsplit

    from advisor.profiler.gpu import read_gpus

    wanted = profile.gpu.id or profile.gpu.name
    if on_planned_gpu:
        return Machine(wanted, True, profile.gpu.count)
    if url is not None and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return Machine(f"the machine of {urlsplit(url).hostname}", False)
    try:
        found = read_gpus()[0]
    except (GpuProblem, MissingExtra):
        return Machine(f"no GPU, {platform.machine()} {platform.system()}", False)
    name = found.id or found.name
    return Machine(name, name == wanted, found.count)


def arrivals_of(replay: str, profile: Profile, most: int | None) -> tuple[tuple[float, int, int], ...]:
    """(seconds after the first, input, output tokens) of a trace's first requests; at least one token out.

    The unit of the trace's times is taken from its rate, which its summary knows in arrivals per second.
    """
    from advisor.profiler.trace import read_trace, rows_of

    rate = read_trace(replay)[0].rate
    every = list(islice(rows_of(replay), MOST_REPLAYED))
    rows = every[: most or max(LEAST, SHARE * round(profile.traffic.concurrency or 0))]
    span = every[-1].arrival - every[0].arrival
    if rate is None or len(every) < 2 or span <= 0:
        raise InputError(
            "this trace has no arrival times to replay", where=replay, hint="leave --replay out: give --concurrency"
        )
    unit = (len(every) - 1) / rate / span
    longest = profile.model.max_context
    for row in rows:
        if longest is not None and row.isl + row.osl > longest:
            raise InputError(
                f"a request of {row.isl + row.osl:,} tokens is longer than {profile.model.name} can take ({longest:,})",
                where=f"{replay}:{row.line}",
                hint="leave such requests out of the trace",
            )
    return tuple(((row.arrival - rows[0].arrival) * unit, max(1, row.isl), max(1, row.osl)) for row in rows)


def texts_of(prompts: str | Path, profile: Profile) -> tuple[tuple[int, ...], ...]:
    """The user's prompts as the model's token ids, to be sent under the traffic's lengths. Raises FileProblem, ModelProblem,
    InputError: the model is not in a folder here, MissingExtra without transformers."""
    from advisor.executor.quantizing import causal_model
    from advisor.executor.quantizing.calibration import read_prompts

    if profile.model.folder is None:
        hint = "leave --prompts out, or plan for the model's folder"
        raise InputError(f"the tokenizer of {profile.model.name} is not on this machine", where="--prompts", hint=hint)
    causal_model.require_libraries("transformers")
    tokenizer = causal_model.load_tokenizer(Path(profile.model.folder))
    read = read_prompts(Path(prompts), causal_model.chat_renderer(tokenizer, str(prompts), to_answer=True))
    found = (tuple(tokenizer(text)["input_ids"]) for text in read)
    return tuple(ids for ids in found if ids)
