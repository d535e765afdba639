"""The report for a terminal or a pipe: aligned by code, nothing wider than the width asked for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from advisor.report import commands, evidence, omissions, second_opinions, sections, students, units
from advisor.report.changes import change_lines
from advisor.report.layout import ASCII, INDENT, UNICODE, Page
from advisor.report.sanitation import to_ascii
from advisor.report.sections import METRICS, Reason
from advisor.types import Estimate, Memory, Report

NARROWEST, WIDEST = 77, 120
_BAR_COLORS = ("34", "36", "35", "33", "2")


def render_text(report: Report, *, width: int = 80, color: bool = False, ascii: bool = False) -> str:
    """The report as plain text of at most `width` columns (77 to 120). `report` is sanitised already."""
    page = Page(min(max(width, NARROWEST), WIDEST), color, ASCII if ascii else UNICODE)
    parts = (
        _verdict(page, report),
        _input(page, report),
        _memory(page, report),
        _table(page, report),
        _second_opinions(page, report),
        _students(page, report),
        _changes(page, report),
        _reasons(page, report),
        _left_out(page, report),
        _fallbacks(page, report),
        _unknowns(page, report),
        _flips(page, report),
        _overrides(page, report),
        _notes(page, report),
        _commands(page, report),
    )
    text = "\n".join(line.rstrip() for part in parts for line in part) + "\n"
    return to_ascii_lines(text) if ascii else text


def to_ascii_lines(text: str) -> str:
    """ASCII only. The layout was made from ASCII text, so nothing changes its width here."""
    return "\n".join(to_ascii(line) for line in text.split("\n"))


def _verdict(page: Page, report: Report) -> list[str]:
    lines = [page.style("bold", line) for line in page.wrap(report.plan.verdict, first="")]
    if not report.plan.feasible:
        lines += page.heading("No deployment keeps every limit. Below is the nearest; what would have to give:")
        for item in report.plan.shortfall or ("not worked out",):
            lines += page.wrap(item, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _input(page: Page, report: Report) -> list[str]:
    lines = page.heading("For")
    for name, text in sections.input_lines(report):
        lines += page.wrap(text, first=f"{INDENT}{name:<9}", rest=" " * 11)
    assumed = evidence.assumptions(report)
    if assumed:
        lines += page.heading("Assumed, neither measured nor given")
        for facts, source in assumed:
            lines += page.wrap(f"{facts} ({source.split(', ')[0]})", first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _memory(page: Page, report: Report) -> list[str]:
    plan = report.plan
    lines = page.heading("Memory of each GPU, GiB")
    width = page.width - 12
    scale = max(plan.baseline.memory_gib.capacity, _needed(plan.baseline.memory_gib), _needed(plan.expected.memory_gib))
    entries = (("before", plan.baseline.memory_gib), ("after", plan.expected.memory_gib))
    for name, memory in entries:
        lines.append(f"{INDENT}{name:<7} {_bar(page, memory, scale, width)}")
    titles = list(sections.memory_parts(plan.baseline.memory_gib))
    columns = [max(len(title) + 2, 8) for title in titles]
    key = "".join(
        (page.style(color, glyph) + f" {title}").rjust(size + (len(page.style(color, glyph)) - 1))
        for glyph, title, color, size in zip(page.glyphs.bar, titles, _BAR_COLORS, [c + 2 for c in columns], strict=True)
    )
    lines.append(f"{INDENT}{'':<7}{key}{'of':>9}")
    for name, memory in entries:
        parts = sections.memory_parts(memory)
        values = "".join(
            ("over" if part == "free" and value < 0 else units.figure(value)).rjust(size + 2)
            for (part, value), size in zip(parts.items(), columns, strict=True)
        )
        lines.append(f"{INDENT}{name:<7}{values}{units.figure(memory.capacity):>9}")
    for name, memory in entries:
        over = _needed(memory) - memory.capacity
        if over > 0:
            lines += page.wrap(f"{name}: does not fit, {units.figure(over)} GiB too much for each GPU")
    return lines


def _needed(memory: Memory) -> float:
    return memory.weights + memory.kv_cache + memory.activations + memory.runtime


def _bar(page: Page, memory: Memory, scale: float, width: int) -> str:
    parts = list(sections.memory_parts(memory).values())
    per_column = scale / width if scale > 0 else 1.0
    edges = [0]
    for position in range(4):
        edges.append(min(width, round(sum(parts[: position + 1]) / per_column)))
    edges.append(min(width, round(max(memory.capacity, _needed(memory)) / per_column)))
    cells = [glyph for glyph, start, end in zip(page.glyphs.bar, edges, edges[1:], strict=False) for _ in range(end - start)]
    colors = [color for color, start, end in zip(_BAR_COLORS, edges, edges[1:], strict=False) for _ in range(end - start)]
    if memory.capacity < scale - per_column / 2:
        mark = min(width - 1, round(memory.capacity / per_column))
        cells += [" "] * (mark + 1 - len(cells))
        colors += ["2"] * (mark + 1 - len(colors))
        cells[mark], colors[mark] = page.glyphs.limit, "1"
    if not page.color:
        return "".join(cells)
    return "".join(page.style(color, cell) for color, cell in zip(colors, cells, strict=True))


def _table(page: Page, report: Report) -> list[str]:
    body = [
        (row.label, ["=" if sections.repeats(row) else sections.cell(row.estimate, m) for m in METRICS])
        for row in sections.rows(report)
    ]
    last = report.plan.expected
    intervals = [sections.bounds(last, m) for m in METRICS]
    tail: list[tuple[str, list[str]]] = []
    if any(intervals):
        tail.append(("80 % sure: from", [units.figure(i[0]) if i else "" for i in intervals]))
        tail.append(("             to", [units.figure(i[1]) if i else "" for i in intervals]))
    limits = [sections.limit(report, m) for m in METRICS]
    tail.append(("limit", limits))
    tail.append(("basis", [sections.basis(last, m)[:1] for m in METRICS]))
    heads = [[m.title for m in METRICS], [m.unit for m in METRICS]]
    sizes = [max(len(line[i]) for line in (*heads, *(c for _, c in (*body, *tail)))) + 2 for i in range(len(METRICS))]
    label = page.width - len(INDENT) - sum(sizes)
    lines = page.heading("Plan")
    for titles in heads:
        lines.append(page.style("dim", INDENT + " " * label + _cells(titles, sizes)))
    for text, cells in body:
        # a long label goes on in lines of its own, so that no step is named by its beginning only
        first, *more = textwrap.wrap(text, label, subsequent_indent="  ", break_on_hyphens=False) or [""]
        lines.append(f"{INDENT}{first:<{label}}{_cells(cells, sizes)}")
        lines += [INDENT + line for line in more]
    lines.append(INDENT + page.style("dim", "-" * (page.width - len(INDENT))))
    for text, cells in tail:
        lines.append(f"{INDENT}{page.cut(text, label):<{label}}{_cells(cells, sizes)}")
    if any(cells[0] == "=" for _, cells in body):
        lines += page.wrap("= as the line above: nothing that the estimate sees")
    lines += _basis_lines(page, report)
    lines += _why_missing(page, report)
    return lines


def _cells(cells: Sequence[str], sizes: Sequence[int]) -> str:
    return "".join(cell.rjust(size) for cell, size in zip(cells, sizes, strict=True))


def _basis_lines(page: Page, report: Report) -> list[str]:
    """What the basis row's letters mean, and where an earlier row's number rests on something else."""
    used = dict.fromkeys(sections.basis(report.plan.expected, m) for m in METRICS)
    lines = page.wrap("basis: " + ", ".join(f"{name[0]} {sections.BASES[name]}" for name in used if name)) if any(used) else []
    for row in sections.rows(report):
        other = [
            f"{m.title} {sections.basis(row.estimate, m)}"
            for m in METRICS
            if sections.basis(row.estimate, m) not in ("", sections.basis(report.plan.expected, m))
        ]
        if other:
            lines += page.wrap(f'basis of "{row.label}": {", ".join(other)}')
    if report.plan.expected.loss:
        value = report.plan.expected.loss
        lines += page.wrap(f"accuracy: expected loss in percent on {value.metric}; {value.source}")
    return lines


def _why_missing(page: Page, report: Report) -> list[str]:
    lines: list[str] = []
    for row in sections.rows(report):
        if any(sections.number(row.estimate, m) is None for m in METRICS[:3]):
            why = "; ".join(row.estimate.notes) or ("it does not fit" if not row.estimate.fits else "not known")
            lines += page.wrap(f"{units.UNKNOWN} {row.label}: {why}")
    return lines


def _second_opinions(page: Page, report: Report) -> list[str]:
    if not report.second_opinions:
        return []
    lines = page.heading(second_opinions.TITLE)
    sizes = [len(title) + 3 for title in second_opinions.COLUMNS]
    sizes[:2] = [12, 12]
    label = page.width - len(INDENT) - sum(sizes)
    if any(one.figures for one in report.second_opinions):
        lines.append(page.style("dim", INDENT + " " * label + _cells(second_opinions.COLUMNS, sizes)))
    for one in report.second_opinions:
        for metric, cells in second_opinions.rows(one):
            lines.append(f"{INDENT}{f'{one.label}: {metric}':<{label}}{_cells(cells, sizes)}")
    for text in second_opinions.sentences(report):
        lines += page.wrap(text, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _students(page: Page, report: Report) -> list[str]:
    found = report.plan.distillation
    if found is None:
        return []
    lines = page.heading(students.title(report)) + page.wrap(found.verdict)
    body = [(students.describe(one, report), students.cells(one, report)) for one in found.students]
    if body:
        heads = [[*title.split(", "), ""] for title in students.COLUMNS]
        titles = [[head[0] for head in heads], [head[1] for head in heads]]
        sizes = [max(len(row[i]) for row in (*titles, *(cells for _, cells in body))) + 2 for i in range(len(heads))]
        label = page.width - len(INDENT) - sum(sizes)
        lines += [page.style("dim", (INDENT + " " * label + _cells(row, sizes)).rstrip()) for row in titles]
        for text, cells in body:
            lines += page.wrap(text) if len(text) > label else []
            lines.append(f"{INDENT}{'' if len(text) > label else text:<{label}}{_cells(cells, sizes)}")
    for text in students.sentences(report):
        lines += page.wrap(text, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _changes(page: Page, report: Report) -> list[str]:
    if not report.changes:
        return []
    lines = page.heading("Done and measured")
    colors = {"passed": "green", "failed": "red"}
    for number, change in enumerate(report.changes, 1):
        gate = f"gate {change.gate}"
        title = page.cut(f"{number} {change.action}: {change.rule}", page.width - len(gate) - 4)
        space = " " * (page.width - len(INDENT) - len(title) - len(gate))
        lines.append(INDENT + title + space + page.style(colors.get(change.gate, "yellow"), gate))
        for line in change_lines(change):
            lines += page.wrap(line, first="    ")
    return lines


def _reasons(page: Page, report: Report) -> list[str]:
    lines = page.heading("Why each step")
    reasons = sections.reasons(report)
    if not reasons:
        return lines + page.wrap("No step: the baseline is already the best deployment found.")
    for reason in reasons:
        lines += _reason(page, reason, report)
    return lines


def _reason(page: Page, reason: Reason, report: Report) -> list[str]:
    step, finding = reason.step, reason.finding
    kept = sections.is_kept(report, step)
    lines = [page.style("bold", line) for line in page.wrap(f"{reason.number} {'keep ' if kept else ''}{reason.title}")]
    items = []
    if finding:
        items = [("problem", finding.problem), ("why", "" if kept else finding.why)]
        items.append(("evidence", "; ".join(evidence.compared(e) for e in finding.evidence)))
    items.append(("gives", "the baseline is so already" if kept else _gains(reason, report.plan.baseline)))
    items.append(("undo", "" if kept else step.undo))
    row = f" (row {finding.seed_row})" if finding and finding.seed_row else ""
    items.append(("rule", step.rule + row))
    for name, text in items:
        if text:
            lines += page.wrap(text, first=f"    {name:<10}")
    return lines


def _gains(reason: Reason, baseline: Estimate) -> str:
    step = reason.step
    here = ", ".join(sections.gains(step.before, step.after)) or "nothing that the estimate sees"
    alone = units.change(baseline.output_tokens_per_s, step.alone.output_tokens_per_s)
    return here + (f"; without the steps before it: output tokens/s {alone}" if alone and reason.number > 1 else "")


def _left_out(page: Page, report: Report) -> list[str]:
    items = omissions.left_out(report)
    lines = page.heading("Left out, and why") if items else []
    first = f"{INDENT}{page.glyphs.bullet} "
    told = omissions.told(items)
    for number, item in enumerate(told):
        same = next((one.rule for one in told[:number] if item.estimate and one.estimate == item.estimate), None)
        reason = f"the same figures as {same}; {item.short}" if same and item.short else item.reason
        lines += page.wrap(f"{item.rule}: {reason}", first=first)
    for title, group in omissions.briefly(items):
        lines += page.wrap(f"{title}: {', '.join(map(omissions.in_short, group))}", first=first)
    return lines


def _fallbacks(page: Page, report: Report) -> list[str]:
    lines = page.heading("If a measurement disappoints, in this order") if report.plan.fallbacks else []
    remedies = {f.rule: f.remedy for f in report.findings}
    for number, item in enumerate(report.plan.fallbacks, 1):
        remedy = remedies.get(item.rule, "").split(". ")[0].rstrip(".")
        text = f"if {item.if_}: {remedy or item.rule}" + (f" ({item.rule})" if remedy else "")
        text += f"; {sections.spending(item)}" if item.cost else ""
        lines += page.wrap(text, first=f"{INDENT}{number} ")
    return lines


def _unknowns(page: Page, report: Report) -> list[str]:
    items = evidence.unknowns(report)
    lines = page.heading("Not known, and how to find out") if items else []
    for item in items:
        text = f"{', '.join(item.facts)}: {item.find_out or 'no way known'}"
        lines += page.wrap(text, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _flips(page: Page, report: Report) -> list[str]:
    flips = report.plan.flips
    if not flips:
        return []
    lines = page.heading("What would change the plan")
    facts = min(max(len(flip.fact) for flip in flips), 30)
    nows = max(len(sections.flip_now(flip)) for flip in flips)
    ats = max(len(sections.flip_when(flip.fact, flip.now, flip.at)) for flip in flips)
    for flip in flips:
        first = f"{INDENT}{page.cut(flip.fact, facts):<{facts}}  now {sections.flip_now(flip):>{nows}}, at "
        first += f"{sections.flip_when(flip.fact, flip.now, flip.at):<{ats}}  "
        lines += (
            page.wrap(flip.then, first=first) if len(first) < page.width - 20 else [first, *page.wrap(flip.then, first="    ")]
        )
    return lines


def _overrides(page: Page, report: Report) -> list[str]:
    lines = page.heading("Rules that were changed here") if report.overrides else []
    for item in report.overrides:
        until = f", until {item.until}" if item.until else ""
        text = f"{item.rule} {item.change}{until}: {item.reason} ({item.source})"
        lines += page.wrap(text, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _notes(page: Page, report: Report) -> list[str]:
    notes = sections.notes(report)
    lines = page.heading("Notes") if notes else []
    for note in notes:
        lines += page.wrap(note, first=f"{INDENT}{page.glyphs.bullet} ")
    return lines


def _commands(page: Page, report: Report) -> list[str]:
    lines = page.heading("Next") if commands.upcoming(report) else []
    for what, command in commands.upcoming(report):
        lines += page.wrap(f"{what}:")
        lines += commands.split_lines(command, page.width - 4, "    ")
    lines += page.heading("To get this again")
    lines += commands.split_lines(commands.repeat(report), page.width - 2, INDENT)
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return lines + [page.style("dim", line) for line in page.wrap(versions)]
