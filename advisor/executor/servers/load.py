"""A small load client for OpenAI-compatible servers: streams completions and notes when each token group came.

Standard library only, one thread for a request in flight: good for a few hundred at once. NVIDIA's aiperf is preferred where
it is installed (aiperf.py).
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from advisor.errors import InputError
from advisor.executor.servers.engines import Server, connect

Admission = Literal["in-flight", "static", "arrivals"]
MOST_THREADS = 1024
LOWEST_TOKEN = 100
"""special tokens have the first ids in most vocabularies: prompts are drawn from above them"""


@dataclass(frozen=True)
class Request:
    """One request: a prompt of token ids, or a text, and how many tokens are to be generated."""

    prompt: tuple[int, ...] | str
    osl: int
    at: float | None = None
    """seconds after the start, where arrivals are replayed"""


@dataclass(frozen=True)
class Answer:
    """When one request was sent, got its first and its last token (seconds of a monotonic clock), and how long it is."""

    sent: float
    first: float | None
    last: float
    tokens: int
    error: str = ""


@dataclass(frozen=True)
class Round:
    """All requests once."""

    answers: tuple[Answer, ...]
    slots: int
    started: float
    ended: float
    cut: bool = False
    """stopped at the time limit before all requests were sent"""

    @property
    def good(self) -> tuple[Answer, ...]:
        """The answers without an error."""
        return tuple(answer for answer in self.answers if not answer.error)


def make_requests(
    lengths: Sequence[tuple[int, int]],
    count: int,
    *,
    vocab: int,
    shared_prefix: float = 0.0,
    seed: int = 0,
    arrivals: Sequence[float] = (),
    shuffled: bool = True,
    texts: Sequence[Sequence[int]] = (),
    first: int = 0,
) -> tuple[Request, ...]:
    """`count` requests with lengths drawn from (input, output) pairs, the prompts random token ids or pieces of the texts.

    The seed decides the token ids alone: a second round with another one has the same lengths, and no prompt that a cache has
    seen. shared_prefix: that share of each prompt is one common beginning. shuffled: False keeps the pairs as they are, one a
    request. texts: prompts as token ids, cut or joined to the lengths; `first` is the number of the first request, which says
    which one is next. Raises InputError without lengths.
    """
    if not lengths:
        raise InputError("no request lengths to send", where="traffic", hint="give --isl and --osl, or a trace")
    pairs = order_of(lengths, count) if shuffled else tuple(lengths[:count])
    draw = random.Random(seed)
    highest = max(LOWEST_TOKEN + 1, vocab - 1)
    longest = max(isl for isl, _ in pairs)

    def words(number: int, length: int) -> list[int]:
        return piece(texts, number, length) if texts else [draw.randint(LOWEST_TOKEN, highest) for _ in range(length)]

    common, made = words(0, longest), []
    for index, (isl, osl) in enumerate(pairs):
        kept = int(isl * shared_prefix)
        own = words(first + index, max(1, isl) - kept)
        made.append(Request(tuple(common[:kept] + own), max(1, osl), arrivals[index] if arrivals else None))
    return tuple(made)


def piece(texts: Sequence[Sequence[int]], number: int, length: int) -> list[int]:
    """So many tokens from text number `number` on, the next ones joined to it; one whose turn comes again begins a token later
    each time, so that no cache knows how it begins. Every text has at least one token."""
    turn, at = divmod(number, len(texts))
    found = list(texts[at][turn % len(texts[at]) :])
    while len(found) < length:
        at = (at + 1) % len(texts)
        found += texts[at]
    return found[:length]


def order_of(lengths: Sequence[tuple[int, int]], count: int) -> tuple[tuple[int, int], ...]:
    """`count` pairs drawn evenly over the sample and shuffled, always the same ones: every arm and round gets them alike."""
    picked = [lengths[index * len(lengths) // count] if count <= len(lengths) else lengths[index % len(lengths)]
              for index in range(count)]  # fmt: skip
    random.Random(count).shuffle(picked)
    return tuple(picked)


def gaps(count: int, rate: float, burstiness: float | None, seed: int = 0) -> tuple[float, ...]:
    """Arrival times in seconds: gamma-distributed gaps of mean 1 / rate and this coefficient of variation (1: Poisson)."""
    shape = 1.0 / (burstiness or 1.0) ** 2
    draw, now, times = random.Random(seed), 0.0, []
    for _ in range(count):
        now += draw.gammavariate(shape, 1.0 / (rate * shape))
        times.append(now)
    return tuple(times)


def send(server: Server, requests: Sequence[Request], admission: Admission, slots: int, seconds: float) -> Round:
    """Send all requests and wait for them. Nothing new is sent after `seconds`, and no answer is waited for much longer.

    in-flight: `slots` at once, the next one as soon as one ends. static: `slots` together, the next batch when the last of
    them has ended (what an engine with static batching does, done by gating the admission). arrivals: at their own times.
    """
    started = time.monotonic()
    end = started + seconds
    if admission == "static":
        answers: list[Answer] = []
        for batch in _batches(requests, slots):
            if time.monotonic() > end:
                break
            answers += _together(server, batch, len(batch), end)
    elif admission == "arrivals":
        answers = _together(
            server, [replace(r, at=started + (r.at or 0.0)) for r in requests], min(len(requests), MOST_THREADS), end
        )
    else:
        answers = _together(server, requests, slots, end)
    ended = max((answer.last for answer in answers), default=time.monotonic())
    return Round(tuple(answers), slots, started, ended, cut=len(answers) < len(requests))


def _batches(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for first in range(0, len(requests), size):
        yield requests[first : first + size]


def _together(server: Server, requests: Sequence[Request], threads: int, end: float) -> list[Answer]:
    """Answers in the order of the requests, so many at once; a request with a time is not sent before it."""
    waiting: queue.SimpleQueue[tuple[int, Request]] = queue.SimpleQueue()
    for numbered in enumerate(requests):
        waiting.put(numbered)
    found: dict[int, Answer] = {}

    def work() -> None:
        while True:
            try:
                index, request = waiting.get_nowait()
            except queue.Empty:
                return
            if request.at is not None:
                time.sleep(max(0.0, min(request.at, end) - time.monotonic()))
            if time.monotonic() > end:
                return
            found[index] = ask(server, request, end)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, MOST_THREADS, len(requests)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found[index] for index in sorted(found)]


def body_of(server: Server, request: Request) -> dict[str, object]:
    """A completion of exactly `osl` tokens, greedy, streamed."""
    return {
        "model": server.served_name, "prompt": request.prompt, "max_tokens": request.osl, "min_tokens": request.osl,
        "ignore_eos": True, "temperature": 0, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def ask(server: Server, request: Request, end: float) -> Answer:
    """Send one request and read its stream to the end. An error is in the answer, never raised."""
    import http.client

    sent = time.monotonic()
    first, tokens, groups, ended = None, None, 0, False
    try:
        connection, path = connect(server.url.rstrip("/") + "/v1/completions", max(5.0, end - sent + 30.0))
        try:
            connection.request("POST", path, json.dumps(body_of(server, request)), {"Content-Type": "application/json"})
            reply = connection.getresponse()
            if reply.status != 200:
                return Answer(
                    sent, None, time.monotonic(), 0, f"status {reply.status}: {reply.read(300).decode('utf-8', 'replace')}"
                )
            last = sent
            while line := reply.readline():
                if not line.startswith(b"data:"):
                    continue
                if line[5:].strip() == b"[DONE]":
                    ended = True
                    continue
                event = json.loads(line[5:])
                if event.get("error"):
                    return Answer(sent, first, time.monotonic(), groups, str(event["error"])[:300])
                if event.get("choices"):
                    last = time.monotonic()
                    groups += 1
                    first = last if first is None else first
                if event.get("usage"):
                    tokens = event["usage"].get("completion_tokens")
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Answer(sent, first, time.monotonic(), groups, f"{type(error).__name__}: {error}")
    if first is None or not ended:  # http.client takes a connection that is closed within a chunk for the end
        return Answer(sent, first, time.monotonic(), groups, "the stream was cut" if groups else "the stream has no token")
    return Answer(sent, first, last, groups if tokens is None else tokens)
