"""How often a target accepts a draft's tokens on the user's own prompts, measured with the real models on this machine.

The text that acceptance is judged on is the target's own answer to each prompt, never the prompt: replay.py says how it is
judged. Answers and replays are stages of the journal, one a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from advisor.errors import InputError, ModelProblem
from advisor.executor.bookkeeping.journal import Journal, digest, hash_folder
from advisor.executor.bookkeeping.progress import Progress
from advisor.executor.judging.trial import memory_errors
from advisor.executor.quantizing import causal_model
from advisor.executor.quantizing.calibration import SHORTEST, read_prompts
from advisor.executor.quantizing.checkpoint import load_exported
from advisor.executor.speculating.decoding import Drafter, LookupDrafter, chances, decode, greedy, sampler
from advisor.executor.speculating.ngrams import SIZES, Sizes
from advisor.executor.speculating.replay import LONGEST, Replay, rates_of_run, replay
from advisor.types import SpeculationMethod

FEWEST = 2
"""answers without which there is no interval"""


@dataclass(frozen=True)
class Order:
    """What to measure, on which machine's models."""

    target: Path
    prompts: Path
    engine: str
    """whose look-up of n-grams is replayed"""
    draft: Path | None = None
    """a smaller model's folder; None: n-grams alone"""
    served: Path | None = None
    """the target's exported checkpoint, which is read back to answer as it will be served; None: the target as it is"""
    count: int = 32
    """prompts at most"""
    answer_tokens: int = 64
    """tokens of an answer at most"""
    prompt_tokens: int = 512
    """no prompt is longer"""
    temperature: float = 0.0
    """0: greedy"""
    draft_len: int = 4
    """of the drafts that are really decoded with, for the proof"""
    proofs: int = 8
    """prompts that are decoded speculatively too and compared token by token"""
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """A prompt and what the target itself says to it."""

    prompt: tuple[int, ...]
    text: tuple[int, ...]
    chances: tuple[float, ...] = field(default=(), repr=False)
    """the target's probability of each token at the temperature; none when greedy"""


@dataclass(frozen=True)
class Acceptance:
    """One way to draft, replayed over every answer."""

    method: SpeculationMethod
    replays: tuple[Replay, ...]


