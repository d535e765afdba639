"""Calibration and evaluation prompts: read, freed of doubles, split so that none leaks, matched to production's lengths."""

from __future__ import annotations

import gzip
import hashlib
import heapq
import io
import json
import math
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem, InputError
from advisor.library import read_text
from advisor.types import Calibration

LARGEST = 512 * 2**20
SHORTEST = 8
"""tokens of a prompt below which there is nothing to learn or judge from it"""
_SHINGLE = 5
_SKETCH = 32
_ALIKE = 0.7
"""share of equal word sequences from which two prompts count as the same"""
_COMMON = 0.2
"""a word sequence in more than this share of the prompts is a template's and says nothing about one of them"""
SAMPLED = 4096
"""prompts drawn from a trace at most"""
Tokenize = Callable[[str], list[int]]
Render = Callable[[list[dict[str, str]]], str]


@dataclass(frozen=True)
class Split:
    """Token ids to calibrate on and to judge by. No prompt of one is in the other, nor one nearly like it."""

    calibration: tuple[tuple[int, ...], ...]
    evaluation: tuple[tuple[int, ...], ...]
    reserve: tuple[tuple[int, ...], ...]
    """production's prompts that are in neither: what a recalibration can draw on"""
    training: tuple[tuple[int, ...], ...]
    """texts that were given to train on; none of them is nearly one that judges, or may"""
    read: int
    """prompts in the files"""
    duplicates: int
    """of them dropped as doubles or near-doubles"""
    short: int
    """of them dropped for having fewer than SHORTEST tokens"""
    distance: float | None
    """of the calibration's tokens from production's, 0 the same to 1 disjoint; None: nothing to compare with"""
    apart: bool = False
    """production's prompts are others than those to calibrate on"""
    source: str = ""
    """where the calibration's prompts are from"""
    production: str = ""
    """where production's are from"""

    @property
    def lessons(self) -> tuple[tuple[int, ...], ...]:
        """What a remedy may train on: the texts given for it, else production's that do not judge, else the calibration's."""
        if self.training:
            return self.training
        return (self.reserve or self.calibration) if self.apart else (*self.calibration, *self.reserve)


def read_prompts(path: Path, render: Render) -> tuple[str, ...]:
    """The texts of a JSONL file of {"text": …}, {"prompt": …} or {"messages": [{"role": …, "content": …}]} lines, in order.

    render: messages -> text by the model's chat template. Raises FileProblem with the line at fault.
    """
    found = []
    for number, line in enumerate(read_text(path, largest=LARGEST, what="file of prompts").splitlines(), 1):
        if line.strip():
            found.append(_prompt(line, f"{path}:{number}", render))
    if not found:
        raise FileProblem(
            "there are no prompts in this file", where=str(path), hint='a line is {"text": …} or {"messages": […]}'
        )
    return tuple(found)


def sample_trace(path: Path, render: Render, *, count: int = SAMPLED, seed: int = 0) -> tuple[str, ...]:
    """The texts of a random sample of a request trace's lines; empty where it has lengths alone.

    A trace of JSON lines, plain or gzip, may hold a text, a prompt or messages beside its lengths; CSV is not looked into.
    Read once, in memory for the sample only. Raises FileProblem.
    """
    kept: list[tuple[int, int, str]] = []  # a heap: the line with the largest draw first
    try:
        with path.open("rb") as raw:
            plain = gzip.GzipFile(fileobj=raw) if raw.peek(2)[:2] == b"\x1f\x8b" else raw
            for number, line in enumerate(io.TextIOWrapper(plain, encoding="utf-8-sig"), 1):
                if number == 1 and not line.lstrip().startswith("{"):
                    return ()
                draw = -int.from_bytes(hashlib.blake2b(f"{seed}:{number}".encode(), digest_size=8).digest(), "big")
                if (len(kept) < count or draw > kept[0][0]) and line.strip() and _has_text(line):
                    (heapq.heappush if len(kept) < count else heapq.heapreplace)(kept, (draw, number, line))
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise FileProblem(f"this trace cannot be read: {error}", where=str(path), hint="check the file") from None
    return tuple(_prompt(line, f"{path}:{number}", render) for _, number, line in sorted(kept, key=lambda one: one[1]))


