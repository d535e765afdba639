"""Decoding with a key-value cache: plain, and speculatively with a draft whose tokens the target settles in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from advisor.errors import NotPossible
from advisor.executor.speculating.ngrams import Lookup, Sizes
from advisor.executor.speculating.rejection import settle


class Reader:
    """A causal model and the cache of what it has read."""

    def __init__(self, model: Any, width: int | None = None) -> None:
        """width: logits of the first so many tokens are given; some vocabularies are padded."""
        self.model = model
        self.width = width
        self.tokens: list[int] = []
        self._cache: Any = None

    def read(self, text: Sequence[int]) -> Any:
        """Logits after each token of the text that was not read yet, shape (new tokens, vocabulary), 32 bits.

        What was read and is not how the text begins is forgotten; at least its last token is read again.
        Raises NotPossible: a cache that cannot be cut (recurrent layers).
        """
        import torch

        kept = 0
        for known, token in zip(self.tokens, text[:-1], strict=False):
            if known != token:
                break
            kept += 1
        if kept < len(self.tokens):
            self._cut(kept)
        new = torch.tensor([text[kept:]], device=next(self.model.parameters()).device)
        with torch.inference_mode():
            made = self.model(input_ids=new, past_key_values=self._cache, use_cache=True)
        self._cache, self.tokens = made.past_key_values, list(text)
        return made.logits[0, :, : self.width].float().cpu()

    def _cut(self, length: int) -> None:
        if not length:
            self._cache = None
        elif not hasattr(self._cache, "crop"):
            raise NotPossible(
                f"the cache of {type(self.model).__name__} cannot be cut back to the accepted tokens",
                where=type(self._cache).__name__,
                hint="speculation is tried on models with attention in every layer",
            )
        else:
            self._cache.crop(length)
        self.tokens = self.tokens[:length]


class Drafter(Protocol):
    """What guesses the next tokens."""

    def propose(self, text: Sequence[int], draft_len: int) -> tuple[tuple[int, ...], Any]:
        """Tokens after a text, and their distributions, shape (tokens, vocabulary); None: the guesses are certain."""


class ModelDrafter:
    """A smaller model that drafts token by token; greedily, or from its distribution at a temperature."""

    def __init__(self, model: Any, temperature: float = 0.0, generator: Any = None) -> None:
        self.reader = Reader(model)
        self.temperature = temperature
        self.generator = generator

    def propose(self, text: Sequence[int], draft_len: int) -> tuple[tuple[int, ...], Any]:
        """As Drafter's."""
        import torch

        guesses: list[int] = []
        rows = []
        for _ in range(draft_len):
            logits = self.reader.read([*text, *guesses])[-1]
            if self.temperature:
                rows.append(chances(logits, self.temperature))
                guesses.append(int(torch.multinomial(rows[-1], 1, generator=self.generator)))
            else:
                guesses.append(int(logits.argmax()))
        return tuple(guesses), torch.stack(rows) if rows else None


class LookupDrafter:
    """n-grams of the text so far."""

    def __init__(self, sizes: Sizes) -> None:
        self.lookup = Lookup(sizes)

    def propose(self, text: Sequence[int], draft_len: int) -> tuple[tuple[int, ...], Any]:
        """As Drafter's."""
        self.lookup.extend(text[len(self.lookup.tokens) :])
        return self.lookup.propose(draft_len), None


@dataclass(frozen=True)
class Decoded:
    """What a decoding gave."""

    text: tuple[int, ...]
    steps: int
    """of the target after the prompt's own"""


Choose = Callable[[Any], int]
"""one row of logits -> a token"""


def greedy(logits: Any) -> int:
    """The most likely token."""
    return int(logits.argmax())


def sampler(temperature: float, generator: Any) -> Choose:
    """A token drawn at a temperature."""

    def draw(logits: Any) -> int:
        import torch

        return int(torch.multinomial(chances(logits, temperature), 1, generator=generator))

    return draw


def chances(logits: Any, temperature: float) -> Any:
    """Probabilities at a temperature, 64 bits."""
    return (logits.double() / temperature).softmax(-1)


def decode(model: Any, prompt: Sequence[int], most: int, stops: frozenset[int], choose: Choose = greedy) -> Decoded:
    """Plain decoding of at most `most` tokens; a stop token ends the text and is part of it."""
    reader, text = Reader(model), list(prompt)
    while len(text) - len(prompt) < most and not (len(text) > len(prompt) and text[-1] in stops):
        text.append(choose(reader.read(text)[-1]))
    made = tuple(text[len(prompt) :])
    return Decoded(made, max(0, len(made) - 1))


def speculate(
    model: Any, drafter: Drafter, prompt: Sequence[int], most: int, stops: frozenset[int], draft_len: int,
    *, temperature: float = 0.0, generator: Any = None,
) -> Decoded:  # fmt: skip
    """The same text (greedy), or one of the same distribution (temperature > 0), in fewer steps of the target."""
    reader = Reader(model)
    choose = sampler(temperature, generator) if temperature else greedy
    text = [*prompt, choose(reader.read(prompt)[-1])]
    steps = 0
    while (left := most - (len(text) - len(prompt))) > 0 and text[-1] not in stops:
        guesses, rows = drafter.propose(text, min(draft_len, left - 1) if left > 1 else 0) if left > 1 else ((), None)
        logits = reader.read([*text, *guesses])[-len(guesses) - 1 :]
        steps += 1
        for given in _settled(logits, guesses, rows, choose, temperature, generator):
            text.append(given)
            if given in stops:
                break
    return Decoded(tuple(text[len(prompt) :]), steps)


def _settled(logits: Any, guesses: tuple[int, ...], rows: Any, choose: Choose, temperature: float, generator: Any) -> list[int]:
    """The accepted guesses and the one token more that every step gives."""
    import torch

    given: list[int] = []
    for place, guess in enumerate(guesses):
        if temperature:
            target = chances(logits[place], temperature)
            draft = rows[place] if rows is not None else torch.nn.functional.one_hot(torch.tensor(guess), len(target)).double()
            token, accepted = (int(each[0]) for each in settle(target, draft, torch.tensor([guess]), generator))
        else:
            token = greedy(logits[place])
            accepted = token == guess
        given.append(token)
        if not accepted:
            return given
    return [*given, choose(logits[len(guesses)])]
