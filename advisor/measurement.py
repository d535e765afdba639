"""`advise measure` and `advise evidence`: a report's plan on a real server, and how far the estimates were off so far."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import GpuProblem, InputError, MissingExtra, NoPlanFits, NotPossible
from advisor.executor import aiperf
from advisor.executor.checking import Order, Way, check, limits_of
from advisor.executor.engines import stop_left_over
from advisor.executor.evidence import Observation, errors_so_far, evidence_file, read, record
from advisor.executor.measuring import Bounds, Measured
from advisor.executor.verifying import PREDICTED
from advisor.library import write_whole
from advisor.types import Change, Deployment, Estimate, Load, Profile, Report, Scalar

if TYPE_CHECKING:
    from advisor.executor.checking import Tell

__all__ = ["evidence", "measure", "stop_left_over"]
BASELINE, PLAN, AS_SERVED = "baseline", "plan", "as served"
STATIC, IN_FLIGHT = "static batching", "in-flight batching"
MOST_REPLAYED = 100_000


def measure(
    report: Report,
    out: Path,
    *,
    url: str | None = None,
    on_planned_gpu: bool = False,
    engine_python: str | None = None,
    checkpoint: str | None = None,
    keep_formats: bool = False,
    baseline: bool = True,
    static: bool = False,
    replay: str | None = None,
    requests: int = 32,
    rounds: int = 8,
    seconds: float = 300.0,
    precision: float = 0.05,
    deadline: float = 600.0,
    aiperf_program: str | None = None,
    own_client: bool = False,
    evidence: str | None = None,
    no_evidence: bool = False,
    tell: Tell = lambda _line: None,
) -> Report:
    """Serve a report's plan, load it as its traffic says, judge it; write report.json, report.html, measured.json into out.

    The options are those of `advise measure`; `seconds` bound each way of serving. Returns the report with a Change for each
    way that was measured: first static batching and the baseline where asked for, then the plan.
    Raises NoPlanFits, NotPossible, MissingExtra, InputError, EngineFailed, NotMeasured, FileProblem.
    """
    from advisor.estimator.batching import static_idle_share
    from advisor.profiler.exposition import parse

    began = time.monotonic()
    if not report.plan.feasible:
        raise NoPlanFits("there is nothing to measure: no plan satisfies the limits", hint="; ".join(report.plan.shortfall))
    profile = report.profile
    program = None if own_client else aiperf.find(aiperf_program)
    machine, planned = _machine(profile, url, on_planned_gpu)
    ways = _ways(report, url, keep_formats, baseline, static, planned)
    order = Order(
        out=out,
        url=url,
        python=engine_python,
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        requests=requests,
        bounds=Bounds(least=min(3, rounds), most=rounds, seconds=seconds, precision=precision),
        deadline=deadline,
        arrivals=_arrivals(replay, profile, requests) if replay is not None else (),
        aiperf=program,
    )
    slots = (profile.traffic.concurrency or 1.0) / report.plan.deployment.replicas
    changes, measured = check(
        report.plan,
        profile,
        ways,
        order,
        idle_share=static_idle_share(_load(profile), max(1.0, slots)),
        read_metrics=lambda text: parse(text, "the server's metrics").values,
        tell=tell,
    )
    took = time.monotonic() - began
    noted = _noted(changes, keep_formats and report.plan.deployment != ways[-1].deployment, program, took)
    measured_report = report.model_copy(update={"changes": (*report.changes, *noted)})
    _write(measured_report, _facts(profile, ways, measured), out)
    if not no_evidence:
        record(evidence_file(evidence), _observations(profile, machine, ways, measured, program))
    return measured_report


def evidence(file: str | None = None, *, form: str = "text") -> str:
    """What was measured so far, as JSON lines' list or as a table of how far the estimates were off. Raises FileProblem."""
    path = evidence_file(file)
    observations = read(path)
    if form == "json":
        return json.dumps([vars(each) for each in observations], indent=1)
    if not observations:
        return f"nothing was measured yet ({path})\n"
    lines = [f"{len(observations)} figures measured, {path}", ""]
    rows = errors_so_far(observations)
    if not rows:
        lines.append("None of them has a prediction beside it: they are of machines that nothing was planned for.")
    for gpu, model, metric, count, ratio, error in rows:
        lines.append(f"{gpu}, {model}: {metric} measured / predicted {ratio:.3g} (median of {count}), error {error:.0%}")
    lines += ["", "Later estimates for the same GPU, model and engine are corrected by these. Deleting the file is safe."]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- what to measure


