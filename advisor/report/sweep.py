"""The answers of a sweep side by side: for each model and load the GPU that serves it best, as text or as a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from advisor.report import units
from advisor.report.deployments import short_deployment
from advisor.report.sanitation import clean
from advisor.types import Answer

MACHINE = ("gpu", "gpus")
NOT_ASKED = (*MACHINE, "model", "objective", "engine", "engine_version")


@dataclass(frozen=True)
class Group:
    """The answers to one question on several machines."""

    model: str
    load: str
    answers: tuple[Answer, ...]
    """all of them, in the sweep's order"""
    best: Answer | None
    """the cheapest, or without prices the one with most output tokens/s per GPU; None: no machine does it"""
    runner_up: Answer | None

    def figure(self, answer: Answer) -> float | None:
        """What the answers of a group are ranked by, smaller is better."""
        return _rank(answer, self.by_cost)

    @property
    def by_cost(self) -> bool:
        """Every plan that keeps the limits has a price."""
        return all(one.cost_per_million_output_tokens is not None for one in self.answers if one.feasible)


def group(answers: Iterable[Answer]) -> tuple[Group, ...]:
    """The answers by model and load, in the order in which they first come."""
    found: dict[tuple[str, ...], list[Answer]] = {}
    for one in answers:
        asked = one.question
        key = (str(asked.get("model")), load_words(one), str(asked.get("objective")), str(asked.get("engine")))
        found.setdefault(key, []).append(one)
    return tuple(_grouped(model, load, members) for (model, load, *_), members in found.items())


def _grouped(model: str, load: str, members: list[Answer]) -> Group:
    feasible = [one for one in members if one.feasible]
    by_cost = all(one.cost_per_million_output_tokens is not None for one in feasible)
    ranked = sorted(feasible, key=lambda one: _rank(one, by_cost) or float("inf"))
    others = [one for one in ranked[1:] if one.question.get("gpu") != ranked[0].question.get("gpu")]
    return Group(clean(model), clean(load), tuple(members), ranked[0] if ranked else None, others[0] if others else None)


def _rank(answer: Answer, by_cost: bool) -> float | None:
    if by_cost:
        return answer.cost_per_million_output_tokens
    speed = answer.expected.output_tokens_per_s_per_gpu if answer.expected else None
    return 1.0 / speed if speed else None


def load_words(answer: Answer) -> str:
    """Traffic and limits in a few words: "rag, concurrency 16, itl_ms 20"."""
    asked = {name: value for name, value in answer.question.items() if name not in NOT_ASKED}
    name = asked.pop("traffic", None)
    words = [str(name)] if name else []
    return ", ".join([*words, *(f"{key} {value}" for key, value in asked.items())]) or "default traffic"


def machine_words(answer: Answer) -> str:
    """The GPUs that are used of those that were offered: "2 x h200", "1 x h200 of 8"."""
    offered = answer.question.get("gpus", 1)
    used = answer.gpus_used if answer.gpus_used is not None else offered
    return clean(f"{used} x {answer.question.get('gpu')}") + (f" of {offered}" if used != offered else "")


def figures(answer: Answer) -> tuple[str, ...]:
    """Plan, output tokens/s, per GPU, TTFT ms, ITL ms, cost per million output tokens; "-" where not known."""
    if answer.error or answer.expected is None or answer.deployment is None:
        return (f"error: {clean(answer.error)}", "-", "-", "-", "-", "-")
    made = answer.expected
    broken = f" (breaks {', '.join(answer.broken)})" if answer.broken else ""
    numbers = (made.output_tokens_per_s, made.output_tokens_per_s_per_gpu, made.ttft_ms, made.itl_ms)
    shown = (units.figure(one) if one is not None else "-" for one in numbers)
    price = answer.cost_per_million_output_tokens
    return (short_deployment(answer.deployment) + broken, *shown, units.figure(price) if price is not None else "-")


def render_sweep_text(answers: Iterable[Answer]) -> str:
    """A table of the best machine for each model and load, then what could not be answered."""
    groups = group(answers)
    head = ("model", "load", "best", "plan", "tokens/s", "per GPU", "TTFT ms", "ITL ms", "cost/M", "next best")
    lines: list[tuple[str, ...]] = [head]
    for one in groups:
        if one.best is None:
            lines.append((one.model, one.load, "none", _why_none(one), "-", "-", "-", "-", "-", "-"))
        else:
            lines.append((one.model, one.load, machine_words(one.best), *figures(one.best), _next(one)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = [_row(line, widths) for line in lines]
    text.insert(1, "-" * len(text[0]))
    failed = sum(bool(answer.error) for one in groups for answer in one.answers)
    total = sum(len(one.answers) for one in groups)
    text += ["", f"{total} plans, {len(groups)} questions; {failed} could not be answered. All figures are estimates."]
    text.append("best: lowest cost per million output tokens (your prices) at that load, else most output tokens/s per GPU")
    return "\n".join(text)


def _row(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [
        one.rjust(size) if 4 <= at <= 8 else one.ljust(size) for at, (one, size) in enumerate(zip(line, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _why_none(one: Group) -> str:
    errors = [answer.error for answer in one.answers if answer.error]
    if len(errors) == len(one.answers):
        return clean(errors[0])
    return "no machine keeps " + ", ".join(sorted({limit for answer in one.answers for limit in answer.broken}))


def _next(one: Group) -> str:
    if one.best is None or one.runner_up is None:
        return "-"
    ours, theirs = one.figure(one.best), one.figure(one.runner_up)
    more = f" ({theirs / ours - 1:+.0%})" if ours and theirs else ""
    return f"{machine_words(one.runner_up)}{more}"


def render_sweep_html(answers: Iterable[Answer]) -> str:
    """A page: for each model and load a bar for every machine, the best one marked. No script, nothing from the network."""
    from advisor.report.templating import fill

    groups = group(answers)
    style = (Path(__file__).parent / "assets" / "page.css").read_text(encoding="utf-8")
    rows = [(one, [_bar(one, answer) for answer in one.answers]) for one in groups]
    return fill("sweep.html.j2", {"rows": rows, "style": style, "text": {"machine": machine_words, "figures": figures}})


def _bar(one: Group, answer: Answer) -> tuple[Answer, float | None, bool]:
    """The answer, the length of its bar (0 to 100, the longest of the group), and whether it is the best."""
    values = [value for each in one.answers if each.feasible and (value := _length(one, each)) is not None]
    value = _length(one, answer) if answer.feasible else None
    return answer, round(100 * value / max(values), 1) if value is not None else None, answer is one.best


def _length(one: Group, answer: Answer) -> float | None:
    if one.by_cost:
        return answer.cost_per_million_output_tokens
    return answer.expected.output_tokens_per_s_per_gpu if answer.expected else None