class Desk:
    """The models, the journal and the answers that one measurement shares."""

    def __init__(self, order: Order, journal: Journal, progress: Progress) -> None:
        self.order, self.journal, self.progress = order, journal, progress
        self.tokenizer = causal_model.load_tokenizer(order.target)
        self._stops: frozenset[int] = frozenset()
        self._loaded: dict[Path, Any] = {}
        self._hashes: dict[Path, str] = {}

    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Token ids of the first prompts that are long enough. Raises FileProblem, InputError."""
        order = self.order
        render = causal_model.chat_renderer(self.tokenizer, str(order.prompts), to_answer=True)
        texts = dict.fromkeys(read_prompts(order.prompts, render))
        found = []
        for text in texts:
            ids = tuple(self.tokenizer(text, truncation=True, max_length=order.prompt_tokens)["input_ids"])
            if len(ids) >= SHORTEST:
                found.append(ids)
            if len(found) == order.count:
                break
        if len(found) < FEWEST:
            raise InputError(
                f"{len(found)} different prompts of {SHORTEST} tokens or more: {FEWEST} at least are needed for an interval",
                where=str(order.prompts),
                hint="give the prompts that the server gets",
            )
        return tuple(found)

    def model(self, folder: Path) -> Any:
        """A model of a folder; in 32 bits on a CPU, where two near ties in 16 bits would make texts differ by chance."""
        if folder not in self._loaded:
            causal_model.set_seed(self.order.seed)
            made = causal_model.load_model(folder)
            if folder == self.order.target and self.order.served is not None:
                made = load_exported(made, self.order.served)
            self._loaded[folder] = made.float() if next(made.parameters()).device.type == "cpu" else made
        return self._loaded[folder]

    def width(self) -> int:
        """Tokens that both models give a logit: some vocabularies are padded."""
        folders = [self.order.target, *([self.order.draft] if self.order.draft else ())]
        return min(int(self.model(folder).config.get_text_config().vocab_size) for folder in folders)

    def stops(self) -> frozenset[int]:
        """Tokens that end an answer, as the model's generation config says."""
        if not self._stops:
            said = self.model(self.order.target).generation_config.eos_token_id
            said = said if said is not None else self.tokenizer.eos_token_id
            self._stops = frozenset(said if isinstance(said, list) else [said] if said is not None else [])
        return self._stops

    def check_draft(self) -> None:
        """Raise ModelProblem unless the draft's tokenizer gives the same ids as the target's."""
        assert self.order.draft is not None
        if causal_model.load_tokenizer(self.order.draft).get_vocab() != self.tokenizer.get_vocab():
            raise ModelProblem(
                "the draft's tokenizer is not the target's: its tokens mean other words",
                where=str(self.order.draft),
                hint="take a draft of the same family, or make one from the target itself",
            )

    def answers(self) -> tuple[Answer, ...]:
        """What the target says to each prompt."""
        order, found = self.order, []
        prompts = self.prompts()
        tick = self.progress.track("the target answers", len(prompts))
        for done, prompt in enumerate(prompts, 1):

            def make(prompt: tuple[int, ...] = prompt) -> dict[str, Any]:
                noted: list[float] = []
                made = decode(
                    self.model(order.target), prompt, order.answer_tokens, self.stops(), self._choose(digest(prompt), noted)
                )
                return {"text": made.text, "chances": noted}

            value = self.stage("answer", order.target, {"prompt": prompt, **self._asked()}, make)
            found.append(Answer(prompt, tuple(value["text"]), tuple(value["chances"])))
            tick(done)
        long = [one for one in found if len(one.text) > 2]
        if len(long) < FEWEST:
            raise InputError(
                f"the target ends its answer at once on all but {len(long)} of {len(found)} prompts",
                where=str(order.prompts),
                hint="give prompts that ask for more than a word; messages for a chat model",
            )
        return tuple(long)

    def accepted_drafts(self, answers: Sequence[Answer]) -> Acceptance:
        """Of the draft model, by one reading of each answer."""
        assert self.order.draft is not None
        found = []
        tick = self.progress.track("the draft reads the answers", len(answers))
        for done, one in enumerate(answers, 1):
            inputs = {"prompt": one.prompt, "text": one.text, "target": self.hash(self.order.target), **self._asked()}
            value = self.stage("draft", self.order.draft, inputs, partial(self._agreement, one))
            found.append(replay(rates_of_run(value["rates"])))
            tick(done)
        return Acceptance("draft", tuple(found))

    def accepted_ngrams(self, answers: Sequence[Answer]) -> Acceptance:
        """Of the engine's look-up."""
        return Acceptance("ngram", tuple(replay(guessed_rates(LookupDrafter(self.sizes), one)) for one in answers))

    def accepted_guesses(self, method: SpeculationMethod, drafter: Drafter, answers: Sequence[Answer]) -> Acceptance:
        """Of a drafter whose guesses depend on its own guesses: made anew at every token, which takes long."""
        found = []
        tick = self.progress.track(f"{method} guesses along the answers", len(answers))
        for done, one in enumerate(answers, 1):
            found.append(replay(guessed_rates(drafter, one)))
            tick(done)
        return Acceptance(method, tuple(found))

    @property
    def sizes(self) -> Sizes:
        """Of the n-grams that the engine looks up."""
        return SIZES[self.order.engine]

    def stage(self, name: str, folder: Path, inputs: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A value that depends on a model's files and the inputs, from the journal or made now."""
        key = {"model": self.hash(folder), **inputs}
        with memory_errors():
            value, _ = self.journal.do(f"{name}/{digest(key)[:16]}", key, lambda: (make(), ()))
        return value

    def _agreement(self, one: Answer) -> dict[str, Any]:
        """ "rates": probability that the draft's token is accepted, for every token of the answer but the first."""
        import torch

        assert self.order.draft is not None
        model = self.model(self.order.draft)
        ids = torch.tensor([[*one.prompt, *one.text[:-1]]], device=next(model.parameters()).device)
        with torch.inference_mode():
            rows = model(input_ids=ids).logits[0, len(one.prompt) :].float().cpu()
        if not self.order.temperature:
            return {"rates": [float(row.argmax() == token) for row, token in zip(rows, one.text[1:], strict=True)]}
        theirs = [float(chances(row, self.order.temperature)[token]) for row, token in zip(rows, one.text[1:], strict=True)]
        return {"rates": [min(1.0, draft / target) for draft, target in zip(theirs, one.chances[1:], strict=True)]}

    def _choose(self, key: str, noted: list[float]) -> Callable[[Any], int]:
        import torch

        if not self.order.temperature:
            return greedy
        draw = sampler(self.order.temperature, torch.Generator().manual_seed(int(key[:12], 16) + self.order.seed))

        def choose(logits: Any) -> int:
            token = draw(logits)
            noted.append(float(chances(logits, self.order.temperature)[token]))
            return token

        return choose

    def _asked(self) -> dict[str, Any]:
        order = self.order
        return {"most": order.answer_tokens, "temperature": order.temperature, "seed": order.seed}

    def draft_hash(self) -> str | None:
        """Of the draft's files; None without one."""
        return None if self.order.draft is None else self.hash(self.order.draft)

    def hash(self, folder: Path) -> str:
        """Of a folder's files, read once."""
        if folder not in self._hashes:
            served = self.order.served if folder == self.order.target else None
            self._hashes[folder] = digest([hash_folder(folder), hash_folder(served) if served else {}])
        return self._hashes[folder]


def guessed_rates(drafter: Drafter, one: Answer, longest: int = LONGEST) -> tuple[tuple[float, ...], ...]:
    """Replay's rates of certain guesses along an answer: what is accepted is what the text says, at any temperature."""
    found = []
    for start in range(1, len(one.text)):
        guesses, _ = drafter.propose([*one.prompt, *one.text[:start]], min(longest, len(one.text) - start))
        found.append(tuple(float(guess == true) for guess, true in zip(guesses, one.text[start:], strict=False)))
    return tuple(found)