def describe_calibration(
    calibration: Sequence[Sequence[int]], split: Split, lengths: Sequence[int], *, tokens: int, seed: int = 0
) -> Calibration:
    """How like production's the prompts are that a model is calibrated on: their tokens, and their lengths.

    lengths: input lengths of production, tokens; tokens: what every prompt is cut to, at most.
    """
    production = split.evaluation + split.reserve
    seen = _counts(calibration)
    theirs = _counts(production)
    total = sum(theirs.values())
    own, wanted = sorted(map(len, calibration)), sorted(min(length, tokens) for length in lengths)
    return Calibration(
        source=split.source,
        prompts=len(calibration),
        tokens=sum(own),
        duplicates=split.duplicates,
        short=split.short,
        production=split.production,
        distance=None if (found := token_distance(calibration, production, seed=seed)) is None else round(found, 4),
        unseen_pct=round(100 * sum(n for token, n in theirs.items() if token not in seen) / total, 2) if total else None,
        length_p50=_quantile(own, 0.5),
        length_p95=_quantile(own, 0.95),
        production_p50=_quantile(wanted, 0.5) if wanted else None,
        production_p95=_quantile(wanted, 0.95) if wanted else None,
    )


def split_prompts(
    calibration: Sequence[str],
    production: Sequence[str] | None,
    tokenize: Tokenize,
    *,
    training: Sequence[str] = (),
    prompts: int,
    held_out: int,
    tokens: int,
    lengths: Sequence[int] = (),
    seed: int = 0,
) -> Split:
    """Split prompts into what calibrates and what judges.

    calibration: the texts to calibrate on. production: a sample of production's own; None: the calibration texts are it.
    training: texts to train on; they may calibrate too, but those that are nearly one that judges, or may, are dropped.
    prompts: calibrate on at most so many. held_out: judge by at most so many, drawn from production, never more than half
    of it. tokens: no prompt is longer. lengths: input lengths of production; prompts are cut to their quantiles.
    Raises InputError when too few are left.
    """
    own = production is None
    texts = [*calibration, *(production or ())]
    kept, duplicates = _distinct(texts, first=len(calibration) if not own else 0)
    encoded = {index: tuple(tokenize(texts[index])[:tokens]) for index in kept}
    long = [index for index in kept if len(encoded[index]) >= SHORTEST]
    mine = _shuffled([index for index in long if own or index < len(calibration)], texts, seed)
    theirs = mine if own else _shuffled([index for index in long if index >= len(calibration)], texts, seed)
    judges = theirs[: min(held_out, len(theirs) // 2)]
    rest = theirs[len(judges) :]
    teachers = (rest if own else mine)[:prompts]
    if len(judges) < 2 or not teachers:
        raise InputError(
            f"{len(long)} different prompts of {SHORTEST} tokens or more are too few to calibrate and to judge",
            where=f"{len(texts)} prompts read, {duplicates} of them doubles",
            hint="give hundreds of production prompts",
        )
    taken = set(teachers)
    reserve = [index for index in rest if index not in taken]
    matched = [match_lengths([encoded[index] for index in group], lengths) for group in (teachers, judges, reserve)]
    trains = _apart(training, [texts[index] for index in (*judges, *reserve)])
    lessons = tuple(each for each in (tuple(tokenize(text)[:tokens]) for text in trains) if len(each) >= SHORTEST)
    if training and not lessons:
        raise InputError(
            f"none of the {len(training)} texts to train on is left",
            where=f"each has fewer than {SHORTEST} tokens, or is nearly one of production's that judge or may",
            hint="give other texts, or none: production's that do not judge are trained on then",
        )
    return Split(
        calibration=matched[0],
        evaluation=matched[1],
        reserve=matched[2],
        training=lessons,
        read=len(texts),
        duplicates=duplicates,
        short=len(kept) - len(long),
        distance=token_distance(matched[0], matched[1] + matched[2], seed=seed),
        apart=not own,
    )


def match_lengths(prompts: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Cut prompts so that their lengths follow production's: the k-th longest to the k-th quantile, none made longer."""
    if not lengths or not prompts:
        return tuple(prompts)
    wanted = sorted(lengths)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    cut = list(prompts)
    for rank, index in enumerate(order):
        quantile = wanted[min(len(wanted) - 1, int((rank + 0.5) / len(order) * len(wanted)))]
        cut[index] = prompts[index][: max(SHORTEST, quantile)]
    return tuple(cut)


def token_distance(
    one: Sequence[Sequence[int]], other: Sequence[Sequence[int]], *, seed: int = 0, shuffles: int = 5
) -> float | None:
    """How far apart the token distributions of two sets of prompts are, 0 the same to 1 disjoint.

    The Jensen-Shannon divergence in bits, less what two samples of these sizes from one distribution would show (the mean
    over shuffles of the pooled prompts), scaled so that disjoint stays 1: raw, two small samples of the same text already
    look 0.3 apart. None: a side is empty.
    """
    if not one or not other:
        return None
    seen = jensen_shannon(_counts(one), _counts(other))
    pool, chance, draw = [*one, *other], 0.0, random.Random(seed)
    for _ in range(shuffles):
        draw.shuffle(pool)
        chance += jensen_shannon(_counts(pool[: len(one)]), _counts(pool[len(one) :])) / shuffles
    return 1.0 if chance >= 1 else min(1.0, max(0.0, (seen - chance) / (1 - chance)))


def jensen_shannon(one: Counter[int], other: Counter[int]) -> float:
    """Jensen-Shannon divergence of two count vectors in bits, 0 to 1 (Lin 1991)."""
    total, others = sum(one.values()), sum(other.values())
    found = 0.0
    for token in one.keys() | other.keys():
        left, right = one[token] / total, other[token] / others
        middle = (left + right) / 2
        found += sum(share / 2 * math.log2(share / middle) for share in (left, right) if share)
    return min(1.0, max(0.0, found))


def _counts(prompts: Iterable[Sequence[int]]) -> Counter[int]:
    found: Counter[int] = Counter()
    for prompt in prompts:
        found.update(prompt)
    return found


def _quantile(ordered: Sequence[int], share: float) -> int:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _has_text(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and any(value.get(key) for key in ("text", "prompt", "messages"))


def _prompt(line: str, where: str, render: Render) -> str:
    wanted = 'a line is {"text": …} or {"messages": [{"role": …, "content": …}]}'
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise FileProblem("this line is not JSON", where=where, hint=wanted) from None
    if not isinstance(value, dict):
        raise FileProblem("this line is no JSON object", where=where, hint=wanted)
    for key in ("text", "prompt"):
        if isinstance(value.get(key), str):
            return str(value[key])
    messages = value.get("messages")
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise FileProblem("this line has neither a text nor messages with role and content", where=where, hint=wanted)
    return render(messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _apart(texts: Sequence[str], judges: Sequence[str]) -> list[str]:
    """The texts that are no (near) double of one that judges, nor of each other."""
    kept, _ = _distinct([*texts, *judges], first=len(texts))
    return [texts[index] for index in kept if index < len(texts)]


def _shuffled(indices: list[int], texts: Sequence[str], seed: int) -> list[int]:
    """An order that depends on the texts and the seed alone, not on where they stood in the file."""
    return sorted(indices, key=lambda index: hashlib.sha256(f"{seed}:{texts[index]}".encode()).digest())


def _distinct(texts: Sequence[str], *, first: int) -> tuple[list[int], int]:
    """Indices of texts that are not (nearly) another's double, and how many are. Those from `first` on win: they judge."""
    shingles = [_shingles(text) for text in texts]
    seen = Counter(shingle for one in shingles for shingle in one)
    often = max(5.0, _COMMON * len(texts))
    sketches = [frozenset(sorted(each for each in one if seen[each] <= often)[:_SKETCH]) for one in shingles]
    by_text: dict[str, int] = {}
    by_shingle: dict[int, list[int]] = {}
    kept = []
    for index in [*range(first, len(texts)), *range(first)]:
        plain = " ".join(texts[index].casefold().split())
        sketch = sketches[index]
        near = Counter(other for each in sketch for other in by_shingle.get(each, ()))
        if plain in by_text or any(_alike(sketch, sketches[other]) for other, _ in near.most_common(8)):
            continue
        by_text[plain] = index
        for each in sketch:
            by_shingle.setdefault(each, []).append(index)
        kept.append(index)
    return sorted(kept), len(texts) - len(kept)


def _shingles(text: str) -> set[int]:
    words = text.casefold().split()
    last = max(1, len(words) - _SHINGLE + 1)
    return {zlib.crc32(" ".join(words[start : start + _SHINGLE]).encode()) for start in range(last)}


def _alike(one: frozenset[int], other: frozenset[int]) -> bool:
    """Whether the estimated Jaccard similarity of two bottom-k sketches is high (Broder 1997)."""
    smallest = sorted(one | other)[:_SKETCH]
    return bool(smallest) and sum(each in one and each in other for each in smallest) / len(smallest) >= _ALIKE
