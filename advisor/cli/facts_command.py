"""`advise facts`: every fact a rule may name."""

from __future__ import annotations

import click

from advisor.cli.options import output_option, show


@click.command("facts")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@output_option
def command(form: str, output: str | None) -> int:
    """List every fact a rule may name, with its type, unit and meaning."""
    from advisor import pipeline

    show(pipeline.list_facts(form), output)
    return 0
