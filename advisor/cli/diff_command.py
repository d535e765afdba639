"""`advise diff A.json B.json`: what changed between two reports, and why."""

from __future__ import annotations

from typing import Literal

import click

from advisor.cli.options import output_option, show


@click.command("diff")
@click.argument("before", metavar="A.json", type=click.Path())
@click.argument("after", metavar="B.json", type=click.Path())
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@output_option
def command(before: str, after: str, form: Literal["text", "json"], output: str | None) -> int:
    """Say what changed between two reports in facts, verdicts, plan and figures, and why."""
    from advisor.profiler.stored import load_report
    from advisor.report.comparison import compare, render_comparison

    found = compare(load_report(before), load_report(after))
    show(render_comparison(found, form), output)
    return 0
