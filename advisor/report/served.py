"""What was measured on a server as one table, the ways of serving side by side: the text, Markdown and HTML pages read this."""

from __future__ import annotations

from dataclasses import dataclass

from advisor.report import units
from advisor.types import Change, Interval, Report, Scalar

TITLE = "Measured on a server"
FIGURES = {
    "ttft_ms": "TTFT, ms", "ttft_ms_p99": "TTFT p99, ms", "itl_ms": "ITL, ms", "itl_ms_p99": "ITL p99, ms",
    "request_latency_ms": "request latency, ms", "output_tokens_per_s": "output tokens/s", "idle_share": "idle share of slots",
    "in_flight_gain": "throughput over static",
}  # fmt: skip
COUNTED = {
    "batch_size": "batch, mean", "batch_size_max": "batch, largest", "kv_cache_use_max": "KV cache, largest share used",
    "preemptions": "preemptions", "acceptance": "drafts accepted", "acceptance_length": "tokens a step",
    "prefix_reuse_share": "prompt tokens reused",
}  # fmt: skip
"""the server's own figures, as it counts them; `acceptance_length` with the token that every step gives"""


@dataclass(frozen=True)
class Cell:
    """One figure of one way of serving."""

    value: str = ""
    notes: tuple[str, ...] = ()
    """interval, prediction, limit"""


@dataclass(frozen=True)
class Row:
    """One figure of every way."""

    title: str
    cells: tuple[Cell, ...]


def ways(report: Report) -> tuple[Change, ...]:
    """What was measured on a server; of a way that was measured again, the last."""
    return tuple({change.rule: change for change in report.changes if change.serving}.values())


def rows(report: Report) -> tuple[Row, ...]:
    """Every figure that at least one way has, then the server's own."""
    found, made = ways(report), []
    for metric, title in FIGURES.items():
        figures = [next((one for one in change.serving if one.metric == metric), None) for change in found]
        if any(figures):
            made.append(Row(title, tuple(_cell(figure) for figure in figures)))
    for name, title in COUNTED.items():
        counted = [change.after.get(name) for change in found]
        if any(value is not None for value in counted):
            made.append(Row(title, tuple(Cell(_counted(value)) for value in counted)))
    return tuple(made)


def _counted(value: Scalar) -> str:
    if isinstance(value, float) and value != int(value):
        return units.figure(value)
    return "" if value is None else units.given(value)


def _cell(figure: Interval | None) -> Cell:
    if figure is None:
        return Cell()
    notes = []
    if figure.low is not None and figure.high is not None:
        notes.append(f"95 %: {units.figure(figure.low)} to {units.figure(figure.high)}")
    if figure.predicted is not None:
        off = units.change(figure.predicted, figure.value)
        notes.append(f"predicted {units.figure(figure.predicted)}" + (f", {off}" if off else ""))
    if figure.limit is not None:
        notes.append(f"limit {units.figure(figure.limit)}: {figure.verdict or 'not judged'}")
    return Cell(units.figure(figure.value), tuple(notes))
