"""What steps add up to: the steady state of in-flight batching, and static batching."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from advisor.estimator.drafting import Speculating
from advisor.estimator.step_time import Pace, StepTime
from advisor.types import Load

Steps = StepTime | Speculating


PUBLISHED_RUNS = ((256, 30000), (2500, 3000), (9216, 1500))
"""tokens of a request, in and out, up to which TensorRT-LLM's own tables ran so many requests; 1,000 longer ones:
NVIDIA/TensorRT-LLM docs/source/performance/perf-overview.md @00f37686, developer-guide/perf-overview.md @03e27c7d"""


def published_requests(isl: float, osl: float) -> int:
    """Requests of a published offline run with such lengths."""
    return next((requests for tokens, requests in PUBLISHED_RUNS if isl + osl <= tokens), 1000)


CAPTURED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 384, 512, 1024, 2048, 4096, 8192)
"""sequences for which those tables captured CUDA graphs, with padding (cuda_graph_config of the page of @03e27c7d)"""
GENERATIONS, SETTLED = 20, 0.01


class Flow(NamedTuple):
    """The steady state of one replica."""

    sequences: float
    """in flight at once"""
    seconds_per_token: float
    """mean time between two tokens of one sequence"""
    tokens_per_s: float
    """output tokens of the replica"""
    first_token: float
    """seconds from the start of a prompt's prefill to its first token, beside the others"""
    decoding: float
    """of `sequences`, those that are beyond their prompt"""
    plain: Pace
    """a step of them without prompts"""
    prompt: float
    """tokens of a prompt"""
    alone: Pace
    """a prompt's prefill with nothing beside"""
    prompt_share: float = 0.0
    """share of the steps that carry a prompt"""
    chunks: float = 1.0
    """steps that one prompt takes"""


def in_flight(
    step: Steps, sequences: float, isl: float, osl: float, budget: float, alone: Pace | None = None, together: float = 1.0
) -> Flow:
    """Steady state with `sequences` always in flight, prompts mixed into the steps, at most `budget` tokens a step.

    Each sequence leaves after osl steps and the next one's prompt comes in, so a step carries sequences * isl / osl prompt
    tokens on average: `together` whole prompts in some of the steps, or a part in each. With pipeline stages each of as many
    micro-batches has a budget of its own. alone: of such a prompt with nothing beside it, where that is known already.
    """
    steps, stages = osl if osl > 1.0 else 1.0, step.stages
    context = isl + osl / 2
    flow = sequences * isl / steps
    decoding = sequences
    if flow + decoding > budget * stages:  # the token budget, not the slots, limits: some slots wait for their prompt
        decoding = budget * stages / (1 + isl / steps)
        flow = decoding * isl / steps
    part = isl * together
    part = part if part < budget else budget  # engines without chunked prefill are given a budget that takes a whole prompt
    chunk = part * stages
    plain = step.pace(decoding, context)
    seconds = plain.seconds
    if flow >= chunk:
        mean = mixed = step.step(decoding, context, flow, isl)
    else:
        mixed = step.step(decoding, context, chunk, isl)
        mean = seconds + (mixed - seconds) * flow / chunk
    chunks = float(math.ceil(isl / part))
    alone = alone or step.prompt(isl)
    first = mixed * chunks
    if first < alone.seconds:
        first = alone.seconds
    share = flow / chunk if flow < chunk else 1.0
    return Flow(sequences, mean, decoding / mean, first, decoding, plain, isl, alone, share, chunks)


def run(step: Steps, slots: float, requests: float, isl: float, osl: float, budget: float, largest: float = 0.0) -> Flow:
    """A finite run: `requests` requests, all there at the start, `slots` at once.

    Full waves follow each other without a gap; then a wave that fills only some slots ends the run, or the last full wave does,
    whose sequences end as far apart as their prompts began. largest: the batch that CUDA graphs are captured for, 0 for none.
    """
    most = min(slots, requests)
    whole = math.floor(requests / most)
    rest = requests - whole * most
    full = in_flight(step, most, isl, osl, budget)
    entering = _steps_with_prompts(step, full, osl, budget)
    tail, wave = 0.0, most * osl / full.tokens_per_s
    if rest >= 1:
        last = in_flight(step, rest, isl, osl, budget, full.alone)
        tail = rest * osl / last.tokens_per_s + _ramp(step, last, osl, _steps_with_prompts(step, last, osl, budget))
    if entering < osl and isinstance(step, StepTime) and largest:  # of the last wave, which is shorter, it is left out
        wave += (osl - entering) * _filled_up(step, full, largest)
    seconds = whole * wave + _ramp(step, full, osl, entering, tail)
    return full._replace(tokens_per_s=requests * osl / seconds)


