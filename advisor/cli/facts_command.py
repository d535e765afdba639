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

    facts = pipeline.facts()
    if form == "json":
        import json

        show(json.dumps([fact._asdict() for fact in facts], indent=2), output)
        return 0
    lines = []
    for fact in facts:
        kind = "|".join(fact.values) if fact.values and len(fact.values) < 5 else fact.kind
        lines.append(f"{fact.name:<36} {kind if not fact.unit else fact.unit}")
        lines.append(f"    {fact.doc} [{fact.basis}]")
    show("\n".join(lines), output)
    return 0
