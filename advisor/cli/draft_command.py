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
@click.option("--make", type=click.Choice(["layers", "eagle3"]), help="Make a draft first: of the model's layers, or a head.")
@click.option("--layers", type=click.IntRange(1), help="Layers that --make layers keeps.", metavar="N")
@click.option("--training", type=click.Path(), help="Texts that --make learns from.", metavar="FILE")
@click.option("--training-steps", type=click.IntRange(1), default=50, show_default=True, help="Of --make.", metavar="N")
@click.option("--max-time", type=click.FloatRange(0), help="Train no longer than so many minutes.", metavar="MIN")
@click.option("--yes", is_flag=True, help="Do not ask before training.")
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

    A draft that does not exist can be made first (--make). Both models run here; speeds are estimated for the GPU that is
    planned for. Says which draft length pays at the planned load, above which it must be off, and that the output stays the
    target's. Status 3: it does not.
    """
    from pathlib import Path

    from advisor import drafting
    from advisor.report.changes import change_lines
    from advisor.report.sections import rule_lines

    own = (
        "draft", "prompts", "out", "count", "answer_tokens", "prompt_tokens", "temperature", "draft_len", "proofs", "seed",
        "log_format",
    )  # fmt: skip
    mine = {name: options.pop(name) for name in own}
    out = Path(mine.pop("out"))
    mine["prompts"] = Path(mine["prompts"])
    mine["draft"] = None if mine["draft"] is None else Path(mine["draft"])
    making = _making(options, drafted=mine["draft"] is not None)
    unasked = options.pop("yes") or not (sys.stdin.isatty() and sys.stderr.isatty())
    profile = gather(options)
    if making is not None:
        click.echo(drafting.foresee_draft(profile, making, mine["prompt_tokens"]), err=True)
        if not unasked:
            click.confirm("Go on?", default=True, abort=True, err=True)
    report = drafting.draft(
        profile, out, overlay=overlay, policy=policy, command=tuple(sys.argv[1:]), making=making, unasked=unasked, **mine
    )
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


def _making(options: dict[str, Any], *, drafted: bool) -> dict[str, Any] | None:
    from pathlib import Path

    own = ("make", "layers", "training", "training_steps", "max_time")
    kind, layers, training, steps, minutes = (options.pop(name) for name in own)
    if kind is None:
        return None
    if drafted:
        raise click.UsageError("Give --draft or --make, not both.")
    if training is None:
        raise click.UsageError("--make needs texts to learn from: --training FILE.")
    if kind == "layers" and layers is None:
        raise click.UsageError("--make layers needs to know how many are kept: --layers N.")
    most = None if minutes is None else minutes * 60
    return {"kind": kind, "layers": layers, "training": Path(training), "steps": steps, "max_seconds": most}
