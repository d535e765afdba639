"""A report's plan on a real server: `advise measure`, and what `advise apply` serves of what it made before it publishes it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from advisor.errors import MissingExtra, NoPlanFits, NotPossible
from advisor.executor.request import Served
from advisor.executor.servers import aiperf
from advisor.executor.servers.aiperf import ClientFailed
from advisor.executor.servers.checking import Order, Way, check, limits_of, refuse
from advisor.executor.servers.engines import EngineFailed, stop_left_over
from advisor.executor.servers.evidence import Observation, evidence_file, record
from advisor.executor.servers.measuring import Bounds, Measured, NotMeasured
from advisor.library import write_whole
from advisor.observations import observations
from advisor.types import Change, Profile, Report, Scalar
from advisor.ways import PLAN, Machine, arrivals_of, machine_of, texts_of, ways_of, with_weights

if TYPE_CHECKING:
    from advisor.executor.servers.checking import Tell

__all__ = ["check_servable", "measure", "serve", "stop_left_over"]


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
    prompts: str | None = None,
    requests: int | None = None,
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
    if not report.plan.feasible:
        raise NoPlanFits("there is nothing to measure: no plan satisfies the limits", hint="; ".join(report.plan.shortfall))
    profile = report.profile
    machine = machine_of(profile, url, on_planned_gpu)
    ways = ways_of(report, machine, url=url, keep_formats=keep_formats, baseline=baseline, static=static)
    order = Order(
        out=out,
        url=url,
        python=engine_python,
        requests=requests,
        bounds=Bounds(least=min(3, rounds), most=rounds, seconds=seconds, precision=precision),
        deadline=deadline,
        arrivals=arrivals_of(replay, profile, requests) if replay is not None else (),
        texts=texts_of(prompts, profile) if prompts is not None else (),
        aiperf=None if own_client else aiperf.find(aiperf_program),
    )
    kept = keep_formats and report.plan.deployment != ways[-1].deployment
    found = _check(report, with_weights(ways, checkpoint), order, machine, tell, kept)
    measured_report = report.model_copy(update={"changes": (*report.changes, *found.changes)})
    _write(measured_report, found.facts, out)
    if not no_evidence:
        record(evidence_file(evidence), found.observations)
    return measured_report


def serve(
    report: Report,
    checkpoint: Path | None,
    work: Path,
    *,
    passed: bool,
    wanted: bool | None = None,
    engine_python: str | None = None,
    prompts: Path | None = None,
    rounds: int = 8,
    seconds: float = 300.0,
    evidence: str | None = None,
    tell: Tell = lambda _line: None,
) -> Served:
    """How what `advise apply` made serves: baseline and plan on the plan's engine, under the traffic, before it is published.

    checkpoint: what was made, None for the model as it is. passed: its accuracy gate. wanted: True, it has to be served and
    its limits are judged whatever machine this is; None, it is served where the engine is installed and can run it, and
    judged where this is the GPU of the plan; False, never. prompts: the user's own, to be sent in the traffic's lengths. work:
    the folder for the engines' logs. evidence: the file, or none.
    Raises what `check_servable` does where it is wanted, InputError.
    """
    plan = report.plan
    machine = machine_of(report.profile)
    why = _why_not(report, machine, passed, wanted, engine_python)
    if why:
        return Served(_steps(report, passed, why), summary=f"Not served: {why.removeprefix('not run: ')}." if passed else "")
    judged = machine.planned or wanted is True
    static = plan.baseline_deployment.batching == "static"
    *others, last = ways_of(report, machine, static=static)
    ways = (*others, replace(last, gated=judged, checkpoint=checkpoint))
    texts = texts_of(prompts, report.profile) if prompts is not None else ()
    bounds = Bounds(least=min(3, rounds), most=rounds, seconds=seconds)
    order = Order(out=work, python=engine_python, bounds=bounds, texts=texts, aiperf=aiperf.find())
    try:
        found = _check(report, ways, order, machine, tell)
    except NotPossible as error:
        if wanted:
            raise
        why = f"not run: {error.what.removeprefix('not run: ')}"
        return Served(_steps(report, passed, why), summary=f"Not served: {why.removeprefix('not run: ')}.")
    except (EngineFailed, NotMeasured, ClientFailed) as error:
        said = f"{error.what} ({error.where}); {error.hint}"
        change = Change(rule=PLAN, action="measure", gate="failed" if judged else "not run", detail=said)
        steps = _steps(report, passed, "not run: the engine failed")
        return Served((*steps, change), passed=not judged, summary=f"Not served: {error.what}.")
    if evidence != "none":
        record(evidence_file(evidence), found.observations)
    kept = not judged or not any(change.gate in ("failed", "inconclusive") for change in found.changes)
    steps = _steps(report, passed, "measured with the whole plan, below")
    facts = found.facts if judged else {}  # of another machine: no facts for the rules, which are asked about the plan's
    return Served((*steps, *found.changes), facts, kept, _verdict(found.changes[-1], judged))


def check_servable(report: Report, engine_python: str | None = None) -> None:
    """Raise MissingExtra or NotPossible where this machine cannot serve a report's plan, InputError for a wrong Python."""
    refuse(report.plan.deployment, report.profile, engine_python, machine_of(report.profile).gpus)


