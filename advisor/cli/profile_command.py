"""`advise profile`: what was found out, and where each fact came from."""

from __future__ import annotations

from typing import Any

import click

from advisor.cli.options import gather, output_option, question, show


@click.command("profile")
@question
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--save", type=click.Path(), help="Store the profile; `advise plan FILE` accepts it.", metavar="FILE")
@output_option
def command(form: str, save: str | None, output: str | None, **options: Any) -> int:
    """Show the Profile alone: machine, model, traffic, goal, and the source of every fact."""
    profile = gather(options)
    if save:
        from pathlib import Path

        from advisor.profiler.stored import save_profile

        save_profile(profile, Path(save))
        click.echo(f"written: {save}", err=True)
    if form == "json":
        show(profile.model_dump_json(indent=2), output)
    else:
        from advisor.report.profile import render_profile

        show(render_profile(profile), output)
    return 0
