"""One measurement of speculative decoding: the target's answers, what each way to draft gives over them, and the proofs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from advisor.errors import ModelProblem
from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.calibration import read_prompts
from advisor.executor.speculating.drafting import Desk, Order
from advisor.executor.speculating.eagle_head import HeadDrafter
from advisor.executor.speculating.making import Made, Making, make_draft
from advisor.executor.speculating.proving import Identity, Sampling, prove_greedy, prove_sampling
from advisor.executor.speculating.replay import LONGEST, Figure, Replay, acceptance_at, tokens_per_step
from advisor.types import Change, Scalar, SpeculationMethod

PREFIX: dict[SpeculationMethod, str] = {"draft": "", "ngram": "ngram_"}
"""before the names of a method's measured facts; a head made here has none: no rule asks for one that is not published"""


@dataclass(frozen=True)
class Way:
    """What one way to draft gave."""

    method: SpeculationMethod
    replays: tuple[Replay, ...]
    identity: Identity
    sampling: Sampling | None
    """None: its guesses are certain, there is nothing to draw"""
    seed: int

    def tokens(self) -> dict[int, Figure]:
        """Draft length -> tokens per verification step with the interval; no length that every answer is too short for."""
        found = {length: tokens_per_step(self.replays, length, self.seed) for length in range(1, LONGEST + 1)}
        return {length: figure for length, figure in found.items() if figure is not None}

    def accepted(self) -> dict[int, Figure | None]:
        """Position in the draft -> probability of acceptance there."""
        return {position: acceptance_at(self.replays, position, self.seed) for position in range(1, LONGEST + 1)}

    def facts(self) -> dict[str, Scalar]:
        """As measured facts, each the low end of its interval: what lies within the noise must not decide. A draft of one token
        gives 1 + acceptance tokens a step."""
        if self.method not in PREFIX:
            return {}
        prefix, given = PREFIX[self.method], {length: round(figure[1], 4) for length, figure in self.tokens().items()}
        found: dict[str, Scalar] = {f"{prefix}acceptance": round(given[1] - 1, 4)}
        return found | {f"{prefix}tokens_per_step_{length}": tokens for length, tokens in given.items()}

    @property
    def gate(self) -> Literal["passed", "failed", "inconclusive"]:
        """Whether the output is the target's own. A greedy answer may differ where two logits tie in 16 bits."""
        if self.sampling is not None and self.sampling.holds is False:
            return "failed"
        if self.identity.identical < self.identity.answers:
            return "failed" if self.identity.bits == 32 else "inconclusive"
        return "passed" if self.sampling is None or self.sampling.holds else "inconclusive"


@dataclass(frozen=True)
class Measured:
    """What a measurement gave."""

    order: Order
    answers: int
    tokens: int
    """of the answers"""
    ways: tuple[Way, ...]
    seconds: float
    peak_gib: float
    made: Made | None = None
    """the draft that was made for it"""


Weigh = Callable[[Measured], tuple[tuple[Change, ...], dict[str, Scalar]]]
"""a measurement -> what it is worth where it will be served, and the facts for the rules"""


def check_order(order: Order) -> None:
    """Refuse before any work what cannot be measured. Raises MissingExtra, ModelProblem, NotPossible, FileProblem."""
    read_prompts(order.prompts, lambda _messages: "")
    causal_model.require_libraries("torch", "transformers", "safetensors")
    causal_model.check_folder(order.target)
    if order.draft is not None:
        if not order.draft.is_dir():
            raise ModelProblem("there is no such folder", where=str(order.draft), hint="give the folder of the draft's files")
        causal_model.check_folder(order.draft)
    causal_model.check_decoding([order.target, *([order.draft] if order.draft else ())])


def measure(order: Order, journal: Journal, progress: Progress, making: Making | None = None) -> Measured:
    """Answer, replay, prove; before it the draft is made where one is to be. Finished stages are taken from the journal.

    Raises InputError, ModelProblem, NotPossible, FileProblem, MissingExtra.
    """
    began = time.monotonic()
    made, head = None, None
    if making is not None:
        made, model = make_draft(making, order, journal, progress)
        order = order if model is not None else replace(order, draft=made.folder)
        head = HeadDrafter(model) if model is not None else None
    desk = Desk(order, journal, progress)
    if order.draft is not None:
        desk.check_draft()
    answers = desk.answers()
    accepted = [desk.accepted_ngrams(answers)]
    if order.draft is not None:
        accepted.insert(0, desk.accepted_drafts(answers))
    ways = []
    for one in accepted:
        identity = prove_greedy(desk, answers, one.method)
        sampling = prove_sampling(desk, answers[: order.proofs]) if one.method == "draft" else None
        ways.append(Way(one.method, one.replays, identity, sampling, order.seed))
    if head is not None:
        some = answers[: order.proofs]
        replays = desk.accepted_guesses("eagle3", head, some).replays
        ways.insert(0, Way("eagle3", replays, prove_greedy(desk, some, "eagle3", head), None, order.seed))
    tokens = sum(len(one.text) for one in answers)
    return Measured(order, len(answers), tokens, tuple(ways), time.monotonic() - began, causal_model.peak_gib(), made)
