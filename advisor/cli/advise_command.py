"""`advise --model X`: which optimizations, in which order, what each gives and why."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from advisor.cli import Commands, _show_version
from advisor.cli.options import (
    can_show,
    estimator_option,
    form_of,
    format_option,
    gather,
    output_option,
    policy_option,
    question,
    rules_option,
    show,
)

if TYPE_CHECKING:
    from advisor.report.rendering import Format


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@question
@rules_option
@policy_option
@estimator_option
@format_option
@output_option
@click.option("--grid", "with_grid", is_flag=True, help="Estimates over many loads, for the page's sliders (HTML has them).")
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version.")
def command(
    overlay: str | None,
    policy: str | None,
    estimator: str,
    form: Format | None,
    output: str | None,
    with_grid: bool,
    **options: Any,
) -> int:
    """Look at a GPU, a model and its traffic, and say which inference optimizations to use, in which order, and why.

    \b
    advise --model meta-llama/Llama-3.1-8B-Instruct --gpu h100
    advise --model ./my-model --traffic trace.jsonl --itl-ms 20 --format html -o report.html

    Nothing on the machine is changed.
    """
    ctx = click.get_current_context()
    if ctx.invoked_subcommand is not None:
        return 0
    given = click.core.ParameterSource.COMMANDLINE
    if not any(ctx.get_parameter_source(name) == given for name in (*options, "overlay", "form", "output")):
        click.echo(ctx.get_help())
        return 0
    from advisor import pipeline
    from advisor.report.rendering import render

    form = form_of(form, output)
    report = pipeline.advise(
        gather(options),
        overlay=overlay,
        policy=policy,
        command=tuple(sys.argv[1:]),
        grid=form == "html" or with_grid,
        second_opinion=estimator == "silicon",
    )
    to_terminal = form == "text" and not output and sys.stdout.isatty()
    width = min(shutil.get_terminal_size((80, 24)).columns, 100) if to_terminal else 80
    plain = form == "text" and not output and not can_show("█▓▒░│–≤…")
    show(render(report, form, width=width, color=to_terminal, ascii=plain), output)
    return 0 if report.plan.feasible else 4
