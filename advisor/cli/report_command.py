"""`advise report REPORT.json`: show a stored report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from advisor.cli.options import form_of, format_option, output_option, show

if TYPE_CHECKING:
    from advisor.report.rendering import Format


@click.command("report")
@click.argument("report_file", metavar="REPORT.json", type=click.Path())
@format_option
@output_option
def command(report_file: str, form: Format | None, output: str | None) -> int:
    """Show a stored report as text, JSON, Markdown or HTML."""
    from advisor.profiler.stored import load_report
    from advisor.report.rendering import render

    show(render(load_report(report_file), form_of(form, output)), output)
    return 0