def filling(step: Steps, rate: float, requests: float, limit: float, isl: float, osl: float, budget: float) -> float:
    """Sequences in flight beside a request, on average over `requests` that arrive at `rate` on idle `limit` slots.

    As long as a generation of requests is served, rate times that time of others arrive: the next generation. Near saturation
    each takes longer than the one before, and a finite run ends before the steady state of Little's law is reached. A request
    sees its own generation fill up and the next one take over, so on average as many as its own generation has at its end.
    """
    arriving, elapsed, before, area = requests / rate, 0.0, 0.0, 0.0
    alone = step.prompt(isl)
    for _ in range(GENERATIONS):
        flow = in_flight(step, max(before, 1.0), isl, osl, budget, alone)
        after = min(limit, rate * (flow.first_token + osl * flow.seconds_per_token))
        span = min(after / rate, arriving - elapsed)
        area += span * after
        elapsed += span
        settled, before = abs(after - before) < SETTLED * after, after
        if settled or elapsed >= arriving:
            break
    return (area + max(0.0, arriving - elapsed) * before) / arriving


def _filled_up(step: StepTime, flow: Flow, largest: float) -> float:
    """Seconds that a step without prompts, in the state `flow`, takes longer because it is filled up.

    It runs as a CUDA graph captured for at least as many sequences and no more than the `largest` batch, and multiplies the
    rows that are missing, which are all the same token's. That these are sent too costs nothing that published tables show.
    """
    each, most = flow.decoding / step.stages / step.width, largest / step.stages
    if each >= most or not step.graphs:
        return 0.0
    size = CAPTURED[bisect_left(CAPTURED, each)]
    return step.filled(flow.plain.parts, each, size if size < most else most)


def _steps_with_prompts(step: Steps, flow: Flow, osl: float, budget: float) -> float:
    """Steps over which the prompts of sequences that start together come in, half of the sequences beside them on average."""
    return min(flow.sequences * flow.prompt / max(budget * step.stages - flow.sequences / 2, 1.0), osl)


def _ramp(step: Steps, flow: Flow, osl: float, steps: float, least: float = 0.0) -> float:
    """What a run takes longer than its waves, each in the state `flow`: it starts and ends with some of the slots only.

    At least `least`, which is often more than it can be: a step with half of the sequences takes no longer than one with all.

    The prompts of the first wave fill the slots over n `steps`, and over as many the last wave ends: 2n steps with half of the
    sequences instead of n with all. tests/test_batching.py holds it against the simulation of the same runs.
    """
    slots, context = flow.sequences, flow.prompt + osl / 2
    whole = flow.plain.seconds if flow.decoding == slots else step.step(slots, context)
    if steps * whole <= least:
        return least
    return max(least, steps * (2 * step.step(slots / 2, context) - whole))


def static(step: Steps, sequences: float, isl: float, osl: float, budget: float, idle: float = 0.0) -> Flow:
    """Static batching: a batch is prefilled, decoded until its longest sequence ends, and only then the next one starts.

    idle: share of slot-time without work because sequences end at different lengths (static_idle_share).
    """
    rounds = math.ceil(sequences * isl / max(budget, 1.0))
    prefill = rounds * step.step(0.0, 1.0, sequences * isl / rounds, isl)
    longest = osl / max(1.0 - idle, 1e-3)
    plain = step.pace(sequences, isl + osl / 2)
    seconds = prefill + longest * plain.seconds
    rate = sequences * osl / seconds
    return Flow(sequences, plain.seconds, rate, prefill, sequences, plain, isl, step.prompt(isl))


def static_idle_share(lengths: Load | Sequence[float], batch: float) -> float:
    """Share of slot-time that a static batch of `batch` requests idles, 0 to 1, from their output lengths.

    A batch runs as long as its longest member: idle = 1 - mean / E[max of `batch` draws]. Without lengths: 0.
    """
    if isinstance(lengths, Load):
        lengths = [float(osl) for _, osl in lengths.lengths]
    count = int(batch)
    if len(lengths) < 2 or count < 2:
        return 0.0
    ordered = sorted(lengths)
    total = len(ordered)
    longest, below = 0.0, 0.0
    for index, value in enumerate(ordered, start=1):
        upto = (index / total) ** count
        longest += value * (upto - below)
        below = upto
    return max(0.0, 1.0 - sum(ordered) / total / longest) if longest > 0 else 0.0
