"""The second opinion beside ours, as rows and sentences: the text, Markdown and HTML pages all read this."""

from __future__ import annotations

from advisor.report import units
from advisor.types import Report, SecondOpinion

TITLE = "Second opinion: NVIDIA's measured operations"
COLUMNS = ("ours", "silicon", "difference, %")
NAMES = {"ttft_ms": "TTFT, ms", "itl_ms": "ITL, ms", "output_tokens_per_s": "output tokens/s"}


def rows(opinion: SecondOpinion) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(metric, its cells) of one deployment, a cell for each column."""
    return tuple(
        (NAMES[one.metric], (units.figure(one.ours), units.figure(one.silicon), f"{one.difference_pct:+.1f}"))
        for one in opinion.figures
    )


def sentences(report: Report) -> tuple[str, ...]:
    """What stands below the table: what could not be answered and why, and what the figures rest on."""
    said = [f"{one.label}: no answer: {one.reason}" for one in report.second_opinions if one.reason]
    sources = dict.fromkeys(one.source for one in report.second_opinions if one.source)
    if sources:
        said.append(
            f"basis silicon: {'; '.join(sources)}, in its own scheduler; its TTFT is a rule of thumb on the measured step"
        )
    return tuple(said)
