"""In-flight against static batching with transformers' continuous batching, against what the lengths alone predict."""

from __future__ import annotations

import heapq
import math
import random
import time
from typing import Any

import torch
from ptq import CONFIGS, random_llama
from rates import Row, attempt
from timing import DEVICE, wait


def lengths(number: int, seed: int = 7) -> list[tuple[int, int]]:
    """(input, output) tokens: inputs uniform, outputs lognormal with a coefficient of variation near 1."""
    chance = random.Random(seed)
    return [
        (chance.randint(64, 256), min(256, max(8, round(math.exp(chance.gauss(math.log(80) - 0.35, 0.83))))))
        for _ in range(number)
    ]


def predicted(requests: list[tuple[int, int]], slots: int) -> Row:
    """Steps of both ways if each step cost the same, and the share of slot-steps that a static batch idles."""
    outputs = [output for _, output in requests]
    groups = [outputs[i : i + slots] for i in range(0, len(outputs), slots)]
    static = sum(max(group) for group in groups)
    free = [0] * slots
    for output in outputs:
        heapq.heappush(free, heapq.heappop(free) + output)
    in_flight = max(free)
    return {
        "static_steps": static,
        "in_flight_steps": in_flight,
        "predicted_gain": round(static / in_flight, 3),
        "static_idle_share": round(1 - sum(outputs) / (static * slots), 4),
        "in_flight_idle_share": round(1 - sum(outputs) / (in_flight * slots), 4),
    }


def _static(model: Any, prompts: list[list[int]], outputs: list[int], slots: int) -> float:
    """Seconds of generate() over groups in the order of arrival, left-padded, each as long as its longest."""
    wait()
    start = time.perf_counter()
    for i in range(0, len(prompts), slots):
        group = prompts[i : i + slots]
        longest = max(map(len, group))
        ids = torch.tensor([[0] * (longest - len(p)) + p for p in group], device=DEVICE)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in group], device=DEVICE)
        number = max(outputs[i : i + slots])
        model.generate(ids, attention_mask=mask, max_new_tokens=number, min_new_tokens=number, do_sample=False, pad_token_id=0)
    wait()
    return time.perf_counter() - start


def _continuous(model: Any, prompts: list[list[int]], outputs: list[int], slots: int, groups: bool) -> tuple[float, int]:
    """Seconds and tokens through the continuous engine: all at once, or a barrier after each group of `slots`."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

    config = ContinuousBatchingConfig(
        max_requests_per_batch=slots, block_size=64, max_batch_tokens=slots * 256, num_blocks=1024
    )
    generation = GenerationConfig(max_new_tokens=512, do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=generation, continuous_batching_config=config)
    manager.start()
    try:
        manager.add_request(prompts[0], max_new_tokens=4)
        while manager.get_result(timeout=30) is None:
            pass
        produced = 0
        parts = (
            [range(i, min(i + slots, len(prompts))) for i in range(0, len(prompts), slots)] if groups else [range(len(prompts))]
        )
        start = time.perf_counter()
        for part in parts:
            for index in part:
                manager.add_request(prompts[index], max_new_tokens=outputs[index])
            done = 0
            while done < len(part):
                result = manager.get_result(timeout=60)
                if result is None:
                    raise RuntimeError("no result within a minute")
                if result.is_finished():
                    done += 1
                    produced += len(result.generated_tokens)
        return time.perf_counter() - start, produced
    finally:
        manager.stop(block=True)


def compare(tiny: bool) -> list[Row]:
    """Throughput of 48 requests of mixed lengths in 16 slots, three ways."""
    rows: list[Row] = []
    size, number, slots = ("tiny", 6, 3) if tiny else ("1b", 48, 16)
    requests = [(i // 8, o // 8 + 1) for i, o in lengths(number)] if tiny else lengths(number)
    chance = random.Random(1)
    prompts = [[chance.randrange(1, CONFIGS[size]["vocab_size"]) for _ in range(i)] for i, _ in requests]
    outputs = [output for _, output in requests]
    rows.append({"what": "predicted from the lengths", "requests": number, "slots": slots, **predicted(requests, slots)})
    model = random_llama(size)
    model.generation_config.eos_token_id = None

    def static() -> Row:
        _static(model, prompts[:2], [4, 4], 2)
        seconds = _static(model, prompts, outputs, slots)
        return {"seconds": round(seconds, 2), "useful_tokens_per_s": round(sum(outputs) / seconds, 1)}

    attempt(rows, {"what": "static: generate() by groups"}, static)
    for name, groups in (("continuous engine, barrier after each group", True), ("continuous engine, in flight", False)):

        def run(groups: bool = groups) -> Row:
            with torch.no_grad():
                seconds, produced = _continuous(model, prompts, outputs, slots, groups)
            return {"seconds": round(seconds, 2), "tokens": produced, "useful_tokens_per_s": round(produced / seconds, 1)}

        attempt(rows, {"what": name}, run)
    return rows
