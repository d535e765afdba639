"""`advise schema`: the JSON Schema of every value that others script against."""

from __future__ import annotations

import click

from advisor.cli.options import output_option, show

VALUES = (
    "Report",
    "Profile",
    "Plan",
    "Finding",
    "Deployment",
    "Point",
    "Estimate",
    "Simulated",
    "Rule",
    "Change",
    "Policy",
    "Answer",
)


@click.command("schema")
@click.argument("value", type=click.Choice(VALUES), required=False)
@output_option
def command(value: str | None, output: str | None) -> int:
    """Print the JSON Schema of a value, or of all of them."""
    import json

    from advisor import types
    from advisor.report.schema import describe

    schemas = {name: describe(getattr(types, name)) for name in ((value,) if value else VALUES)}
    show(json.dumps(schemas[value] if value else schemas, indent=2), output)
    return 0
