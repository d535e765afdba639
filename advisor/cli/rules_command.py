"""`advise rules list|lint|test`: the rule set and an organisation's own."""

from __future__ import annotations

import click

from advisor.cli.options import rules_option


@click.group("rules")
def command() -> None:
    """List, lint or test the rules."""


@command.command("list")
@rules_option
def list_rules(overlay: str | None) -> int:
    """List every rule: id, row of the table, safety, problem."""
    from advisor import pipeline

    for rule in pipeline.rules(overlay).rules:
        row = f"row {rule.seed_row}" if rule.seed_row else ""
        click.echo(f"{rule.id:<48} {row:<6} {rule.safety:<9} {rule.problem}")
    return 0


@command.command("lint")
@click.argument("folder", required=False, type=click.Path())
def lint_rules(folder: str | None) -> int:
    """Say what is wrong in a folder of rules: file, line, caret, and what was meant."""
    from advisor import pipeline

    problems = pipeline.lint(folder)
    for problem in problems:
        click.echo(str(problem))
        click.echo()
    click.echo(f"{len(problems)} problems" if problems else "no problems", err=True)
    return 1 if problems else 0


@command.command("test")
@click.argument("folder", required=False, type=click.Path())
def test_rules(folder: str | None) -> int:
    """Run every rule's own cases."""
    from advisor import pipeline

    failed = passed = 0
    for check in pipeline.check_rules(folder):
        passed += sum(result.passed for result in check.results)
        failed += len(check.failures)
        for failure in check.failures:
            click.echo(failure)
    click.echo(f"{passed} passed, {failed} failed")
    return 1 if failed else 0
