"""`advise apply`: carry the plan out, measure, and publish what passed its gate."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from advisor.cli.options import answer, policy_option, question, rules_option

if TYPE_CHECKING:
    from advisor.types import Report


@click.command("apply")
@click.argument("plan_file", metavar="[PLAN.json]", required=False, type=click.Path())
@question
@rules_option
@policy_option
@click.option(
    "--out",
    required=True,
    type=click.Path(),
    help="Folder to publish into. What the same inputs and versions gave there already is reused.",
    metavar="DIR",
)
@click.option("--replace", is_flag=True, help="Put the result in the place of one of other inputs, once its gates passed.")
@click.option(
    "--publish",
    multiple=True,
    help="Send it there once its gates passed: hf://org/name, s3://bucket/folder, … May be repeated.",
    metavar="PLACE",
)
@click.option(
    "--calibration", type=click.Path(), help='Prompts to calibrate on: {"text"} or {"messages"} a line.', metavar="FILE"
)
@click.option(
    "--production",
    type=click.Path(),
    help="Production's own prompts, to judge by and recalibrate on, if they are others.",
    metavar="FILE",
)
@click.option("--draft", type=click.Path(), help="Folder of a draft model: measure how often it is accepted.", metavar="DIR")
@click.option(
    "--training", type=click.Path(), help="Texts to train on, if the rules call for training. [the prompts]", metavar="FILE"
)
@click.option("--training-steps", type=click.IntRange(1), help="Steps of a training at most. [the rule's number]", metavar="N")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped; finished work is not done again.")
@click.option("--yes", is_flag=True, help="Do not ask: neither before beginning nor before a training.")
@click.option(
    "--auto",
    is_flag=True,
    help="Ask nothing, say it in JSON lines; go on with a stopped run whatever changed since, redoing what depends on it.",
)
@click.option("--max-rounds", type=click.IntRange(1), default=6, show_default=True, help="Trials at most.", metavar="N")
@click.option(
    "--max-time", type=click.FloatRange(0), help="Begin no round after so many minutes of this command.", metavar="MIN"
)
@click.option("--seed", type=int, default=0, show_default=True, metavar="N")
@click.option("--calibration-prompts", type=click.IntRange(1), help="Prompts to calibrate on. [the rule's number]", metavar="N")
@click.option(
    "--evaluation-prompts", type=click.IntRange(2), default=64, show_default=True, help="Prompts to judge by.", metavar="N"
)
@click.option(
    "--prompt-tokens", type=click.IntRange(16), default=512, show_default=True, help="Cut prompts to this.", metavar="N"
)
@click.option(
    "--score-command", help="Scores a folder for --accuracy-metric command: 'python score.py {checkpoint}'.", metavar="CMD"
)
@click.option(
    "--serve/--no-serve",
    default=None,
    help="Serve the result and measure it under the traffic before publishing it; --serve judges the limits on this machine, "
    "whatever it is.  [default: where the engine is installed and can run the plan, judged on the plan's own GPU]",
)
@click.option(
    "--engine-python", help="Python of the environment that vLLM is installed in (or ADVISE_VLLM_PYTHON).", metavar="PYTHON"
)
@click.option(
    "--serve-rounds",
    type=click.IntRange(1, 100),
    default=8,
    show_default=True,
    help="Measure at most so many rounds.",
    metavar="N",
)
@click.option(
    "--serve-seconds",
    type=click.FloatRange(1, 86_400),
    default=300.0,
    show_default=True,
    help="Measure at most so long, for each way of serving.",
    metavar="S",
)
@click.option(
    "--keep-high-precision",
    multiple=True,
    help="Modules that stay at 16 bits, as a pattern of their names ('*self_attn*'); again for more.",
    metavar="PATTERN",
)
@click.option(
    "--tasks", type=click.Path(), help="Folder with lm-eval tasks of your own, for --accuracy-metric task:NAME.", metavar="DIR"
)
@click.option(
    "--student-layers",
    callback=lambda _context, _option, value: _layers(value),
    help="Distil a student of so many of the model's layers first, then quantize it. auto: as many as keep the limits.",
    metavar="N|auto",
)
@click.option("--student-steps", type=click.IntRange(1), help="Steps of its distillation. [the rule's number]", metavar="N")
@click.option("--log-format", type=click.Choice(["text", "json"]), help="On stderr.  [default: json with --auto, else text]")
def command(plan_file: str | None, overlay: str | None, policy: str | None, out: str, **options: Any) -> int:
    """Do it: quantize, measure on held-out prompts, ask the rules again until the budget is kept, serve and measure, publish.

    Works on a local folder. Nothing is published unless its gates passed; what was made is kept in DIR.work.
    """
    from advisor.errors import AdvisorError

    options["log_format"] = options["log_format"] or ("json" if options["auto"] else "text")
    try:
        return _carry_out(plan_file, overlay, policy, out, options)
    except AdvisorError as error:
        if options["log_format"] != "json":
            raise
        import json

        said = {"event": "error", "text": error.what, "where": error.where, "hint": error.hint, "status": error.exit_status}
        click.echo(json.dumps(said, ensure_ascii=False), err=True)
        return error.exit_status


def _carry_out(plan_file: str | None, overlay: str | None, policy: str | None, out: str, given: dict[str, Any]) -> int:
    from pathlib import Path

    from advisor import pipeline

    options = dict(given)
    own = (
        "publish", "calibration", "production", "draft", "training", "training_steps", "replace", "resume", "yes", "auto",
        "max_rounds", "max_time", "seed",
        "calibration_prompts", "evaluation_prompts", "prompt_tokens", "score_command", "tasks", "keep_high_precision",
        "student_layers", "student_steps", "log_format",
    )  # fmt: skip
    mine = {name: options.pop(name) for name in own}
    serving = {
        "wanted": options.pop("serve"),
        "engine_python": options.pop("engine_python"),
        "rounds": options.pop("serve_rounds"),
        "seconds": options.pop("serve_seconds"),
        "evidence": options.get("evidence"),
    }
    report = answer(plan_file, options, overlay=overlay, policy=policy)
    unasked = not (sys.stdin.isatty() and sys.stderr.isatty())
    agreed = mine["yes"] or mine["auto"]
    if mine["student_layers"] is not None:
        layers = None if mine["student_layers"] == "auto" else mine["student_layers"]
        report = pipeline.advise_student(report, layers, overlay=overlay, unasked=unasked)
    if not unasked and not agreed:
        click.confirm(f"{_intent(report)}\nGo on?", default=True, abort=True, err=True)
    made, outcome = pipeline.apply(
        report,
        overlay=overlay,
        unasked=unasked,
        log_format=mine["log_format"],
        serving=serving,
        publish=mine["publish"],
        out=Path(out).absolute(),
        calibration=_path(mine["calibration"]),
        production=_path(mine["production"]),
        draft=_path(mine["draft"]),
        training=_path(mine["training"]),
        training_steps=mine["training_steps"],
        confirm=(lambda _: True) if agreed else None if unasked else _ask,
        resume=mine["resume"],
        renew=mine["auto"],
        replace=mine["replace"],
        max_rounds=mine["max_rounds"],
        max_seconds=None if mine["max_time"] is None else mine["max_time"] * 60,
        seed=mine["seed"],
        prompts=mine["calibration_prompts"],
        held_out=mine["evaluation_prompts"],
        tokens=mine["prompt_tokens"],
        command=mine["score_command"],
        tasks=_path(mine["tasks"]),
        student_steps=mine["student_steps"],
        keep=mine["keep_high_precision"],
        arguments=tuple(sys.argv[1:]),
    )
    if mine["log_format"] == "json":
        click.echo(made.model_dump_json())
    else:
        for change in made.changes:
            click.echo(f"{change.gate:>12}  {change.action} ({change.rule}): {change.detail.splitlines()[0]}")
        click.echo(outcome.summary)
        word = "reused" if outcome.reused else "written"
        kept = f"nothing published; what was made is kept in {outcome.folder}"
        click.echo(f"{word}: {outcome.folder}" if outcome.published else kept)
        for place in outcome.places:
            click.echo(f"published: {place}")
    return 0 if outcome.published else 3


def _ask(what: str) -> bool:
    return click.confirm(f"{what[:1].upper()}{what[1:]}.\nTrain?", default=False, err=True)


def _path(text: str | None) -> Any:
    from pathlib import Path

    return None if text is None else Path(text).absolute()


def _layers(text: str | None) -> int | str | None:
    if text is None or text == "auto":
        return text
    if not text.isdecimal():
        raise click.BadParameter(f"{text!r} is neither a number of layers nor auto")
    return int(text)


def _intent(report: Report) -> str:
    deployment = report.plan.deployment
    budget = report.plan.goal.accuracy_budget_pct
    limit = "no accuracy budget: the loss is measured and not judged" if budget is None else f"accuracy budget {budget:g} %"
    found = report.plan.distillation
    student = f"{found.verdict} {' '.join(found.notes)}\n" if found and found.teacher else ""
    model = report.profile.model.name
    return f"{student}{model}: weights to {deployment.weights}, KV cache to {deployment.kv_cache}; {limit}."
