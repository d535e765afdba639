"""`advise draft`: measure how often a draft is accepted on one's own prompts."""

from __future__ import annotations

import sys
from typing import Any

import click

from advisor.cli.options import gather, policy_option, question, rules_option


@click.command("draft")
@question
@rules_option
@policy_option
@click.option(
    "--draft", type=click.Path(), help="Folder of a smaller model to draft with; n-grams alone without.", metavar="DIR"
)
@click.option(
    "--prompts",
    type=click.Path(),
    required=True,
    help='Your own prompts: {"text"} or {"messages"} a line.',
    metavar="FILE",
)
@click.option(
    "--out",
    type=click.Path(),
    default="drafted",
    show_default=True,
    help="Folder for the report, measured.json and finished work.",
    metavar="DIR",
)
@click.option("--count", type=click.IntRange(2), default=32, show_default=True, help="Prompts at most.", metavar="N")
@click.option(
    "--answer-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer at most.", metavar="N"
)
@click.option(
    "--prompt-tokens", type=click.IntRange(16), default=512, show_default=True, help="Cut prompts to this.", metavar="N"
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, 10),
    default=0.0,
    show_default=True,
    help="Of the answers; 0 is greedy, else the rejection rule's acceptance.",
    metavar="T",
)
@click.option(
    "--draft-len", type=click.IntRange(1, 8), default=4, show_default=True, help="Of the drafts in the proof.", metavar="K"
)
@click.option(
    "--proofs", type=click.IntRange(1), default=8, show_default=True, help="Answers that are decoded both ways.", metavar="N"
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(overlay: str | None, policy: str | None, **options: Any) -> int:
    """Measure the acceptance of a draft model, and of n-grams, on the model's own answers to your prompts.

    Both models run here; speeds are estimated for the GPU that is planned for. Says which draft length pays at the planned
    load, above which it must be off, and that the output stays the target's. Status 3: it does not.
    """
    from pathlib import Path

    from advisor import pipeline
    from advisor.report.sections import change_lines, rule_lines

    own = (
        "draft", "prompts", "out", "count", "answer_tokens", "prompt_tokens", "temperature", "draft_len", "proofs", "seed",
        "log_format",
    )  # fmt: skip
    mine = {name: options.pop(name) for name in own}
    out = Path(mine.pop("out"))
    mine["prompts"] = Path(mine["prompts"])
    mine["draft"] = None if mine["draft"] is None else Path(mine["draft"])
    report = pipeline.draft(gather(options), out, overlay=overlay, policy=policy, command=tuple(sys.argv[1:]), **mine)
    if mine["log_format"] == "json":
        click.echo(report.model_dump_json())
    else:
        for change in report.changes:
            click.echo(f"{change.rule}, gate {change.gate}")
            for line in change_lines(change):
                click.echo("\n".join(f"  {part}" for part in line.splitlines()))
        for line in rule_lines(report, [change.rule for change in report.changes]):
            click.echo(line)
        for name in ("report.json", "report.html", "measured.json"):
            click.echo(str(out / name))
    return 3 if any(change.gate == "failed" for change in report.changes) else 0
