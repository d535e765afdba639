"""`advise sweep FILE`: thousands of plans in one process, and which GPU serves which model at which cost."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, BinaryIO

import click

if TYPE_CHECKING:
    from pathlib import Path

    from advisor.sweep import Sweep


@click.command("sweep")
@click.argument("file", metavar="FILE.yaml|FILE.jsonl", type=click.Path())
@click.option("-o", "--output", type=click.Path(), help="JSON lines; what is there already is not done again.", metavar="FILE")
@click.option("--price", "prices", multiple=True, help="Your price per GPU and hour; again for each GPU.", metavar="GPU=PRICE")
@click.option("--summary", type=click.Path(), help="A page with a bar for every machine (HTML); needs -o.", metavar="FILE.html")
@click.option("--quiet", is_flag=True, help="No table on stderr.")
def command(file: str, output: str | None, prices: tuple[str, ...], summary: str | None, quiet: bool) -> int:
    """Plan for models x GPUs x traffic x limits: a JSON line a plan, then a table of the best GPU for each question.

    With -o a sweep that was stopped goes on where it stopped. Costs are price x GPUs / output tokens per hour; no price is
    built in. Exit status 1 when a question could not be answered.
    """
    from pathlib import Path

    from advisor.sweep import read_answers, read_sweep

    if summary and not output:
        raise click.UsageError("--summary reads the output file: give -o too.")
    sweep = read_sweep(Path(file), _prices(prices))
    if output is None:
        answers = []
        for answer in sweep.answers():
            sys.stdout.write(answer.model_dump_json() + "\n")
            answers.append(answer)
        sys.stdout.flush()
    else:
        _go_on(sweep, Path(output))
        wanted = {sweep.key(question) for question in sweep.questions}
        answers = [answer for answer in read_answers(Path(output), sweep.prices) if answer.key in wanted]
    from advisor.report.sweep import render_sweep_html, render_sweep_text

    if not quiet:
        click.echo(render_sweep_text(answers), err=True)
    if summary:
        from advisor.library import write_whole

        write_whole(Path(summary), render_sweep_html(answers))
        click.echo(f"written: {summary}", err=True)
    return 1 if any(answer.error for answer in answers) else 0


def _go_on(sweep: Sweep, path: Path) -> None:
    """Add what is missing to the output file, a whole line at a time; a line that was cut off is taken away."""
    from advisor.errors import FileProblem
    from advisor.sweep import finished

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            _take(stream, path)
            done, size = finished(path)
            stream.truncate(size)
            made = 0
            for answer in sweep.answers(done):
                stream.write(answer.model_dump_json().encode() + b"\n")
                stream.flush()
                made += 1
    except OSError as error:
        raise FileProblem(f"cannot write: {error.strerror}", where=str(path), hint="check the folder and the space") from None
    click.echo(f"{made} plans made, {len(sweep.questions) - made} were there", err=True)


def _take(stream: BinaryIO, path: Path) -> None:
    """Hold the file until it is closed; the system lets go of a dead process's hold."""
    import fcntl

    from advisor.errors import FileProblem

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        hint = "wait for it, or give another file"
        raise FileProblem("another sweep is writing this file", where=str(path), hint=hint) from None


def _prices(given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, sign, price = text.partition("=")
        try:
            found[name] = float(price)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not GPU=PRICE", param_hint="--price") from None
        if not sign:
            raise click.BadParameter(f"{text!r} is not GPU=PRICE", param_hint="--price")
    return found
