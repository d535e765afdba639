"""The model is good and too slow: what smaller student would keep the limits, by the estimator, and what it would take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from advisor.errors import InputError, NotPossible
from advisor.estimator.correction import corrected
from advisor.estimator.deployment import estimate
from advisor.estimator.memory import parameter_count
from advisor.estimator.students import (
    STEP,
    expected_student_loss,
    is_uniform,
    narrower,
    rounds_of,
    shallower,
    share_of,
    short_run,
    untrained_loss,
)
from advisor.estimator.training import training_cost
from advisor.reasoner.baseline import load_of
from advisor.reasoner.choice import violations
from advisor.reasoner.policing import remedy_ban
from advisor.reasoner.rejection import show
from advisor.reasoner.rulebook import Rulebook
from advisor.reasoner.shortfall import name_broken
from advisor.types import Deployment, Distillation, Estimate, Finding, Goal, Model, Plan, Policy, Profile, Report, Rule, Student

Known = Callable[[str], Model | None]
"""hub id of a known model -> the model"""
How = Literal["sibling", "depth", "width"]


def propose_students(
    profile: Profile, plan: Plan, rulebook: Rulebook, findings: Sequence[Finding], known: Known, policy: Policy | None = None
) -> Distillation | None:
    """The largest student of each kind that keeps the limits of a plan which breaks them, by estimate or as measured.

    None: the limits are kept, what is broken is the accuracy, or no rule that distils may be used.
    """
    rule = next((rule for rule in rulebook.rules if rule.applies.action == "distill"), None)
    if rule is None or (policy is not None and remedy_ban(rule, policy, unasked=False)):
        return None
    goal = _as_measured(profile, plan)
    broken = violations(plan.expected, goal)
    fires = any(finding.rule == rule.id and finding.verdict == "fires" for finding in findings)
    if not broken or "accuracy" in violations(plan.expected, profile.goal) or (plan.feasible and not fires):
        return None
    return _propose(profile, plan, rule, _Bar(profile, plan.deployment, goal), known)


def student_profile(profile: Profile, layers: int | None, proposed: Distillation | None) -> Profile:
    """The same question about a student of so many of the model's layers; the folder stays its teacher's. layers None: as
    proposed. What was measured of the teacher is not known of the student.

    Raises NotPossible: its layers cannot be dropped, no student was proposed; InputError: it has not so many.
    """
    teacher = profile.model
    if not _can_be_cut(teacher):
        raise NotPossible(
            f"the layers of {teacher.name} are not dropped by this program",
            where="--student-layers",
            hint="dense 16-bit models of equal layers are; take a smaller sibling, or prune it with ModelOpt's Minitron",
        )
    if layers is None:
        found = next((one for one in proposed.students if one.here), None) if proposed else None
        if found is None:
            said = proposed.verdict if proposed else "the limits are kept without one, or none is set"
            raise NotPossible(f"no student is proposed: {said}", where="--student-layers auto", hint="give a number of layers")
        layers = found.layers
    if not 0 < layers < teacher.layers:
        raise InputError(
            f"{teacher.name} has {teacher.layers} layers: no student of {layers} can be cut from it",
            where="--student-layers",
            hint=f"1 to {teacher.layers - 1}",
        )
    name = f"{teacher.name.rsplit('/')[-1]}-{layers}-of-{teacher.layers}-layers"
    student = shallower(teacher, layers).model_copy(update={"name": name, "folder": teacher.folder})
    measured = {name: value for name, value in profile.measured.items() if name == "teacher_loss_pct"}
    sources = profile.sources | {"model.layers": "--student-layers"}
    return profile.model_copy(update={"model": student, "measured": measured, "sources": sources})


def weigh_student(profile: Profile, plan: Plan, teacher: Report, rule: Rule) -> Distillation:
    """The student that a plan serves beside its teacher: what each step gives, and what published ones cost and lost.

    profile and plan are the student's, the report the teacher's.
    """
    model, before = profile.model, teacher.profile.model
    share = share_of(model, before)
    made = Student(
        name=model.name, how="depth", layers=model.layers, hidden=model.hidden, intermediate=model.intermediate,
        params=parameter_count(model), share=share, rounds=rounds_of(share), plain=plan.baseline, expected=plan.expected,
        cost=training_cost("distillation", model, profile.gpu, teacher=before), loss=expected_student_loss("depth", share),
        here=True,
    )  # fmt: skip
    known = teacher.plan.distillation
    return Distillation(
        rule=rule.id,
        broken=known.broken if known else (),
        students=(made,),
        verdict=f"{model.layers} of the {before.layers} layers of {before.name}, distilled from it.",
        teacher=teacher.plan.baseline,
        notes=(_short(model.layers / before.layers), *_warnings(made, rule)),
    )


def _short(layers: float) -> str:
    run = short_run(layers)
    return (
        "a short distillation is no substitute for billions of tokens: SmolLM2-135M with "
        f"{100 * run['layers']:.0f} % of its layers had {run['cut']:.3g} times its teacher's perplexity, and "
        f"{run['distilled']:.3g} times after {run['tokens']:,} tokens ({run['source']})"
    )


def _warnings(student: Student, rule: Rule) -> Iterator[str]:
    at_once = _number(rule.applies.parameters.get("prune_at_most"), 1 / 3)
    if student.share < 1 - at_once:
        yield (
            f"{100 * (1 - student.share):.0f} % of the parameters go, more than is advised at once ({100 * at_once:.0f} %): "
            f"expect it to be useless without {_tokens(student)} tokens"
            + (f" in each of {student.rounds} rounds" if student.rounds > 1 else "")
        )


def _can_be_cut(teacher: Model) -> bool:
    return is_uniform(teacher) and teacher.moe is None and teacher.mla is None and teacher.quantized is None


def _as_measured(profile: Profile, plan: Plan) -> Goal:
    """The latency limits as the estimator must keep them: tighter by as much as was measured above its estimate."""
    tightened: dict[str, float | None] = {"accuracy_budget_pct": None}
    for name in ("ttft_ms", "itl_ms"):
        limit, expected, measured = getattr(profile.goal, name), getattr(plan.expected, name), profile.measured.get(name)
        if limit and expected and isinstance(measured, int | float) and measured > expected:
            tightened[name] = limit * expected / measured
    return profile.goal.model_copy(update=tightened)


class _Bar:
    """Estimates models in the plan's deployment and holds them against the limits."""

    def __init__(self, profile: Profile, deployment: Deployment, goal: Goal) -> None:
        self.profile, self.goal = profile, goal
        self.deployment = deployment.model_copy(update={"speculation": None, "keep_high_precision": ()})
        self.load = load_of(profile.traffic)

    def estimate(self, model: Model, deployment: Deployment | None = None) -> Estimate | None:
        """None: the model cannot be served so at all."""
        try:
            made = estimate(model, self.profile.gpu, deployment or self.deployment, self.load, self.profile.engine)
        except NotPossible:
            return None
        return corrected(made, self.profile.corrections)

    def passes(self, model: Model) -> bool:
        """Whether it keeps the limits."""
        made = self.estimate(model)
        return made is not None and not violations(made, self.goal)

    def largest(self, shapes: Sequence[int], cut: Callable[[int], Model]) -> Model | None:
        """The largest of ascending shapes that passes, taking it that whatever is smaller than one that passes does too."""
        low, high = 0, len(shapes)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.passes(cut(shapes[middle])) else (low, middle)
        return cut(shapes[low - 1]) if low else None


