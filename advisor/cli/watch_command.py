"""`advise watch REPORT.json`: `advise check` on a schedule."""

from __future__ import annotations

import click

from advisor.cli.options import policy_option, rules_option


@click.command("watch")
@click.argument("report_file", metavar="REPORT.json", type=click.Path())
@click.option("--traffic", required=True, help="A server's /metrics URL, a saved text or a trace.", metavar="URL|FILE")
@click.option(
    "--every", type=click.FloatRange(0), default=300.0, show_default=True, help="From round to round.", metavar="SECONDS"
)
@click.option("--times", type=click.IntRange(1), default=1, show_default=True, help="How many rounds.", metavar="N")
@policy_option
@rules_option
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    report_file: str, traffic: str, every: float, times: int, policy: str | None, overlay: str | None, log_format: str
) -> int:
    """Check a report against the traffic of a running server, round after round.

    From the second round on the traffic is that since the round before. A round without a reading is said and not the end.
    Exit status of the last round: 0 fresh, 3 stale, 1 no reading.
    """
    from advisor.cli.check_command import STALE, in_words
    from advisor.profiler.stored import load_report
    from advisor.rounds import go_round

    status = 1
    for each in go_round(load_report(report_file), traffic, every_s=every, times=times, policy=policy, overlay=overlay):
        if log_format == "json":
            click.echo(each.model_dump_json())
        else:
            click.echo(f"{each.at} round {each.number}, {each.window}")
            click.echo(in_words(each.found) if each.found else f"no reading: {each.problem}")
        status = 1 if each.found is None else 0 if each.found.fresh else STALE
    return status
