"""`advise check REPORT|DIR`: does what is served match what was advised, and does the advice still hold?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from advisor.cli.options import policy_option, rules_option

if TYPE_CHECKING:
    from pathlib import Path

    from advisor.freshness import Drift, Freshness

Function = TypeVar("Function", bound=Callable[..., Any])
STALE = 3

_NOW = (
    click.option("--model", help="The model as it is now: a local folder, a known name or a hub id.", metavar="MODEL"),
    click.option("--gpu", help="The GPU there is now.", metavar="GPU"),
    click.option("--gpus", type=click.IntRange(1), help="How many GPUs there are now.", metavar="N"),
    click.option("--here", is_flag=True, help="The GPUs of this machine."),
    click.option("--traffic", help="The traffic now: a trace, a /metrics text or URL.", metavar="FILE|URL"),
    click.option("--isl", type=float, metavar="N"),
    click.option("--osl", type=float, metavar="N"),
    click.option("--concurrency", type=float, metavar="N"),
    click.option("--rate", type=float, metavar="R"),
    click.option("--engine-version", help="The engine's version now.", metavar="V"),
)


def now_options(function: Function) -> Function:
    """Add the options that say how things are now; what is left out is as advised."""
    for option in reversed(_NOW):
        function = option(function)
    return function


@click.command("check")
@click.argument("target", metavar="REPORT.json|DIR|PLACE", type=click.Path())
@click.option("--serving", type=click.Path(), help="Folder of the serving files; of DIR its own.", metavar="DIR")
@click.option(
    "--hashes", is_flag=True, help="Of DIR or PLACE: are the checkpoint's files, and the model's, those of the gate? Reads all."
)
@now_options
@policy_option
@rules_option
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(
    target: str, serving: str | None, hashes: bool, policy: str | None, overlay: str | None, form: str, **now: Any
) -> int:
    """Judge a deployment against what was advised: one line per drift, exit status 3 when the advice is stale.

    REPORT.json is what `advise --format json` wrote; DIR holds a report.json and the serving files beside it; PLACE is where
    `advise apply --publish` sent it (hf://org/name, s3://bucket/folder). Facts that are not given are taken as advised.
    """
    import tempfile
    from pathlib import Path

    from advisor.served import bring

    ask = {"policy": policy, "overlay": overlay, **now}
    if "://" in target:
        with tempfile.TemporaryDirectory(prefix="advise-check-") as name:
            found = _judge(Path(name), serving or name, hashes, bring(target, Path(name), hashes=hashes), ask, brought=True)
    else:
        path = Path(target)
        if hashes and not path.is_dir():
            raise click.UsageError("--hashes is for what `advise apply` published.")
        found = _judge(path, serving or (target if path.is_dir() else None), hashes, (), ask)
    click.echo(found.model_dump_json(indent=2) if form == "json" else in_words(found))
    return 0 if found.fresh else STALE


def _judge(
    path: Path, serving: str | None, hashes: bool, drifts: tuple[Drift, ...], ask: dict[str, Any], *, brought: bool = False
) -> Freshness:
    """What a report, or a folder with one, comes to. brought: a folder without the large files, which were judged already."""
    from pathlib import Path

    from advisor.freshness import check, merged, refresh
    from advisor.profiler.stored import load_report
    from advisor.served import content_drifts, origin_drifts, sealed_drifts, served_drifts

    policy, overlay = ask.pop("policy"), ask.pop("overlay")
    folder = path if path.is_dir() else None
    if folder is not None and not brought:
        drifts = sealed_drifts(folder)
    if folder is not None and drifts and not (folder / "report.json").is_file():
        return merged(None, drifts)
    report = load_report(path if folder is None else folder / "report.json")
    found = merged(check(report, refresh(report.profile, **ask), policy=policy, overlay=overlay), drifts)
    if serving is not None:
        found = merged(found, served_drifts(report, Path(serving)))
    if hashes and folder is not None:
        model = Path(ask["model"]) if ask["model"] and Path(ask["model"]).is_dir() else None
        if not brought:
            found = merged(found, content_drifts(folder, model))
        elif model is not None:
            found = merged(found, origin_drifts(folder, model))
    return found


def in_words(found: Freshness) -> str:
    """One line per drift, then the judgement."""
    lines = [
        f"{'stale' if one.stale else 'holds'}  {one.fact}{_values(one.advised, one.now)}: {one.says}" for one in found.drifts
    ]
    return "\n".join([*lines, found.summary])


def _values(advised: Any, now: Any) -> str:
    if advised is None and now is None:
        return ""
    if now is None:
        return f" {_shown(advised)}"
    return f" {_shown(advised)} -> {_shown(now)}"


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
