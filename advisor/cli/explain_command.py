"""`advise explain RULE_ID`: a rule as a page; with a report, why or why not there."""

from __future__ import annotations

import click

from advisor.cli.options import output_option, rules_option, show


@click.command("explain")
@click.argument("rule_id")
@click.option("--report", "report_file", type=click.Path(), help="A report.json: say why or why not there.", metavar="R.json")
@rules_option
@output_option
def command(rule_id: str, report_file: str | None, overlay: str | None, output: str | None) -> int:
    """Show a rule as a page, or why it does or does not fire in a report."""
    from advisor import pipeline

    show(pipeline.explain(rule_id, report_file=report_file, overlay=overlay), output)
    return 0
