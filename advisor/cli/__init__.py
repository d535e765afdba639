"""The command `advise`: options in, one call, one value out. One file per command, imported when it is used."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from advisor import __version__
from advisor.errors import AdvisorError, FileProblem

COMMANDS = (
    "predict",
    "profile",
    "plan",
    "explain",
    "rules",
    "facts",
    "report",
    "diff",
    "emit",
    "apply",
    "draft",
    "measure",
    "evidence",
    "check",
    "watch",
    "sweep",
    "schema",
)


class Commands(click.Group):
    """A group whose commands live in a module of their own name and are imported only when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"advisor.cli.{name}_command").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run it. Who closed the pipe has read enough, which click would call a failure."""
        try:
            return super().invoke(ctx)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ENOSPC):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it is flushed again at the end, in vain
            if error.errno == errno.EPIPE:
                return 0
            raise FileProblem("cannot write: the disk is full", where=error.filename or "", hint="free space") from None


def _show_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"advise {__version__}")
        ctx.exit()


def main() -> None:
    """Run `advise`; every error the user can act on ends in three lines on stderr and its own exit status."""
    try:
        from advisor.cli.advise_command import command

        status = command.main(standalone_mode=False)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        status = 130
    except click.ClickException as error:
        error.show()
        status = 2
    except AdvisorError as error:
        click.echo(str(error), err=True)
        status = error.exit_status
    sys.exit(status if isinstance(status, int) else 0)