def _propose(profile: Profile, plan: Plan, rule: Rule, bar: _Bar, known: Known) -> Distillation:
    students = tuple(_students(profile.model, bar, known))
    broken = tuple(name_broken(plan.expected, profile)) or tuple(_measured(profile))
    return Distillation(
        rule=rule.id,
        broken=broken,
        students=students,
        verdict=_verdict(students, rule, profile),
        notes=tuple(_notes(students, plan, profile)),
    )


def _measured(profile: Profile) -> Iterator[str]:
    for name in ("ttft_ms", "itl_ms"):
        limit, found = getattr(profile.goal, name), profile.measured.get(name)
        if limit is not None and isinstance(found, int | float) and found > limit:
            yield f"{name.removesuffix('_ms').upper()} (measured {show(found)} ms, limit {show(limit)} ms)"


def _students(teacher: Model, bar: _Bar, known: Known) -> Iterator[Student]:
    siblings = (known(name) for name in teacher.siblings)
    sibling = next((one for one in siblings if one is not None and bar.passes(one)), None)
    if sibling is not None:
        yield _student(teacher, sibling, "sibling", bar)
    if not is_uniform(teacher):
        return
    shallow = bar.largest(range(1, teacher.layers), lambda layers: shallower(teacher, layers))
    if shallow is not None:
        yield _student(teacher, shallow, "depth", bar)
    if teacher.moe is None and teacher.mla is None:
        narrow = bar.largest(range(STEP, teacher.hidden, STEP), lambda hidden: narrower(teacher, hidden))
        if narrow is not None:
            yield _student(teacher, narrow, "width", bar)


