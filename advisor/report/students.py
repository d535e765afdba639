"""The student that would keep the limits, as rows and sentences: the text, Markdown and HTML pages all read this."""

from __future__ import annotations

from collections.abc import Sequence

from advisor.report import units
from advisor.types import Estimate, Interval, Report, Student

PROPOSED = "A smaller model that would keep the limits"
MADE = "A smaller model in place of its teacher"
COLUMNS = ("parameters", "TTFT, ms", "ITL, ms", "tokens/s", "lost, %", "GPU-hours")
KINDS = {"sibling": "smaller sibling", "depth": "layers dropped", "width": "width cut"}


def title(report: Report) -> str:
    """Of the section."""
    found = report.plan.distillation
    return PROPOSED if found is None or found.teacher is None else MADE


def describe(student: Student, report: Report) -> str:
    """What the student is, in a few words."""
    if student.how == "sibling":
        return student.name
    if student.how == "depth":
        return f"{student.layers} layers" if _is_made(report) else f"{student.layers} of {report.profile.model.layers} layers"
    return f"hidden {student.hidden:,}, MLP {student.intermediate:,}"


def cells(student: Student, report: Report) -> tuple[str, ...]:
    """The figures of a student, one for each column; what it lost is measured where it was made."""
    expected, loss, cost, found = student.expected, student.loss, student.cost, _measured(report, "_loss_pct")
    published = units.span(loss.low_pct, loss.high_pct) if loss else "not known"
    hours = units.span(*cost.gpu_hours) if cost else units.UNKNOWN
    return (
        f"{units.params(student.params)} ({100 * student.share:.0f} %)",
        units.figure(expected.ttft_ms),
        units.figure(expected.itl_ms),
        units.figure(expected.output_tokens_per_s),
        published if found is None else f"{units.figure(found.value)} ({units.span(found.low, found.high)})",
        hours if student.rounds == 1 else f"{student.rounds} x {hours}",
    )


def sentences(report: Report) -> tuple[str, ...]:
    """What stands below the table: what to know before beginning, the gain in two steps, and what the figures rest on."""
    found = report.plan.distillation
    if found is None:
        return ()
    said = [_compounded(found.teacher, found.students[0])] if found.teacher is not None else []
    said += [
        f"{describe(one, report)}: ITL {units.figure(one.plain.itl_ms)} ms at 16 bits, {units.figure(one.expected.itl_ms)} ms "
        "as the plan quantizes it"
        for one in found.students
        if one.how != "sibling" and one.plain.itl_ms is not None and found.teacher is None
    ]
    said += _lost(report, found.students)
    costs = [student.cost for student in found.students if student.cost]
    if costs:
        tokens = units.span(costs[0].tokens[0] / 1e9, costs[0].tokens[1] / 1e9, " to ")
        said.append(f"GPU-hours: distilling on {tokens}e9 tokens, on these GPUs; {costs[0].source}")
    return (*found.notes, *said)


def _lost(report: Report, students: Sequence[Student]) -> list[str]:
    """What the column "lost" rests on: this student's own measurement, else what published ones lost."""
    made, tokens = _measured(report, "_loss_pct"), _measured(report, "tokens")
    if made is not None:
        after = f" after distilling on {units.given(tokens.value)} tokens" if tokens else ""
        return [
            f"lost, {describe(students[0], report)}: measured at 16 bits against its teacher{after}, percent of the "
            f"{made.metric.removesuffix('_loss_pct')}, 95 % between {units.figure(made.low)} and {units.figure(made.high)}"
        ]
    losses = [(one, one.loss) for one in students if one.loss]
    said = [f"lost, {describe(one, report)}: percent of the teacher's {loss.metric}" for one, loss in losses]
    sources = {loss.source for _, loss in losses}
    said += [f"source of what is lost: {one}" for one in sorted(sources) if not any(one in each for each in sources - {one})]
    if any(student.loss is None for student in students):
        said.append("lost, not known: no published student is near it; measure it against your own budget")
    return said


def _measured(report: Report, metric: str) -> Interval | None:
    """A figure of the student's distillation, by the end of its name; None: none was made."""
    figures = (one for change in report.changes if change.action == "distill" for one in change.training)
    return next((one for one in figures if one.metric.endswith(metric)), None) if _is_made(report) else None


def _is_made(report: Report) -> bool:
    return report.plan.distillation is not None and report.plan.distillation.teacher is not None


def _compounded(teacher: Estimate, student: Student) -> str:
    """What cutting gives, and quantizing on top of it."""
    steps = (("teacher, 16 bits", teacher), ("student, 16 bits", student.plain), ("student, as planned", student.expected))
    figures = ", ".join(
        f"{name} {units.figure(one.itl_ms)} ms ITL and {units.figure(one.output_tokens_per_s)} tokens/s" for name, one in steps
    )
    gain = ""
    if teacher.itl_ms and student.plain.itl_ms and student.expected.itl_ms:
        cut, whole = teacher.itl_ms / student.plain.itl_ms, teacher.itl_ms / student.expected.itl_ms
        gain = f": ITL {units.figure(cut)} times better by cutting, {units.figure(whole)} times with the formats"
    return f"gain in two steps, estimated: {figures}{gain}"
