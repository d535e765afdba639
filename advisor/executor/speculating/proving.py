"""That speculative decoding gives what the target gives alone, tried on this machine, and how much faster it is here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from advisor.executor.speculating.decoding import Drafter, LookupDrafter, ModelDrafter, Reader, chances, decode, speculate
from advisor.executor.speculating.drafting import Answer, Desk
from advisor.executor.speculating.rejection import NOTHING, Unchanged, accept_everything, check_position, settle
from advisor.types import SpeculationMethod

DRAWS = 20_000
"""drafts settled at one position: tokens of probability 0.00025 and more have a cell of their own"""
POSITIONS = 48
REPEATS = 5
SIGNIFICANCE = 1e-3
"""p-value below which the output counts as changed: one sound rule in a thousand is called biased"""


@dataclass(frozen=True)
class Identity:
    """Greedy answers decoded twice: plainly and with a draft."""

    method: SpeculationMethod
    draft_len: int
    answers: int
    identical: int
    """token by token"""
    tokens: int
    """of the answers, less the first of each"""
    steps: int
    """of the target for them with the draft"""
    drafted_seconds: float
    plain_seconds: float
    gap: float | None
    """smallest difference of the two best logits where an answer first differs; None: none does"""
    predicted_gain: float | None
    """tokens per step over what the steps cost on this machine; None: its drafting is not as an engine does it"""
    bits: int
    """of the arithmetic: near ties of logits are told apart in 32"""

    @property
    def gain(self) -> float:
        """Speed-up of decoding one answer after the other, on this machine."""
        return self.plain_seconds / self.drafted_seconds


@dataclass(frozen=True)
class Sampling:
    """The rejection rule over real probabilities of both models."""

    positions: int
    draws: int
    temperature: float
    rule: Unchanged
    control: Unchanged
    """the same test of a rule that accepts everything: it must fail, else the test says nothing"""

    @property
    def holds(self) -> bool | None:
        """Whether the output is the target's; None: the control was not caught."""
        if self.control.p_value >= SIGNIFICANCE:
            return None
        return self.rule.p_value >= SIGNIFICANCE


def prove_greedy(desk: Desk, answers: Sequence[Answer], method: SpeculationMethod, head: Drafter | None = None) -> Identity:
    """Decode the first answers plainly and with a draft, and compare them token by token. head: what drafts for "eagle3"."""
    order, some = desk.order, answers[: desk.order.proofs]
    asked = {"draft": desk.draft_hash(), "method": method, "draft_len": order.draft_len, "most": order.answer_tokens}
    asked |= {"engine": order.engine, "head": head is not None}
    tick, found = desk.progress.track(f"decoding with {method}", len(some)), []
    for done, one in enumerate(some, 1):
        made = partial(_decode_twice, desk, one, method, head)
        found.append(desk.stage("greedy", order.target, {**asked, "prompt": one.prompt}, made))
        tick(done)
    tokens, steps = (sum(each[name] for each in found) for name in ("tokens", "steps"))
    cost = None if head is not None else desk.stage("cost", order.target, asked, partial(_step_cost, desk, method, some[0]))
    return Identity(
        method=method,
        draft_len=order.draft_len,
        answers=len(some),
        identical=sum(each["gap"] is None for each in found),
        tokens=tokens,
        steps=steps,
        drafted_seconds=sum(each["drafted"] for each in found),
        plain_seconds=sum(each["plain"] for each in found),
        gap=min((each["gap"] for each in found if each["gap"] is not None), default=None),
        predicted_gain=None if cost is None else tokens / steps / cost["ratio"],
        bits=found[0]["bits"],
    )


