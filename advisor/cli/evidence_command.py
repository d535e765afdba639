"""`advise evidence`: how far our estimates were off so far."""

from __future__ import annotations

import click

from advisor.cli.options import output_option, show


@click.command("evidence")
@click.option(
    "--evidence", "file", type=click.Path(), help="The file; else ADVISE_EVIDENCE or the cache folder's.", metavar="FILE"
)
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@output_option
def command(file: str | None, form: str, output: str | None) -> int:
    """What was measured on real servers so far, and how far the estimates were off.

    `advise measure` writes it; later estimates for the same GPU, model and engine are corrected by it and say so. The file may
    be deleted at any time.
    """
    from advisor import observations

    show(observations.evidence(file, form=form), output)
    return 0
