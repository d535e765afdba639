"""The options that several commands share, and the profile that they describe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from advisor.report.rendering import Format
    from advisor.types import Profile, Report

Function = TypeVar("Function", bound=Callable[..., Any])

FORMATS = ("text", "json", "markdown", "html")
ENDINGS: dict[str, Format] = {".json": "json", ".md": "markdown", ".html": "html", ".htm": "html"}

_QUESTION = (
    click.option("--model", help="A local folder, a known name (profiles/models) or a hub id.", metavar="MODEL"),
    click.option("--gpu", help="A GPU of profiles/gpus, or a short name. Left out: this machine's GPUs.", metavar="GPU"),
    click.option("--gpus", type=click.IntRange(1, 4096), help="How many GPUs.", metavar="N"),
    click.option(
        "--traffic", help="A named shape (chat, rag, ...), a trace file, a /metrics text or URL.", metavar="NAME|FILE"
    ),
    click.option("--isl", type=float, help="Input tokens per request.", metavar="N"),
    click.option("--osl", type=float, help="Output tokens per request.", metavar="N"),
    click.option("--concurrency", type=float, help="Requests in the system at once.", metavar="N"),
    click.option("--rate", type=float, help="Arrivals per second, instead of a concurrency.", metavar="R"),
    click.option(
        "--objective", type=click.Choice(["throughput", "latency", "cost"]), help="What is wanted.  [default: throughput]"
    ),
    click.option("--ttft-ms", type=float, help="Limit on the time to first token.", metavar="X"),
    click.option("--itl-ms", type=float, help="Limit on the inter-token latency.", metavar="X"),
    click.option("--accuracy-budget", help="Largest acceptable loss on the accuracy metric, percent (2 or 2%).", metavar="PCT"),
    click.option(
        "--accuracy-metric",
        help="What the budget limits: perplexity, kl, top1, task:NAME or command.  [default: perplexity]",
        metavar="METRIC",
    ),
    click.option("--engine", type=click.Choice(["tensorrt-llm", "vllm"]), help="The serving engine.  [default: tensorrt-llm]"),
    click.option("--engine-version", help="Version of the engine.", metavar="V"),
    click.option("--batching", type=click.Choice(["in-flight", "static"]), help="How the engine batches today, if you know."),
    click.option(
        "--evidence", help="Evidence file of earlier measurements that corrects the estimates, or none.", metavar="FILE"
    ),
    click.option("--measured", type=click.Path(), help="Measured facts (JSON), as the executor writes them.", metavar="FILE"),
)

rules_option = click.option(
    "--rules", "overlay", type=click.Path(), help="An organisation's own rules: added, tightened or suppressed.", metavar="DIR"
)
policy_option = click.option(
    "--policy", type=click.Path(), help="What may be planned (advise.yaml); nothing outside it is.", metavar="FILE"
)
UNDER_ITS_OWN = "A report was planned under its own policy; `advise check REPORT.json --policy FILE` holds it to another one."
estimator_option = click.option(
    "--estimator",
    type=click.Choice(["analytic", "silicon"]),
    default="analytic",
    show_default=True,
    help="silicon: NVIDIA's measured per-operation data too, where aiconfigurator-core is installed.",
)
format_option = click.option(
    "--format", "form", type=click.Choice(FORMATS), help="[default: what the ending of -o's FILE says, else text]"
)
output_option = click.option("-o", "--output", type=click.Path(), help="Write to a file instead of stdout.", metavar="FILE")


def question(function: Function) -> Function:
    """Add the options that describe model, machine, traffic, goal and engine."""
    for option in reversed(_QUESTION):
        function = option(function)
    return function


def gather(options: dict[str, Any]) -> Profile:
    """The Profile that the options describe. Raises InputError, click.UsageError."""
    from advisor import pipeline

    if not options.get("model"):
        raise click.UsageError("Missing option '--model': a local folder, a known name or a hub id.")
    options = dict(options)
    options["accuracy_budget_pct"] = _percent(options.pop("accuracy_budget"))
    return pipeline.profile(**options)


def answer(plan_file: str | None, options: dict[str, Any], *, overlay: str | None, policy: str | None) -> Report:
    """The advice to carry out: a stored report, a stored plan beside --model and --gpu, or made now from the options."""
    from pathlib import Path

    from advisor import pipeline
    from advisor.errors import InputError
    from advisor.profiler.stored import load_plan
    from advisor.types import Report

    if plan_file is None:
        return pipeline.advise(gather(options), overlay=overlay, policy=policy)
    if policy is not None:
        raise click.UsageError(UNDER_ITS_OWN)
    stored = load_plan(Path(plan_file))
    if isinstance(stored, Report):
        if options.get("model"):
            raise click.UsageError("Give a report or --model, not both.")
        return stored
    if not options.get("model"):
        raise InputError(
            "a plan alone does not say of which model and machine it is",
            where=plan_file,
            hint="give --model and --gpu beside it, or the report (`advise --format json`)",
        )
    return pipeline.adopt(gather(options), stored, overlay=overlay)


def _percent(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a percentage", param_hint="--accuracy-budget") from None
    if not 0 <= value <= 100:
        raise click.BadParameter(f"{text!r} is not between 0 and 100", param_hint="--accuracy-budget")
    return value


def can_show(text: str) -> bool:
    """Whether stdout's encoding has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def form_of(form: Format | None, output: str | None) -> Format:
    """The format that was asked for, or else that of the file it is written to."""
    if form is not None:
        return form
    name = (output or "").lower()
    return next((said for ending, said in ENDINGS.items() if name.endswith(ending)), "text")


def show(text: str, output: str | None) -> None:
    """Write to a file, whole, or to stdout."""
    if not text.endswith("\n"):
        text += "\n"
    if output and output != "-":
        from pathlib import Path

        from advisor.library import write_whole

        write_whole(Path(output), text)
        click.echo(f"written: {output}", err=True)
        return
    stream = sys.stdout
    try:
        stream.write(text)
    except UnicodeEncodeError:
        stream.buffer.write(text.encode(stream.encoding or "ascii", "replace"))
    stream.flush()
