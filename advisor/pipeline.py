"""The whole program in a few lines each: profile, judge, plan, show. Only this file knows the order of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from advisor import __version__
from advisor.errors import InputError, NotPossible, PolicyProblem, UnknownName
from advisor.types import (
    Change,
    Correction,
    Engine,
    Finding,
    Goal,
    Gpu,
    Model,
    Objective,
    Plan,
    Policy,
    Profile,
    Report,
    Rule,
    Scalar,
    SecondOpinion,
    Traffic,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from advisor.executor.request import Options, Outcome
    from advisor.reasoner.cases import RuleCheck
    from advisor.reasoner.rulebook import Rulebook
    from advisor.reasoner.vocabulary import Fact

READINGS = {"free_memory_gib", "processes", "notes"}
"""of a GPU, that are others at each look"""
DEFAULT_TRAFFIC = "chat"
DEFAULT_ENGINE = "tensorrt-llm"
DEFAULT_VERSIONS = {"tensorrt-llm": "1.2.1", "vllm": "0.32.0"}


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


def advise(
    profile: Profile,
    *,
    overlay: str | Path | None = None,
    policy: Policy | str | Path | None = None,
    command: tuple[str, ...] = (),
    grid: bool = False,
    second_opinion: bool = False,
) -> Report:
    """Judge a profile by the rules and plan what to do: a pure function of its arguments and the rules.

    overlay: an organisation's folder of rules. policy: what may be planned, a value or its file. command: the arguments
    that asked, for the report to repeat. grid: estimate the plan and its neighbours over a lattice of loads too, for the
    page's sliders. second_opinion: ask measured per-operation data too, of the baseline and the plan.
    Raises RuleProblem, PolicyProblem, NotPossible, NoPlanFits (the policy leaves no way to serve), MissingExtra.
    """
    from advisor.library import RULES, fingerprint
    from advisor.reasoner.diagnosis import diagnose
    from advisor.reasoner.grid import draw_roofline, lay_out_grid
    from advisor.reasoner.planning import plan
    from advisor.reasoner.students import propose_students

    profile, rulebook, allowed = govern(profile, overlay=overlay, policy=policy)
    findings: tuple[Finding, ...] = diagnose(profile, rulebook)
    made = plan(profile, rulebook, findings, allowed)
    student = propose_students(profile, made, rulebook, findings, known_model, allowed)
    made = made.model_copy(update={"distillation": student})
    return Report(
        profile=profile,
        findings=findings,
        plan=made,
        overrides=rulebook.overrides,
        versions={
            "inference-advisor": __version__,
            profile.engine.name: profile.engine.version,
            "rules": fingerprint(RULES),
            **({"rules overlay": fingerprint(Path(overlay))} if overlay is not None else {}),
        },
        command=command,
        roofline=draw_roofline(profile, made),
        grid=lay_out_grid(profile, made) if grid else None,
        policy=allowed,
        second_opinions=_second_opinions(profile, made) if second_opinion else (),
    )


def _second_opinions(profile: Profile, plan: Plan) -> tuple[SecondOpinion, ...]:
    """Of the baseline and of the plan."""
    from advisor.estimator.opinion import second_opinion
    from advisor.reasoner.baseline import load_of

    model, gpu, load, engine = profile.model, profile.gpu, load_of(profile.traffic), profile.engine
    shown = (("baseline", plan.baseline_deployment, plan.baseline), ("plan", plan.deployment, plan.expected))
    return tuple(second_opinion(label, model, gpu, way, load, engine, ours) for label, way, ours in shown)


def advise_student(report: Report, layers: int | None, *, overlay: str | Path | None = None, unasked: bool = False) -> Report:
    """The report of the same question about a student of its model, distilled; layers None: as many as the report proposes.

    Raises NotPossible: such a student cannot be made, or the policy is against it; InputError: not so many layers.
    """
    from advisor.reasoner.policing import remedy_ban
    from advisor.reasoner.students import student_profile, weigh_student

    profile = student_profile(report.profile, layers, report.plan.distillation)
    _, rulebook, policy = govern(profile, overlay=overlay, policy=report.policy)
    rule = next((rule for rule in rulebook.rules if rule.applies.action == "distill"), None)
    ban = "no rule distils" if rule is None else remedy_ban(rule, policy, unasked=unasked) if policy else ""
    if rule is None or ban:
        raise NotPossible("no student may be trained", where=ban, hint="ask for another policy, or leave --student-layers out")
    made = advise(profile, overlay=overlay, policy=report.policy, command=report.command)
    student = weigh_student(profile, made.plan, report, rule)
    verdict = made.plan.verdict.replace("today's", "the 16-bit student's")  # what is served today is the teacher
    return made.model_copy(update={"plan": made.plan.model_copy(update={"distillation": student, "verdict": verdict})})


def known_model(name: str) -> Model | None:
    """A model of profiles/models, or None."""
    from advisor.profiler.known_models import find_known, read_known

    stem = find_known(name)
    return None if stem is None else read_known(stem)[0]


def adopt(profile: Profile, plan: Plan, *, overlay: str | Path | None = None) -> Report:
    """A report around a plan that was made before, for the model and the machine of a profile."""
    from advisor.reasoner.diagnosis import diagnose

    rulebook = rules(overlay)
    return Report(
        profile=profile,
        findings=diagnose(profile, rulebook),
        plan=plan,
        overrides=rulebook.overrides,
        versions={"inference-advisor": __version__, profile.engine.name: profile.engine.version},
    )


def govern(
    profile: Profile, *, overlay: str | Path | None = None, policy: Policy | str | Path | None = None
) -> tuple[Profile, Rulebook, Policy | None]:
    """The question, the rules and the policy that hold together. Raises RuleProblem, PolicyProblem."""
    if policy is None:
        return profile, rules(overlay), None
    from advisor.reasoner import policing
    from advisor.reasoner.policy_file import read_policy
    from advisor.reasoner.rulebook import Rulebook

    allowed = policy if isinstance(policy, Policy) else read_policy(Path(policy))
    if overlay is not None and allowed.rules is not None and Path(overlay).resolve() != Path(allowed.rules).resolve():
        raise InputError("the policy has an overlay of its own", where=f"--rules {overlay}", hint="leave --rules out")
    rulebook = rules(overlay if overlay is not None else allowed.rules)
    kept = tuple(rule for rule in rulebook.rules if rule.applies.deployment or not policing.is_suppressed(rule.id, allowed))
    overrides = rulebook.overrides + policing.overrides_of(allowed)
    return policing.govern(profile, allowed), Rulebook(kept, overrides), allowed


def apply(
    report: Report,
    *,
    overlay: str | Path | None = None,
    unasked: bool = False,
    log_format: Literal["text", "json"] = "text",
    stream: IO[str] | None = None,
    serving: Mapping[str, Any] | None = None,
    publish: tuple[str, ...] = (),
    **options: Unpack[Options],
) -> tuple[Report, Outcome]:
    """Carry out a report's plan, measure, and ask the same rules again until the gate passes or nothing is left; then serve it.

    A report of advise_student: its student is cut and distilled first, and takes the model's place.
    options: the fields of executor.request.Request. serving: the options of measurement.serve. Within the report's policy;
    unasked: nobody is there to be asked, so that a remedy about which the policy wants to be asked does not run. publish:
    places (hf://org/name, s3://bucket/folder, …) that get the result once its gates have passed. stream: where progress is
    told; stderr without it. The report comes back with what was done in it.
    Raises InputError, PolicyProblem, NotPossible, MissingExtra, FileProblem, NoPlanFits.
    """
    import json
    from dataclasses import replace

    from advisor import measurement
    from advisor.acceptance import adopt_speculation, facts_of, judge, with_measured
    from advisor.estimator.memory import weight_bytes
    from advisor.executor.delivery import deliver, open_shelf
    from advisor.executor.progress import Progress
    from advisor.executor.request import Answer, Remedy, Request, Served
    from advisor.executor.rounds import carry_out
    from advisor.executor.serving import write_serving
    from advisor.executor.speculation import Measured
    from advisor.executor.spending import Limit
    from advisor.library import read_text
    from advisor.reasoner.fallbacks import LEAVES, training_price
    from advisor.reasoner.policing import check_places, remedy_ban, spend_limits
    from advisor.reasoner.remedies import find_remedies
    from advisor.report.rendering import render

    _, rulebook, policy = govern(report.profile, overlay=overlay, policy=report.policy)
    profile, plan = report.profile, report.plan
    student = None
    if plan.distillation is not None and plan.distillation.teacher is not None:
        rule = rulebook.rule(plan.distillation.rule)
        if policy is not None and (ban := remedy_ban(rule, policy, unasked=unasked)):
            raise PolicyProblem("the policy lets no student be distilled", where=ban, hint="plan without --student-layers")
        student = Remedy(rule.id, rule.applies.action, rule.applies.parameters)
        options["student_layers"] = profile.model.layers
    if policy is not None:
        check_places(publish, policy)
    check_supported(profile, plan)
    shelves = tuple(open_shelf(place) for place in publish)
    for shelf in shelves:
        shelf.check_writable()
    request = Request(
        **options,
        shelves=shelves,
        version=__version__,
        question=question_hash(report, rulebook, serving or {}),
        limits=tuple(Limit(*one) for one in spend_limits(policy)) if policy is not None else (),
        checkpoint_bytes=weight_bytes(profile.model, plan.deployment),
    )
    progress, how = Progress(log_format, stream), dict(serving or {})
    if how.get("wanted"):
        measurement.check_servable(report, how.get("engine_python"))
    chosen = {step.rule for step in plan.steps if "weights" in step.changes}
    parameters = next((dict(rule.applies.parameters) for rule in rulebook.rules if rule.id in chosen), {})

    def with_facts(measured: Mapping[str, Scalar]) -> Profile:
        return with_measured(profile, measured)

    def ask(measured: Mapping[str, Scalar]) -> Answer:
        fired, wanted = find_remedies(with_facts(measured), rulebook, barred)
        remedies = tuple(remedy(rule) for rule in fired if not barred(rule))
        return Answer(remedies, wanted, forbidden=tuple((remedy(rule), barred(rule)) for rule in fired if barred(rule)))

    def barred(rule: Rule) -> str:
        return remedy_ban(rule, policy, unasked=unasked) if policy is not None else ""

    def remedy(rule: Rule) -> Remedy:
        return Remedy(
            rule.id,
            rule.applies.action,
            rule.applies.parameters,
            leaves=LEAVES[rule.applies.action],
            cost=lambda tokens: training_price(rule, profile, tokens),
            asks=policy is None or policy.training != "unasked",
        )

    def weigh(measured: Measured) -> tuple[tuple[Change, ...], dict[str, Scalar]]:
        facts = facts_of(measured)
        return judge(with_facts(facts), plan.deployment, measured), facts

    def serve(checkpoint: Path | None, changes: tuple[Change, ...], measured: Mapping[str, Scalar], passed: bool) -> Served:
        made, options = told(changes, measured), how | {"prompts": request.production or request.calibration}
        left = progress.spending.seconds_left if progress.spending is not None else None
        if left is not None:
            options["seconds"] = max(1.0, min(how.get("seconds", left), left))
        work, tell = request.work / "serving", lambda line: progress.say("serve", line)
        return measurement.serve(made, checkpoint, work, passed=passed, tell=tell, **options)

    def told(changes: tuple[Change, ...], measured: Mapping[str, Scalar]) -> Report:
        known, made = with_facts(measured), plan
        if any(change.drafts for change in changes):
            made = adopt_speculation(plan, advise(known, overlay=overlay, policy=policy).plan)
        return report.model_copy(update={"profile": known, "plan": made, "changes": changes})

    def pages(changes: tuple[Change, ...], measured: Mapping[str, Scalar], published: bool) -> dict[str, str]:
        made = told(changes, measured)
        files = {"report.json": render(made, "json"), "report.html": render(made, "html")}
        files["measured.json"] = json.dumps(dict(measured), indent=1) + "\n"
        logs = {f"logs/{log.name}": read_text(log, what="log") for log in (request.work / "serving" / "logs").glob("*.log")}
        beside = any(change.artifact for change in changes)
        named = profile  # a student is in no folder but the one that is published
        if student is not None:
            named = profile.model_copy(update={"model": profile.model.model_copy(update={"folder": None})})
        return files | (write_serving(made.plan, named, made=beside) | logs if published else {})

    outcome = carry_out(request, profile, plan, parameters, ask, pages, progress, weigh, serve, student)
    if outcome.published:
        outcome = replace(outcome, places=tuple(deliver(shelf, outcome.folder, progress) for shelf in shelves))
    if log_format == "json":
        came_to = {"published": outcome.published, "reused": outcome.reused, "folder": str(outcome.folder)}
        progress.say("done", outcome.summary, **came_to, places=outcome.places)
    return told(outcome.changes, outcome.measured), outcome


def question_hash(report: Report, rulebook: Rulebook, serving: Mapping[str, Any]) -> str:
    """A hash of what is to be done: for which profile, by which plan, policy and rules.

    Left out: where a fact was read, the readings of a running machine, what earlier measurements make the estimates say.
    """
    import hashlib
    import json

    profile, plan = report.profile, report.plan
    content = (
        profile.model_dump(mode="json", exclude={"sources": True, "corrections": True, "gpu": READINGS}),
        plan.deployment.model_dump(mode="json"),
        [(step.rule, step.changes) for step in plan.steps],
        report.policy.model_dump(mode="json", exclude={"file", "lines", "rules"}) if report.policy else None,
        [rule.model_dump(mode="json") for rule in rulebook.rules],
        serving.get("wanted"),
    )
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def check_supported(profile: Profile, plan: Plan) -> None:
    """Raise NotPossible where the support table says that a format of the plan cannot run on this engine and GPU."""
    from advisor.reasoner.support import lookup

    for kind in ("weights", "kv_cache"):
        word = getattr(plan.deployment, kind)
        found, source = lookup(profile.engine.name, profile.engine.version, profile.gpu.sm, kind, word)
        if found == "impossible":
            engine = f"{profile.engine.name} {profile.engine.version}"
            raise NotPossible(
                f"{engine} cannot run {kind} in {word} on {profile.gpu.name}",
                where=source,
                hint="make the plan again for this machine",
            )


def emit(report: Report, folder: Path) -> tuple[Path, ...]:
    """Write the serving files of a report's plan into a folder. Raises NoPlanFits, NotPossible, FileProblem."""
    from advisor.errors import NoPlanFits
    from advisor.executor.serving import write_serving
    from advisor.library import write_whole

    if not report.plan.feasible:
        raise NoPlanFits("there is nothing to serve: no plan satisfies the limits", hint="; ".join(report.plan.shortfall))
    files = write_serving(report.plan, report.profile)
    for name, text in files.items():
        write_whole(folder / name, text)
    return tuple(folder / name for name in files)


def rules(overlay: str | Path | None = None) -> Rulebook:
    """The rules, with an organisation's overlay. Raises RuleProblem."""
    from advisor.reasoner.rulebook import load_rules

    return load_rules(Path(overlay) if overlay is not None else None)


def explain(rule_id: str, *, report_file: str | None = None, overlay: str | None = None) -> str:
    """A rule as a page; with a report, why or why not there. Raises UnknownName."""
    from advisor.profiler.stored import load_report
    from advisor.reasoner import explanation

    return explanation.explain(rules(overlay).rule(rule_id), load_report(Path(report_file)) if report_file else None)


def lint(folder: str | None = None) -> tuple[InputError, ...]:
    """Every problem of a folder of rules; of the shipped ones without a folder."""
    from advisor.library import RULES
    from advisor.reasoner import rulebook

    return rulebook.lint(Path(folder) if folder is not None else RULES)


def check_rules(folder: str | None = None) -> tuple[RuleCheck, ...]:
    """Every rule's own cases, and whether they would notice a threshold that moved."""
    from advisor.reasoner.cases import check_rule
    from advisor.reasoner.rulebook import rules_in

    return tuple(check_rule(rule) for rule in rules_in(Path(folder) if folder is not None else None))


def facts() -> tuple[Fact, ...]:
    """Every fact a rule may name."""
    from advisor.reasoner.vocabulary import FACTS

    return tuple(FACTS.values())


def find_corrections(
    model: Model, gpu: Gpu, engine: Engine, evidence: str | None = None
) -> tuple[dict[str, Correction], dict[str, str]]:
    """How earlier measurements of this model on this GPU with this engine correct its estimates, and each one's source.

    evidence: the file; else the user's own, where there is one; "none" for no corrections. Raises FileProblem.
    """
    from advisor.executor.evidence import corrections, evidence_file, read

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


def _check_version(version: str | None) -> None:
    from advisor.reasoner.support import parse_version

    if version is not None and parse_version(version) is None:
        raise InputError(f"{version!r} is not a version", where="--engine-version", hint="numbers with dots, for example 1.2.1")


METRICS = ("perplexity", "kl", "top1", "command")


def _goal(objective: Objective, ttft_ms: float | None, itl_ms: float | None, budget: float | None, metric: str) -> Goal:
    for flag, value in (("--ttft-ms", ttft_ms), ("--itl-ms", itl_ms)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"a limit of {value} ms cannot be kept", where=flag, hint="give a number of milliseconds above 0")
    if metric not in METRICS and not metric.startswith("task:"):
        raise UnknownName(
            "accuracy metric", metric, METRICS, where="--accuracy-metric", hint=f"{', '.join(METRICS)} or task:NAME"
        )
    return Goal(objective=objective, ttft_ms=ttft_ms, itl_ms=itl_ms, accuracy_budget_pct=budget, accuracy_metric=metric)