def _decode_twice(desk: Desk, one: Answer, method: SpeculationMethod, head: Drafter | None) -> dict[str, Any]:
    """One answer plainly and with a draft; "gap" is None where they are identical."""
    order, target = desk.order, desk.model(desk.order.target)
    speculate(target, head or _drafter(desk, method), one.prompt, 3, frozenset(), order.draft_len)  # what is paid for once
    began = _clock(target)
    plain = decode(target, one.prompt, order.answer_tokens, desk.stops())
    between = _clock(target)
    drafter = head or _drafter(desk, method)
    made = speculate(target, drafter, one.prompt, order.answer_tokens, desk.stops(), order.draft_len)
    return {
        "plain": between - began,
        "drafted": _clock(target) - between,
        "tokens": len(made.text) - 1,
        "steps": made.steps,
        "gap": None if made.text == plain.text else _gap(target, one.prompt, plain.text, made.text),
        "bits": 8 * next(target.parameters()).element_size(),
    }


def prove_sampling(desk: Desk, answers: Sequence[Answer]) -> Sampling:
    """Let the rule settle many drafts at positions spread over the answers."""
    import torch

    order, temperature = desk.order, desk.order.temperature or 1.0
    assert order.draft is not None

    def make() -> dict[str, Any]:
        assert order.draft is not None
        generator, rule, control, count = torch.Generator().manual_seed(order.seed), NOTHING, NOTHING, 0
        share = -(-POSITIONS // len(answers))
        tick = desk.progress.track("testing the rejection rule", len(answers))
        for done, one in enumerate(answers, 1):
            text = [*one.prompt, *one.text]
            rows = [Reader(desk.model(folder), desk.width()).read(text) for folder in (order.target, order.draft)]
            for at in torch.linspace(len(one.prompt) - 1, len(text) - 2, min(share, len(one.text))).long().tolist():
                target, draft = (chances(row[at], temperature) for row in rows)
                rule += check_position(target, draft, DRAWS, generator, settle)
                control += check_position(target, draft, DRAWS, generator, accept_everything)
                count += 1
            tick(done)
        return {"rule": rule, "control": control, "positions": count}

    inputs = {
        "draft": desk.draft_hash(),
        "temperature": temperature,
        "answers": [one.text for one in answers],
        "seed": order.seed,
    }
    value = desk.stage("sampling", order.target, inputs, make)
    return Sampling(value["positions"], DRAWS, temperature, Unchanged(*value["rule"]), Unchanged(*value["control"]))


def _drafter(desk: Desk, method: SpeculationMethod) -> Drafter:
    if method == "ngram":
        return LookupDrafter(desk.sizes)
    assert desk.order.draft is not None
    return ModelDrafter(desk.model(desk.order.draft))


def _step_cost(desk: Desk, method: SpeculationMethod, one: Answer) -> dict[str, Any]:
    """ "ratio": a speculative step over a plain one on this machine, drafts and verification timed by themselves."""
    text, draft_len = [*one.prompt, *one.text], desk.order.draft_len
    target = desk.model(desk.order.target)
    verify = _seconds(target, text, min(draft_len + 1, len(text) - 1))
    draft = 0.0
    if method == "draft":
        assert desk.order.draft is not None
        draft = draft_len * _seconds(desk.model(desk.order.draft), text, 1)
    return {"ratio": (verify + draft) / _seconds(target, text, 1)}


def _clock(model: Any) -> float:
    """Seconds; on a CPU those that this process computed, so that others on the machine do not count."""
    return time.process_time() if next(model.parameters()).device.type == "cpu" else time.monotonic()


def _seconds(model: Any, text: Sequence[int], tokens: int) -> float:
    """Median time to read the last tokens of a text with the rest in the cache."""
    reader, took = Reader(model), []
    reader.read(text[:-tokens])
    for _ in range(REPEATS):
        began = _clock(model)
        reader.read(text)
        took.append(_clock(model) - began)
        reader.read(text[: len(text) - tokens])
    return statistics.median(took)


def _gap(model: Any, prompt: Sequence[int], plain: Sequence[int], made: Sequence[int]) -> float:
    """Difference of the two best logits at the first token that differs: tiny where rounding decided a tie."""
    same = next(
        (at for at, pair in enumerate(zip(plain, made, strict=False)) if pair[0] != pair[1]), min(len(plain), len(made))
    )
    best = Reader(model).read([*prompt, *plain[:same]])[-1].topk(2).values
    return float(best[0] - best[1])