# ---------------------------------------------------------------- one measurement


@dataclass(frozen=True)
class Checked:
    """What one measurement came to."""

    changes: tuple[Change, ...]
    """of the ways, the plan's last"""
    facts: dict[str, Scalar]
    observations: tuple[Observation, ...]


def _check(
    report: Report, ways: Sequence[Way], order: Order, machine: Machine, tell: Tell, formats_kept: bool = False
) -> Checked:
    from advisor.estimator.batching import static_idle_share
    from advisor.profiler.exposition import parse
    from advisor.reasoner.baseline import load_of

    profile, plan, began = report.profile, report.plan, time.monotonic()
    slots = (profile.traffic.concurrency or 1.0) / plan.deployment.replicas
    changes, measured = check(
        plan,
        profile,
        ways,
        order,
        idle_share=static_idle_share(load_of(profile.traffic), max(1.0, slots)),
        read_metrics=lambda text: parse(text, "the server's metrics").values,
        tell=tell,
    )
    took = time.monotonic() - began
    notes = ["The plan's number formats were not measured: the checkpoint was served as it is."] if formats_kept else []
    notes.append(f"Prompts: {'those given' if order.texts else 'random tokens'}, in the lengths of the traffic.")
    seen = observations(profile, machine.name, ways, measured)
    return Checked(_noted(changes, [*notes, f"All of it took {took:,.0f} s."]), _facts(profile, ways, measured), seen)


def _why_not(report: Report, machine: Machine, passed: bool, wanted: bool | None, engine_python: str | None) -> str:
    """Why nothing is served, "" where it is."""
    if not passed:
        return "not run: what misses its accuracy budget is not served"
    if wanted is False:
        return "not run: --no-serve"
    try:
        refuse(report.plan.deployment, report.profile, engine_python, machine.gpus)
    except (MissingExtra, NotPossible) as error:
        if wanted:
            raise
        return error.what if error.what.startswith("not run") else f"not run: {error.what}"
    return ""


def _steps(report: Report, passed: bool, why: str) -> tuple[Change, ...]:
    """The plan's steps that an engine carries out and nothing else was measured for."""
    written, measured = "written into the serving files; " if passed else "", {change.rule for change in report.changes}
    return tuple(
        Change(rule=step.rule, action="serve", gate="not run", detail=f"{written}{why}")
        for step in report.plan.steps
        if not {"weights", "kv_cache", "keep_high_precision"} & set(step.changes) and step.rule not in measured
    )


def _verdict(change: Change, judged: bool) -> str:
    if not judged:
        return "Served and measured here; the limits are judged on the GPU of the plan alone."
    said = {"passed": "every limit was kept", "inconclusive": "whether a limit is kept cannot be told (--serve-seconds)"}
    return f"Served and measured: {said.get(change.gate, 'a limit was missed')}."


# ---------------------------------------------------------------- what to keep


def _noted(changes: Sequence[Change], notes: Sequence[str]) -> tuple[Change, ...]:
    *others, last = changes
    return (*others, last.model_copy(update={"detail": " ".join([last.detail, *notes])}))


def _facts(profile: Profile, ways: Sequence[Way], measured: Sequence[Measured]) -> dict[str, Scalar]:
    """Measured facts for `advise --measured`. The acceptance is left out: `advise draft` measures it on whole answers."""
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
