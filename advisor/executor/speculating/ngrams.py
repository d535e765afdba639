"""Drafts looked up in the text so far: the words that followed the last few words when they stood there first.

Both engines take the longest of the n-grams that end the text and stand in it before, and what followed its first appearance:
vLLM in [prompt_lookup_min, prompt_lookup_max] (vllm/v1/spec_decode/ngram_proposer.py, 0.32.0), TensorRT-LLM from
max_matching_ngram_size down to 1 (tensorrt_llm/_torch/speculative/ngram.py @ 02499765, oldest match first). TensorRT-LLM's pool
is meant as it is with is_public_pool: false; the pool that requests share is never pruned there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Sizes(NamedTuple):
    """Shortest and longest n-gram that is looked up, tokens."""

    shortest: int
    longest: int


SIZES = {"tensorrt-llm": Sizes(1, 2), "vllm": Sizes(2, 4)}
"""as the serving files set them: TensorRT-LLM 1.3's own default; vLLM's own are 5 and 5, its examples' 2 and 4"""


class Lookup:
    """One text that grows, and where each of its n-grams stood first."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.tokens: list[int] = []
        self._followed: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on."""
        for token in tokens:
            for size in range(self.sizes.shortest, min(self.sizes.longest, len(self.tokens)) + 1):
                self._followed.setdefault(tuple(self.tokens[-size:]), len(self.tokens))
            self.tokens.append(token)

    def propose(self, draft_len: int) -> tuple[int, ...]:
        """At most draft_len tokens; none where no n-gram repeats."""
        for size in range(min(self.sizes.longest, len(self.tokens)), self.sizes.shortest - 1, -1):
            start = self._followed.get(tuple(self.tokens[-size:]))
            if start is not None:
                return tuple(self.tokens[start : start + draft_len])
        return ()
