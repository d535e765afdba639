"""Measured against limits, and measured against predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from advisor.executor.servers.measuring import Measured
from advisor.types import Change, Estimate, Interval, Scalar

Gate = Literal["passed", "failed", "inconclusive"]
PREDICTED = ("ttft_ms", "itl_ms", "output_tokens_per_s", "request_latency_ms")
"""figures that an Estimate has under the same name"""
UNITS = {"ttft_ms": "ms", "itl_ms": "ms", "request_latency_ms": "ms", "output_tokens_per_s": "tokens/s"}
NAMES = {
    "ttft_ms": "TTFT", "itl_ms": "ITL", "request_latency_ms": "request latency", "output_tokens_per_s": "output tokens/s",
    "idle_share": "idle share", "in_flight_gain": "throughput over that of static batching",
}  # fmt: skip


def judge(figure: Interval, limit: float) -> Gate:
    """A latency against its upper limit: passed or failed where its whole 95 % interval lies on that side."""
    if figure.low is None or figure.high is None:
        return "inconclusive"
    if figure.high <= limit:
        return "passed"
    return "failed" if figure.low > limit else "inconclusive"


def verify(
    measured: Measured,
    *,
    limits: Mapping[str, float],
    expected: Estimate | None = None,
    replicas: int = 1,
    predicted: Mapping[str, float] | None = None,
) -> tuple[Interval, ...]:
    """The figures of one arm with limits, verdicts and what was predicted.

    expected: the estimate for this machine and load, None where it was made for another machine. replicas: of the deployment
    that it was made for; one was measured, so the throughput is divided. predicted: metric -> value, for what no Estimate has.
    """
    found = []
    for figure in measured.figures:
        changes: dict[str, object] = {}
        value = getattr(expected, figure.metric, None) if expected is not None and figure.metric in PREDICTED else None
        if value is not None and expected is not None:
            share = 1.0 / replicas if figure.metric == "output_tokens_per_s" else 1.0
            changes["predicted"] = value * share
            if figure.metric in expected.range:
                low, high = expected.range[figure.metric]
                changes["predicted_range"] = (low * share, high * share)
        elif predicted and figure.metric in predicted:
            changes["predicted"] = predicted[figure.metric]
        if figure.metric in limits:
            changes |= {"limit": limits[figure.metric], "verdict": judge(figure, limits[figure.metric])}
        found.append(figure.model_copy(update=changes))
    return tuple(found)


def gate_of(figures: Sequence[Interval], errors: int) -> Gate:
    """The worst verdict; a request without an answer fails. Without limits it is only judged that all were answered."""
    verdicts = [figure.verdict for figure in figures if figure.verdict is not None]
    if errors or "failed" in verdicts:
        return "failed"
    return "inconclusive" if "inconclusive" in verdicts else "passed"


def change_of(
    measured: Measured,
    figures: Sequence[Interval],
    *,
    before: Sequence[Interval] = (),
    gated: bool = True,
    notes: Sequence[str] = (),
    command: str = "",
    seconds: float | None = None,
) -> Change:
    """What one arm's measurement adds to a report, under the arm's name in place of a rule's.

    gated: the limits are for this arm; a baseline only stands beside it.
    """
    gate = gate_of(figures, measured.errors) if gated or measured.errors else "not run"
    return Change(
        rule=measured.arm.what,
        action="measure",
        command=command,
        seconds=seconds,
        before={figure.metric: _rounded(figure.value) for figure in before if figure.metric in PREDICTED},
        after=_facts(figures) | {name: _rounded(value) for name, value in measured.metrics.items()},
        gate=gate,
        detail=" ".join([*_sentences(measured, figures, gated), *(f"{note.rstrip('.')}." for note in notes)]),
        serving=tuple(figures),
    )


def _facts(figures: Sequence[Interval]) -> dict[str, Scalar]:
    return {figure.metric: _rounded(figure.value) for figure in figures if figure.metric in (*PREDICTED, "idle_share")}


def _sentences(measured: Measured, figures: Sequence[Interval], gated: bool) -> list[str]:
    arm, rounds = measured.arm, measured.rounds
    count = sum(len(each.answers) for each in rounds)
    admitted = {
        "in-flight": f"{arm.slots} at once",
        "static": f"in batches of {arm.slots}, each admitted when the one before had ended",
        "arrivals": "at their arrival times",
    }[arm.admission]
    said = [f"{count} requests, {admitted}, sent by {arm.client}, {measured.errors} without an answer; {measured.ended}."]
    if gated and not any(figure.verdict is not None for figure in figures):
        said.append("No limits are set: it is only judged that every request was answered.")
    for figure in figures:
        if figure.verdict is not None and figure.limit is not None:
            shown = f"{NAMES[figure.metric]} limit of {figure.limit:g} ms {figure.verdict}"
            said.append(f"{shown}: {with_interval(figure)}.")
    gain = next((figure for figure in figures if figure.metric == "in_flight_gain"), None)
    if gain is not None and gain.predicted is None:
        said.append(f"{NAMES[gain.metric]}: {with_interval(gain)}.")
    said += [
        f"{NAMES[figure.metric]}: predicted {figure.predicted:.3g}, measured {figure.value:.3g}"
        + (f" ({figure.value / figure.predicted - 1:+.0%})." if figure.predicted else ".")
        for figure in figures
        if figure.predicted is not None
    ]
    return said


def with_interval(figure: Interval) -> str:
    """ "12.3 ms (95 % 12.0 to 12.6)"."""
    unit = UNITS.get(figure.metric, "")
    shown = f"{figure.value:.4g} {unit}".rstrip()
    return shown if figure.low is None or figure.high is None else f"{shown} (95 % {figure.low:.4g} to {figure.high:.4g})"


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
