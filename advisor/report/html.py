"""The report as one self-contained HTML page: no network, no external font or script."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from advisor.report import charts, commands, evidence, omissions, second_opinions, sections, served, students, units
from advisor.report.changes import change_lines
from advisor.report.deployments import settings, short_deployment
from advisor.report.outcome import headline, of_steps
from advisor.report.templating import fill
from advisor.types import Report, Step

FOLDER = Path(__file__).parent
MEMORY_COLORS = {
    "weights": "weights", "KV cache": "kv", "activations": "activations", "runtime": "runtime", "free": "page"
}  # fmt: skip


def render_html(report: Report) -> str:
    """The page. `report` is sanitised already; everything from it is escaped by the template."""
    library, script = _asset("plot.min.js"), _asset("page.js")
    drawn = charts.chart_data(report)
    values = {
        "report": report,
        "plan": report.plan,
        "style": _asset("page.css"),
        "library": library,
        "script": script,
        "script_hashes": " ".join(f"'sha256-{_digest(code)}'" for code in (library, script)),
        "data": script_json(drawn),
        "drawn": drawn,
        "options": charts.options(report),
        "marks": charts.marks(report),
        "winners": charts.winners(report.grid, report) if report.grid else [],
        "inputs": sections.input_lines(report),
        "headline": headline(report),
        "of_steps": of_steps(report),
        "memory_colors": MEMORY_COLORS,
        "commands": commands,
        "sections": sections,
        "omissions": omissions,
        "students": students,
        "second_opinions": second_opinions,
        "evidence": evidence,
        "settings": settings,
        "served": served,
        "short_deployment": short_deployment,
        "units": units,
        "change_lines": change_lines,
        "spending": sections.spending,
        "expected": expected,
    }
    return fill("report.html.j2", values)


def expected(step: Step) -> list[tuple[str, str, str, str]]:
    """(metric, expected, 80 % interval, basis) of what holds after a step."""
    found = []
    for metric in sections.METRICS:
        value = sections.cell(step.after, metric)
        if value == units.UNKNOWN:
            continue
        low_high = sections.bounds(step.after, metric)
        interval = f"{units.figure(low_high[0])} to {units.figure(low_high[1])}" if low_high else ""
        found.append((f"{metric.title} {metric.unit}", value, interval, sections.basis(step.after, metric)))
    return found


def script_json(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    made = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return made.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _digest(code: str) -> str:
    return base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (FOLDER / "assets" / name).read_text(encoding="utf-8")
