"""`advise report REPORT.json`: show a stored report."""

from __future__ import annotations

import click

from advisor.cli.options import FORMATS, output_option, show


@click.command("report")
@click.argument("report_file", metavar="REPORT.json", type=click.Path())
@click.option("--format", "form", type=click.Choice(FORMATS), default="text", show_default=True)
@output_option
def command(report_file: str, form: str, output: str | None) -> int:
    """Show a stored report as text, JSON, Markdown or HTML."""
    from advisor import pipeline
    from advisor.report.rendering import render

    show(render(pipeline.load_report(report_file), form), output)
    return 0
