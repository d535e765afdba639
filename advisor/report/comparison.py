"""What changed between two reports, and why: facts, verdicts, plan, figures. `advise diff` shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Literal

from advisor.report import evidence, units
from advisor.report.deployments import describe_field
from advisor.report.sanitation import sanitise
from advisor.types import Estimate, Evidence, Finding, Plan, Report, Scalar, Value, Verdict

_NOT_FACTS = ("sources", "measured", "lengths", "notes", "processes", "drafts", "folder")
_FIGURES = (
    "ttft_ms", "itl_ms", "output_tokens_per_s", "output_tokens_per_s_per_gpu", "max_concurrency", "fits", "concurrency"
)  # fmt: skip


class FactChange(Value):
    """A fact of the profile that differs, or whose source differs."""

    fact: str
    before: Scalar
    after: Scalar
    source_before: str = ""
    source_after: str = ""


class VerdictChange(Value):
    """A rule that judges otherwise."""

    rule: str
    before: Verdict | None
    """None: the rule was not there"""
    after: Verdict | None
    because: tuple[str, ...] = ()
    """the conditions that turned, with both sides' values before and after"""
    facts: tuple[str, ...] = ()
    """the facts that those conditions name"""
    causes: tuple[str, ...] = ()
    """what changed in the profile behind it: the facts themselves, or, for computed facts, all that changed"""


class FieldChange(Value):
    """A field of the plan's deployment that differs."""

    field: str
    before: str
    after: str
    because: tuple[str, ...] = ()
    """rules that set the field in one plan and not in the other"""


class FigureChange(Value):
    """An expected or measured figure that differs."""

    figure: str
    of: Literal["baseline", "plan", "measured"]
    before: Scalar
    after: Scalar


class Comparison(Value):
    """Everything that differs between report A and report B."""

    facts: tuple[FactChange, ...] = ()
    verdicts: tuple[VerdictChange, ...] = ()
    plan: tuple[FieldChange, ...] = ()
    figures: tuple[FigureChange, ...] = ()
    gates: tuple[FigureChange, ...] = ()
    overrides: tuple[str, ...] = ()
    versions: tuple[FactChange, ...] = ()
    verdict_before: str
    verdict_after: str

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.facts or self.verdicts or self.plan or self.figures or self.gates or self.overrides or self.versions)


def compare(before: Report, after: Report) -> Comparison:
    """What changed from `before` to `after`, each change with what made it where that can be told."""
    a, b = sanitise(before), sanitise(after)
    facts = tuple(_facts(a, b))
    return Comparison(
        facts=facts,
        verdicts=tuple(_verdicts(a, b, facts)),
        plan=tuple(_plan(a.plan, b.plan)),
        figures=tuple(_figures(a, b)),
        gates=tuple(_gates(a, b)),
        overrides=tuple(_overrides(a, b)),
        versions=tuple(FactChange(fact=n, before=x, after=y) for n, x, y in _differing(a.versions, b.versions)),
        verdict_before=a.plan.verdict,
        verdict_after=b.plan.verdict,
    )


# ---------------------------------------------------------------- facts


def _facts(a: Report, b: Report) -> Iterator[FactChange]:
    old, new = (dict(_flat("", report.profile.model_dump(exclude=set(_NOT_FACTS)))) for report in (a, b))
    old |= {f"measured.{name}": value for name, value in a.profile.measured.items()}
    new |= {f"measured.{name}": value for name, value in b.profile.measured.items()}
    for name, before, after in _differing(old, new):
        sources = (_source(a, name), _source(b, name))
        yield FactChange(fact=name, before=before, after=after, source_before=sources[0], source_after=sources[1])


