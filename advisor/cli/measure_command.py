"""`advise measure`: a plan on a real server, under the traffic, against the limits and the prediction."""

from __future__ import annotations

from typing import Any

import click


@click.command("measure")
@click.argument("report_file", metavar="[REPORT.json]", required=False, type=click.Path())
@click.option(
    "--out",
    type=click.Path(),
    default="measured",
    show_default=True,
    help="Folder for the report and the logs.",
    metavar="DIR",
)
@click.option("--url", help="Measure the server that runs there instead of starting one.", metavar="URL")
@click.option("--on-planned-gpu", is_flag=True, help="The server behind --url runs on the GPU that the report is for.")
@click.option(
    "--engine-python", help="Python of the environment that vLLM is installed in (or ADVISE_VLLM_PYTHON).", metavar="PYTHON"
)
@click.option("--checkpoint", type=click.Path(), help="Folder of the weights to serve; else the plan's own.", metavar="DIR")
@click.option("--keep-formats", is_flag=True, help="Serve the checkpoint as it is: all of the plan but its number formats.")
@click.option("--baseline/--no-baseline", default=True, show_default=True, help="Measure the baseline too.")
@click.option("--static", is_flag=True, help="Measure static batching too: batches admitted one after the other.")
@click.option("--replay", type=click.Path(), help="Replay this trace at its own arrival times.", metavar="TRACE")
@click.option(
    "--prompts",
    type=click.Path(),
    help='Send pieces of these prompts, {"text"} or {"messages"} a line, instead of random tokens.',
    metavar="FILE",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 100_000),
    help="Requests of one round.  [default: 4 times those that run at once, at least 32]",
    metavar="N",
)
@click.option(
    "--rounds", type=click.IntRange(1, 100), default=8, show_default=True, help="At most so many rounds.", metavar="N"
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 86_400),
    default=300.0,
    show_default=True,
    help="At most so long, for each way of serving.",
    metavar="S",
)
@click.option(
    "--precision",
    type=click.FloatRange(0.001, 1),
    default=0.05,
    show_default=True,
    help="Rounds end when the 95 % intervals are this narrow, half width over mean.",
    metavar="P",
)
@click.option(
    "--deadline",
    type=click.FloatRange(1, 86_400),
    default=600.0,
    show_default=True,
    help="Seconds for an engine to become healthy.",
    metavar="S",
)
@click.option(
    "--aiperf",
    "aiperf_program",
    help="NVIDIA's aiperf, to send the load with. Left out: the one on PATH or ADVISE_AIPERF; else our own client.",
    metavar="PROGRAM",
)
@click.option("--own-client", is_flag=True, help="Do not use aiperf where it is there.")
@click.option(
    "--evidence", type=click.Path(), help="Keep the results there; else ADVISE_EVIDENCE or the cache folder's.", metavar="FILE"
)
@click.option("--no-evidence", is_flag=True, help="Do not keep the results.")
@click.option("--stop", is_flag=True, help="Only stop engines that a killed run left behind.")
def command(report_file: str | None, stop: bool, out: str, **options: Any) -> int:
    """Serve a report's plan, load the server as the traffic says, and compare with the limits and the prediction.

    Starts the engine on loopback, measures the baseline and the plan, writes DIR/report.json and DIR/report.html with what
    was measured and DIR/measured.json for --measured, and keeps it as evidence. Status 3: a limit is missed or cannot be
    told, or requests failed.
    """
    from pathlib import Path

    from advisor import measurement
    from advisor.profiler.stored import load_report

    if stop:
        stopped = measurement.stop_left_over()
        for line in stopped:
            click.echo(f"stopped: {line}")
        if not stopped:
            click.echo("no engine was left behind")
        return 0
    if report_file is None:
        raise click.UsageError("Give a report (advise … --format json -o REPORT.json), or --stop.")
    report = measurement.measure(
        load_report(Path(report_file)), Path(out), tell=lambda line: click.echo(line, err=True), **options
    )
    made = [change for change in report.changes if change.action == "measure"]
    for change in made:
        click.echo(f"{change.rule}, gate {change.gate}: {change.detail}")
    for name in ("report.json", "report.html", "measured.json"):
        click.echo(str(Path(out) / name))
    return 3 if any(change.gate in ("failed", "inconclusive") for change in made) else 0