def _ways(report: Report, url: str | None, keep_formats: bool, baseline: bool, static: bool, planned: bool) -> tuple[Way, ...]:
    """The deployments to measure, the plan last: it is the one that the limits are judged on."""
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

    if not planned:
        return None
    try:
        return estimate(profile.model, profile.gpu, deployment, _load(profile), profile.engine)
    except NotPossible:
        return None


def _load(profile: Profile) -> Load:
    from advisor.reasoner.baseline import load_of

    return load_of(profile.traffic)


def _machine(profile: Profile, url: str | None, on_planned_gpu: bool) -> tuple[str, bool]:
    """What the server runs on, and whether that is what the plan was made for."""
    from urllib.parse import urlsplit

    from advisor.profiler.gpu import read_gpus

    wanted = profile.gpu.id or profile.gpu.name
    if on_planned_gpu:
        return wanted, True
    if url is not None and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        return f"the machine of {urlsplit(url).hostname}", False
    try:
        found = read_gpus()[0]
    except (GpuProblem, MissingExtra):
        return f"no GPU, {platform.machine()} {platform.system()}", False
    name = found.id or found.name
    return name, name == wanted


def _arrivals(replay: str, profile: Profile, most: int) -> tuple[tuple[float, int, int], ...]:
    """(seconds after the first, input, output tokens) of a trace's first requests; at least one token out.

    The unit of the trace's times is taken from its rate, which its summary knows in arrivals per second.
    """
    from advisor.profiler.trace import read_trace, rows_of

    rate = read_trace(replay)[0].rate
    every = list(islice(rows_of(replay), MOST_REPLAYED))
    rows = every[:most]
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


# ---------------------------------------------------------------- what to keep


def _noted(changes: Sequence[Change], formats_kept: bool, program: str | None, took: float) -> tuple[Change, ...]:
    client = (
        f"Load: aiperf ({program})." if program else "Load: the advisor's own client; aiperf is not installed or not wanted."
    )
    notes = [client, f"All of it took {took:,.0f} s."]
    if formats_kept:
        notes.insert(0, "The plan's number formats were not measured: the checkpoint was served as it is.")
    *others, last = changes
    return (*others, last.model_copy(update={"detail": " ".join([last.detail, *notes])}))


def _facts(profile: Profile, ways: Sequence[Way], measured: Sequence[Measured]) -> dict[str, Scalar]:
    """Measured facts for `advise --measured`. The acceptance is left out: it is that of random prompts."""
    found: dict[str, Scalar] = {}
    for way, one in zip(ways, measured, strict=True):
        values = {figure.metric: figure.value for figure in one.figures}
        if way.static and "idle_share" in values:
            found["idle_share"] = values["idle_share"]
        if way.gated:
            found |= {name: values[name] for name in ("ttft_ms", "itl_ms", "output_tokens_per_s") if name in values}
            if "output_tokens_per_s" in found:  # the fact is of the whole deployment, one replica was measured
                found["output_tokens_per_s"] = values["output_tokens_per_s"] * way.deployment.replicas
            ratios = [values[name] / limit for name, limit in limits_of(profile.goal).items() if name in values]
            found |= {"limit_ratio": max(ratios)} if ratios else {}
    return found


def _write(report: Report, facts: Mapping[str, Scalar], out: Path) -> None:
    from advisor.report.rendering import render

    write_whole(out / "report.json", report.model_dump_json(indent=2) + "\n")
    write_whole(out / "report.html", render(report, "html"))
    write_whole(out / "measured.json", json.dumps(facts, indent=1) + "\n")


def _observations(
    profile: Profile, machine: str, ways: Sequence[Way], measured: Sequence[Measured], program: str | None
) -> tuple[Observation, ...]:
    traffic = profile.traffic
    load = f"concurrency {traffic.concurrency:g}" if traffic.concurrency is not None else f"rate {traffic.rate}"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    found = []
    for way, one in zip(ways, measured, strict=True):
        for figure in one.figures:
            if figure.metric not in PREDICTED:
                continue
            value = getattr(way.expected, figure.metric) if way.expected is not None else None
            if value is not None and figure.metric == "output_tokens_per_s":
                value /= way.deployment.replicas
            found.append(
                Observation(
                    at=now,
                    gpu=machine,
                    gpus=profile.gpu.count,
                    model=profile.model.name,
                    engine=profile.engine.name,
                    engine_version=profile.engine.version,
                    deployment=way.deployment.model_dump_json(exclude_defaults=True),
                    isl=traffic.isl.mean,
                    osl=traffic.osl.mean,
                    load=load,
                    metric=figure.metric,
                    predicted=value,
                    measured=figure.value,
                    low=figure.low,
                    high=figure.high,
                    client="aiperf" if program and not way.static else "own",
                )
            )
    return tuple(found)
