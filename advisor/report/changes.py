"""What was done and what it measured, in lines of words."""

from __future__ import annotations

from advisor.report import units
from advisor.types import Calibration, Change, DraftLength


def change_lines(change: Change) -> tuple[str, ...]:
    """What an executed change measured, its gate, its artifact and command."""
    moved = []
    for name, after in change.after.items():
        if name in change.before and change.before[name] == after:
            continue
        old, new = units.pair(change.before.get(name), after)
        moved.append(f"{name} {old} -> {new}" if name in change.before else f"{name} {new}")
    lines = ["; ".join(moved), *change.detail.splitlines()]
    lines += [calibration_line(change.calibration)] if change.calibration else []
    lines += [
        f"{item.what}: {item.metric} {units.figure(item.value, 4)}"
        + (f" (95 % {units.figure(item.low, 4)} to {units.figure(item.high, 4)})" if item.low is not None else "")
        + (f", predicted {units.figure(item.predicted, 4)}" if item.predicted is not None else "")
        + (
            f" ({units.span(*item.predicted_range)} before it began)"
            if item in change.training and item.predicted_range
            else ""
        )
        + (f", limit {units.figure(item.limit, 4)}" if item.limit is not None else "")
        + (f" {item.verdict}" if item.verdict is not None else "")
        + (f", n = {units.given(item.samples)}" if item.samples else "")
        for item in (
            *change.accuracy,
            *change.training,
            *(item for item in change.serving if not item.metric.endswith(("_p50", "_p90"))),
        )
    ]
    lines += [draft_line(item) for item in change.drafts]
    seconds = f"took {units.figure(change.seconds)} s" if change.seconds is not None else ""
    lines += [
        seconds,
        f"artifact: {change.artifact}" if change.artifact else "",
        f"command: {change.command}" if change.command else "",
    ]
    return tuple(line for line in lines if line)


def draft_line(item: DraftLength) -> str:
    """What one draft length gave here and is worth there."""
    measured = f"{units.figure(item.tokens_per_step)} tokens a step ({units.figure(item.low)} to {units.figure(item.high)})"
    text = f"drafts of {item.draft_len}: {measured}, the formula says {units.figure(item.formula)}"
    if item.gain is None:
        return text
    span = f" ({units.figure(item.gain_range[0])} to {units.figure(item.gain_range[1])})" if item.gain_range else ""
    until = f"up to {units.given(item.break_even_concurrency)} requests" if item.break_even_concurrency else "at no load"
    return f"{text}; decode x {units.figure(item.gain)}{span}, gains {until}"


def calibration_line(found: Calibration) -> str:
    """How representative the calibration set is, as measured."""
    dropped = f", {found.duplicates} doubles and {found.short} short ones dropped" if found.duplicates or found.short else ""
    distance = "not known" if found.distance is None else f"{found.distance:.2f} (0 the same tokens, 1 disjoint)"
    parts = [
        f"calibrated on {found.prompts:,} prompts of {found.source}, {found.tokens:,} tokens{dropped}",
        f"distance from {found.production} {distance}",
        f"{found.unseen_pct:.1f} % of their tokens never seen" if found.unseen_pct is not None else "",
        f"half of the prompts are longer than {found.length_p50:,} tokens and 5 % than {found.length_p95:,}"
        + (
            f"; of the traffic, cut to the same limit, {found.production_p50:,} and {found.production_p95:,}"
            if found.production_p50 is not None and found.production_p95 is not None
            else ""
        ),
    ]
    return "; ".join(part for part in parts if part)
