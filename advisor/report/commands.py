"""The commands that a report offers: what repeats it, and what comes next. Quoted for a POSIX shell."""

from __future__ import annotations

import shlex

from advisor.report.outcome import unpublished
from advisor.types import Report

_SHOWING = ("--format", "-f", "-o", "--output", "--estimator")
"""options with a value that only the advice takes"""


def repeat(report: Report) -> str:
    """The command that made this report, or one that asks the same question."""
    return _line(report.command) if report.command else _line(_question(report))


def upcoming(report: Report) -> tuple[tuple[str, str], ...]:
    """(what it does, command): the next steps after reading this report."""
    question = _arguments(report)
    if unpublished(report):
        again = _line(("apply", *question, "--out", "applied", "--resume"))
        return (("decide again with what was measured, and try the fallback", again),)
    if report.changes:
        return ()
    if not report.plan.feasible:
        student = report.plan.distillation and any(one.here and one.rounds == 1 for one in report.plan.distillation.students)
        make = _line(("apply", *question, "--student-layers", "auto", "--calibration", "prompts.jsonl", "--out", "applied"))
        return (("distil the student, quantize it, and measure each step", make),) if student else ()
    return (
        ("write the serving files only; changes nothing else", _line(("emit", *question, "--out", "serving"))),
        ("do it, measure each step, stop at a gate that fails", _line(("apply", *question, "--out", "applied"))),
    )


def pieces(command: str) -> list[str]:
    """A quoted command in pieces that belong on one line: an option stays with its value."""
    found: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if found and not word.startswith("-") and found[-1].startswith("-") and " " not in found[-1] and "=" not in found[-1]:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def split_lines(command: str, width: int, indent: str = "") -> list[str]:
    """A quoted command in lines that can be pasted, each but the last ending in a backslash."""
    lines = [""]
    for piece in pieces(command):
        if lines[-1] and len(lines[-1]) + len(piece) + 3 > width:
            lines.append("  " + piece)
        else:
            lines[-1] += f" {piece}" if lines[-1] else piece
    return [f"{indent}{line} \\" for line in lines[:-1]] + [indent + lines[-1]]


def _line(arguments: tuple[str, ...]) -> str:
    return shlex.join(("advise", *arguments))


def _arguments(report: Report) -> tuple[str, ...]:
    """The question's own arguments: without a subcommand, and without how the answer is shown."""
    if not report.command or not report.command[0].startswith("-"):
        return _question(report)
    kept: list[str] = []
    words = iter(report.command)
    for word in words:
        if word in _SHOWING:
            next(words, None)
        elif word != "--grid" and not word.startswith(tuple(f"{flag}=" for flag in _SHOWING)):
            kept.append(word)
    return tuple(kept)


def _question(report: Report) -> tuple[str, ...]:
    profile = report.profile
    traffic, goal, engine = profile.traffic, profile.goal, profile.engine
    # "=" keeps a name that begins with "-" from being read as an option
    words = [f"--model={profile.model.folder or profile.model.name}", f"--gpu={profile.gpu.id or profile.gpu.name}"]
    if profile.gpu.count > 1:
        words += ["--gpus", str(profile.gpu.count)]
    words += ["--isl", f"{traffic.isl.mean:.0f}", "--osl", f"{traffic.osl.mean:.0f}"]
    if traffic.rate is not None:
        words += ["--rate", f"{traffic.rate:g}"]
    elif traffic.concurrency is not None:
        words += ["--concurrency", f"{traffic.concurrency:g}"]
    for flag, value in (
        ("--ttft-ms", goal.ttft_ms),
        ("--itl-ms", goal.itl_ms),
        ("--accuracy-budget", goal.accuracy_budget_pct),
    ):
        if value is not None:
            words += [flag, f"{value:g}"]
    words += ["--objective", goal.objective, "--engine", engine.name, f"--engine-version={engine.version}"]
    return tuple(words)
