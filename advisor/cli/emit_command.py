"""`advise emit`: the serving files only."""

from __future__ import annotations

from typing import Any

import click

from advisor.cli.options import UNDER_ITS_OWN, gather, policy_option, question, rules_option


@click.command("emit")
@click.argument("plan_file", metavar="[REPORT.json]", required=False, type=click.Path())
@question
@rules_option
@policy_option
@click.option("--out", required=True, type=click.Path(), help="Folder for the files; made if it is not there.", metavar="DIR")
def command(plan_file: str | None, overlay: str | None, policy: str | None, out: str, **options: Any) -> int:
    """Write the files that serve what was advised: engine configuration, commands, manifests.

    Of a stored report, or of the advice for the given model and machine.
    """
    from pathlib import Path

    from advisor import pipeline
    from advisor.profiler.stored import load_report

    if plan_file is not None and options.get("model"):
        raise click.UsageError("Give a report or --model, not both.")
    if plan_file is not None and policy is not None:
        raise click.UsageError(UNDER_ITS_OWN)
    report = load_report(Path(plan_file)) if plan_file else pipeline.advise(gather(options), overlay=overlay, policy=policy)
    for path in pipeline.emit(report, Path(out)):
        click.echo(str(path))
    return 0 if report.plan.feasible else 4
