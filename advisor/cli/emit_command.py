"""`advise emit`: the serving files only."""

from __future__ import annotations

from typing import Any

import click

from advisor.cli.options import answer, policy_option, question, rules_option


@click.command("emit")
@click.argument("plan_file", metavar="[PLAN.json]", required=False, type=click.Path())
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

    report = answer(plan_file, options, overlay=overlay, policy=policy)
    for path in pipeline.emit(report, Path(out)):
        click.echo(str(path))
    return 0 if report.plan.feasible else 4
