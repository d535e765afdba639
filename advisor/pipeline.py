"""The whole program in a few lines each: profile, judge, plan, show. Only this file knows the order of the stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from advisor import __version__
from advisor.errors import InputError, NotPossible
from advisor.gathering import known_model
from advisor.gathering import profile as profile
from advisor.types import Finding, Plan, Policy, Profile, Report, SecondOpinion

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from advisor.executor.request import Options, Outcome
    from advisor.reasoner.cases import RuleCheck
    from advisor.reasoner.rulebook import Rulebook
    from advisor.reasoner.vocabulary import Fact


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
    from advisor.library import fingerprint
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
            "rules": rulebook.fingerprint,
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
    return policing.govern(profile, allowed), Rulebook(kept, overrides, rulebook.fingerprint), allowed


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
    from advisor.undertaking import Undertaking

    _, rulebook, policy = govern(report.profile, overlay=overlay, policy=report.policy)
    check_supported(report.profile, report.plan)

    def again(known: Profile) -> Plan:
        return advise(known, overlay=overlay, policy=policy).plan

    task = Undertaking(
        report, rulebook, policy, again, unasked=unasked, log_format=log_format, stream=stream, serving=serving,
        publish=publish, **options,
    )  # fmt: skip
    return task.carry_out()


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
    from advisor.executor.emitting.serving import write_serving
    from advisor.executor.emitting.site import seen_from
    from advisor.library import write_whole

    if not report.plan.feasible:
        raise NoPlanFits("there is nothing to serve: no plan satisfies the limits", hint="; ".join(report.plan.shortfall))
    files = write_serving(report.plan, seen_from(folder, report.profile))
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
