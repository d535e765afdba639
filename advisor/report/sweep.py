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
LATENCIES = {"ttft_ms": "TTFT", "itl_ms": "ITL"}
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
    """Traffic and limits in a few words: "rag, concurrency 16, ITL 20 ms"."""
    asked = {name: value for name, value in answer.question.items() if name not in NOT_ASKED}
    name = asked.pop("traffic", None)
    words = [str(name)] if name else []
    words += [f"{LATENCIES[key]} {value} ms" if key in LATENCIES else f"{key} {value}" for key, value in asked.items()]
    return ", ".join(words) or "default traffic"


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
    broken = f" (breaks {_limits([answer])})" if answer.broken else ""
    numbers = (made.output_tokens_per_s, made.output_tokens_per_s_per_gpu, made.ttft_ms, made.itl_ms)
    shown = (units.figure(one) if one is not None else "-" for one in numbers)
    price = answer.cost_per_million_output_tokens
    return (short_deployment(answer.deployment) + broken, *shown, units.figure(price) if price is not None else "-")


def render_sweep_text(answers: Iterable[Answer]) -> str:
    """For each model a table of the best machine for each load, its plan below; then what could not be answered."""
    groups = group(answers)
    head = ("load", "best", "tokens/s", "per GPU", "TTFT ms", "ITL ms", "cost/M")
    rows = [(one.load, *_best_row(one)) for one in groups]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    text: list[str] = []
    for at, (one, row) in enumerate(zip(groups, rows, strict=True)):
        if at == 0 or groups[at - 1].model != one.model:
            text += [*([""] if text else []), one.model, _row(head, widths), "-" * (sum(widths) + 2 * len(widths) - 2)]
        text += [_row(row, widths), f"{'':{widths[0]}}  {_below(one)}"]
    failed = sum(bool(answer.error) for one in groups for answer in one.answers)
    total = sum(len(one.answers) for one in groups)
    text += ["", f"{total} plans, {len(groups)} questions; {failed} could not be answered. All figures are estimates."]
    text.append("best: lowest cost per million output tokens (your prices) at that load, else most output tokens/s per GPU")
    return "\n".join(text)


def _best_row(one: Group) -> tuple[str, ...]:
    return ("none", *"-----") if one.best is None else (machine_words(one.best), *figures(one.best)[1:])


def _below(one: Group) -> str:
    """The plan, and what comes next to its machine; or why no machine does it."""
    return _why_none(one) if one.best is None else f"{figures(one.best)[0]}; next best {_next(one)}"


def _row(line: Sequence[str], widths: Sequence[int]) -> str:
    cells = [one.ljust(size) if at < 2 else one.rjust(size) for at, (one, size) in enumerate(zip(line, widths, strict=True))]
    return "  ".join(cells).rstrip()


def _why_none(one: Group) -> str:
    errors = [answer.error for answer in one.answers if answer.error]
    if len(errors) == len(one.answers):
        return clean(errors[0])
    return f"no machine keeps {_limits(one.answers)}"


def _limits(answers: Iterable[Answer]) -> str:
    return ", ".join(sorted({LATENCIES.get(limit, limit) for each in answers for limit in each.broken}))


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