def _student(teacher: Model, model: Model, how: How, bar: _Bar) -> Student:
    share = share_of(model, teacher)
    at_16_bits = bar.deployment.model_copy(update={"weights": "bf16", "kv_cache": "bf16"})
    expected, plain = bar.estimate(model), bar.estimate(model, at_16_bits)
    assert expected is not None and plain is not None
    return Student.model_validate(
        {
            "name": model.name, "how": how, "layers": model.layers, "hidden": model.hidden,
            "intermediate": model.intermediate, "params": parameter_count(model), "share": share,
            "rounds": 1 if how == "sibling" else rounds_of(share), "plain": plain, "expected": expected,
            "cost": training_cost("distillation", model, bar.profile.gpu, teacher=teacher),
            "loss": None if how == "sibling" else expected_student_loss(how, share),
            "here": how == "depth" and _can_be_cut(teacher),
        }
    )  # fmt: skip


def _verdict(students: tuple[Student, ...], rule: Rule, profile: Profile) -> str:
    if not students:
        floor = "no smaller sibling that is known and no part of it" if is_uniform(profile.model) else "no smaller sibling"
        return f"No student would do: {floor} keeps the limits on these GPUs."
    cut = [one for one in students if one.how != "sibling"]
    sibling = next((one for one in students if one.how == "sibling"), None)
    size = f" ({100 * sibling.share:.0f} % of the parameters)" if sibling else ""
    first = f"Try {sibling.name}{size} first: it exists, and an evaluation of it costs no training. " if sibling else ""
    if not cut:
        return f"{first}Cutting this model is not worked out here."
    most, at_once = 100 * max(one.share for one in cut), 100 * _number(rule.applies.parameters.get("prune_at_most"), 1 / 3)
    if most >= 100 - at_once:
        return f"{first}A student of {most:.0f} % of the parameters would do, and so much can be cut at once."
    if most >= 50:
        return f"{first}Only {most:.0f} % of the parameters may stay: more is cut than is advised at once ({at_once:.0f} %)."
    return (
        f"{first}Cutting this model is hopeless on a small budget: {most:.0f} % of its parameters may stay, which takes "
        f"{min(one.rounds for one in cut)} rounds of cutting and distilling on {_tokens(cut[0])} tokens each."
    )


def _notes(students: tuple[Student, ...], plan: Plan, profile: Profile) -> Iterator[str]:
    cut = [one for one in students if one.how != "sibling"]
    if cut:
        share, lost = untrained_loss()
        yield (
            f"cut and not distilled a student is useless: a published one that keeps {100 * share:.0f} % of the parameters "
            f"had lost {lost:.0f} % of its teacher's score"
        )
    deep = next((one for one in cut if one.how == "depth"), None)
    if deep is not None:
        yield _short(deep.layers / profile.model.layers)
    budget = profile.goal.accuracy_budget_pct
    lows = [one.loss.low_pct for one in cut if one.loss is not None]
    if budget is not None and lows and min(lows) > budget:
        yield f"not worth it within an accuracy budget of {show(budget)} %: every published student near these lost more"
    costs = [one.cost for one in students if one.cost is not None]
    more = (plan.enough_gpus or 0) - profile.gpu.count
    if costs and more > 0:
        low = min(cost.gpu_hours[0] for cost in costs) / more
        high = max(cost.gpu_hours[1] for cost in costs) / more
        yield (
            f"{plan.enough_gpus} x {profile.gpu.name} would keep the limits without training: distilling pays for itself "
            f"after {_time(low)} to {_time(high)} of serving without the {more} more"
        )
    if cut and any(not one.here for one in cut):
        yield "width is cut by ModelOpt's Minitron pruning, which needs Megatron-Core (examples/megatron_bridge); not run here"


def _tokens(student: Student) -> str:
    if student.cost is None:
        return "billions of"
    low, high = student.cost.tokens
    return f"{low / 1e9:g}e9 to {high / 1e9:g}e9"


def _time(hours: float) -> str:
    if hours < 48:
        return f"{hours:.0f} hours"
    return f"{hours / 24:.0f} days" if hours < 2 * 365 * 24 else f"{hours / 24 / 365:.1f} years"


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float) else default
