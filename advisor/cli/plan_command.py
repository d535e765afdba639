"""`advise plan PROFILE.json`: a Plan from a stored profile."""

from __future__ import annotations

import click

from advisor.cli.options import output_option, policy_option, rules_option, show


@click.command("plan")
@click.argument("profile_file", metavar="PROFILE.json", type=click.Path())
@rules_option
@policy_option
@output_option
def command(profile_file: str, overlay: str | None, policy: str | None, output: str | None) -> int:
    """Plan from a stored profile and print the Plan as JSON."""
    from pathlib import Path

    from advisor import pipeline
    from advisor.profiler.stored import load_profile

    report = pipeline.advise(load_profile(Path(profile_file)), overlay=overlay, policy=policy)
    show(report.plan.model_dump_json(indent=2), output)
    return 0 if report.plan.feasible else 4