def _flat(prefix: str, value: object) -> Iterator[tuple[str, Scalar]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _NOT_FACTS:
                yield from _flat(f"{prefix}.{name}" if prefix else str(name), item)
    elif value is None or isinstance(value, bool | int | float | str):
        yield prefix, value


def _source(report: Report, name: str) -> str:
    """A fact's source; "traffic.isl.mean" is sourced as "traffic.isl_mean" or as "traffic.isl"."""
    parts = name.split(".")
    candidates = [name, ".".join([*parts[:-2], "_".join(parts[-2:])]) if len(parts) > 2 else name, ".".join(parts[:2])]
    return next((report.profile.sources[c] for c in candidates if c in report.profile.sources), "")


def _differing(old: Mapping[str, Scalar], new: Mapping[str, Scalar]) -> Iterator[tuple[str, Scalar, Scalar]]:
    for name in dict.fromkeys((*old, *new)):
        if old.get(name) != new.get(name) or (name in old) != (name in new):
            yield name, old.get(name), new.get(name)


# ---------------------------------------------------------------- verdicts


def _verdicts(a: Report, b: Report, changed: tuple[FactChange, ...]) -> Iterator[VerdictChange]:
    old, new = ({f.rule: f for f in report.findings} for report in (a, b))
    for rule in dict.fromkeys((*old, *new)):
        before, after = old.get(rule), new.get(rule)
        if before is None or after is None or before.verdict != after.verdict:
            turned = tuple(_turned(before, after)) if before and after else ()
            names = tuple(dict.fromkeys(name for _, names in turned for name in names))
            yield VerdictChange(
                rule=rule,
                before=before.verdict if before else None,
                after=after.verdict if after else None,
                because=tuple(text for text, _ in turned),
                facts=names,
                causes=_causes(names, changed),
            )


def _causes(names: tuple[str, ...], changed: tuple[FactChange, ...]) -> tuple[str, ...]:
    """The changed facts among `names`; where those are computed, every change that they can follow from."""
    if not names:
        return ()
    moved = {change.fact for change in changed}
    direct = tuple(name for name in names if name in moved or _dotted(name) in moved)
    return direct or tuple(dict.fromkeys(_thing(fact, moved) for fact in [change.fact for change in changed]))


def _thing(fact: str, moved: set[str]) -> str:
    """What a changed fact belongs to: "model" for another model, "traffic.isl" for its quantiles."""
    group = fact.split(".")[0]
    return group if f"{group}.name" in moved else ".".join(fact.split(".")[:2])


def _turned(before: Finding, after: Finding) -> Iterator[tuple[str, list[str]]]:
    """The conditions that held before and do not now, or the other way round, came or went."""
    old, new = ({item.condition: item for item in finding.evidence} for finding in (before, after))
    for condition in dict.fromkeys((*old, *new)):
        one, other = old.get(condition), new.get(condition)
        if one is None or other is None:
            item, when = (one, "no longer asked") if one else (other, "now asked")
            if item is not None:
                yield f"{condition}: {when}", _names(item)
        elif one.holds != other.holds:
            yield f"{evidence.compared(one)} before, {evidence.compared(other)} now", _names(other)


def _names(item: Evidence) -> list[str]:
    name, _, right = evidence.split_condition(item.condition)
    return [name] + ([right] if evidence.is_fact(right) else [])


# ---------------------------------------------------------------- plan and figures


def _plan(a: Plan, b: Plan) -> Iterator[FieldChange]:
    if a.feasible != b.feasible:
        words = {True: "keeps every limit", False: "does not keep every limit"}
        yield FieldChange(field="feasible", before=words[a.feasible], after=words[b.feasible])
    rules_a, rules_b = ({s.rule: s for s in plan.steps} for plan in (a, b))
    only_one = {**rules_a, **rules_b}.keys() - (rules_a.keys() & rules_b.keys())
    for name in type(a.deployment).model_fields:
        old, new = getattr(a.deployment, name), getattr(b.deployment, name)
        if old != new:
            setting = [r for r in {**rules_a, **rules_b} if r in only_one and name in (rules_b.get(r) or rules_a[r]).changes]
            before, after = (describe_field(name, value) or "engine's default" for value in (old, new))
            yield FieldChange(field=name, before=before, after=after, because=tuple(setting))


def _figures(a: Report, b: Report) -> Iterator[FigureChange]:
    for of, old, new in (
        ("baseline", a.plan.baseline, b.plan.baseline),
        ("plan", a.plan.expected, b.plan.expected),
    ):
        for name, before, after in _differing(_numbers(old), _numbers(new)):
            yield FigureChange(figure=name, of="plan" if of == "plan" else "baseline", before=before, after=after)
    for name, before, after in _differing(_measured(a), _measured(b)):
        yield FigureChange(figure=name, of="measured", before=before, after=after)


def _numbers(estimate: Estimate) -> dict[str, Scalar]:
    found: dict[str, Scalar] = {name: getattr(estimate, name) for name in _FIGURES}
    found |= {f"memory_gib.{name}": value for name, value in estimate.memory_gib.model_dump().items()}
    loss = estimate.loss
    return found | {"loss.low_pct": loss.low_pct if loss else None, "loss.high_pct": loss.high_pct if loss else None}


def _measured(report: Report) -> dict[str, Scalar]:
    return {f"{change.rule}: {name}": value for change in report.changes for name, value in change.after.items()}


def _gates(a: Report, b: Report) -> Iterator[FigureChange]:
    old, new = ({change.rule: change.gate for change in report.changes} for report in (a, b))
    for rule, before, after in _differing(old, new):
        yield FigureChange(figure=rule, of="measured", before=before, after=after)


def _overrides(a: Report, b: Report) -> Iterator[str]:
    for item in b.overrides:
        if item not in a.overrides:
            yield f"now: {item.rule} {item.change}, {item.reason} ({item.source})"
    for item in a.overrides:
        if item not in b.overrides:
            yield f"no longer: {item.rule} {item.change}, {item.reason} ({item.source})"


# ---------------------------------------------------------------- showing


def render_comparison(comparison: Comparison, format: Literal["text", "json"] = "text", *, width: int = 80) -> str:
    """A Comparison as text of at most `width` columns, or as JSON in ASCII. Ends in a newline."""
    from advisor.report.rendering import to_json

    if format == "json":
        return to_json(comparison)
    from advisor.report.layout import UNICODE, Page

    page = Page(width, color=False, glyphs=UNICODE)
    if comparison.same:
        return "Nothing changed.\n"
    lines = page.wrap(_summary(comparison), first="")
    if comparison.plan:
        lines += page.wrap(comparison.verdict_before, first="  before: ")
        lines += page.wrap(comparison.verdict_after, first="  now:    ")
    for title, items in _items(comparison):
        if items:
            lines += page.heading(title)
            for item in items:
                lines += page.wrap(item, first="  ", rest="    ")
    return "\n".join(lines) + "\n"


def _summary(comparison: Comparison) -> str:
    if comparison.plan:
        return "Another plan."
    moved = any(change.of == "plan" for change in comparison.figures)
    return "The plan is the same; its figures moved." if moved else "The plan is the same, and so are its figures."


def _items(comparison: Comparison) -> Iterator[tuple[str, list[str]]]:
    yield (
        "Plan",
        [
            f"{c.field}: {c.before} -> {c.after}" + (f" (by {', '.join(c.because)})" if c.because else "")
            for c in comparison.plan
        ],
    )
    yield (
        "Verdicts, and what turned them",
        [
            f"{c.rule}: {c.before or 'not there'} -> {c.after or 'not there'}"
            + (f", because {'; '.join(c.because)}" if c.because else "")
            + (f" (follows from {', '.join(c.causes)})" if c.causes else "")
            for c in comparison.verdicts
        ],
    )
    yield (
        "Facts",
        [
            "; ".join(f"{c.fact}: {_fact_pair(c)}" for c in same) + sources
            for sources, same in groupby(comparison.facts, _sources)
        ],
    )
    for of in ("plan", "baseline", "measured"):
        yield (
            f"Figures of the {of}" if of != "measured" else "Measured",
            [f"{c.figure}: {_pair(c.before, c.after)}{_relative(c)}" for c in comparison.figures if c.of == of],
        )
    yield "Gates", [f"{c.figure}: {c.before or 'not applied'} -> {c.after or 'not applied'}" for c in comparison.gates]
    yield "Overrides", list(comparison.overrides)
    yield "Versions", [f"{c.fact}: {c.before or 'none'} -> {c.after or 'none'}" for c in comparison.versions]


def _dotted(name: str) -> str:
    """ "traffic.isl_mean" as the profile has it: "traffic.isl.mean"."""
    head, _, tail = name.rpartition("_")
    return f"{head}.{tail}" if head else name


def _pair(before: Scalar, after: Scalar) -> str:
    return " -> ".join(units.pair(before, after))


def _fact_pair(change: FactChange) -> str:
    """A goal that is None is one that nobody set; any other fact that is None is not known."""
    words = _pair(change.before, change.after)
    return words.replace("unknown", "not set") if change.fact.startswith("goal.") else words


def _relative(change: FigureChange) -> str:
    before, after = change.before, change.after
    if isinstance(before, bool | str) or isinstance(after, bool | str):
        return ""
    relative = units.change(before, after)
    return f" ({relative})" if relative and not relative.startswith("±") else ""


def _sources(change: FactChange) -> str:
    before, after = change.source_before, change.source_after
    if before == after:
        return f" ({after})" if after else ""
    return f" ({before or 'no source'} -> {after or 'no source'})"
