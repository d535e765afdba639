"""Batching: what steps add up to, on step times that are simple enough to sum by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.estimator.arrivals import Request
from advisor.estimator.batching import Steps, filling, in_flight, run, static, static_idle_share
from advisor.estimator.constants import constants_of
from advisor.estimator.first_token import Prompts, closed_loop, drained, gathered, open_loop
from advisor.estimator.replica import Server
from advisor.estimator.simulation import replay
from advisor.estimator.step_time import Pace, StepParts, step_time
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Load


class Plain:
    """A step of 10 ms, 1 ms more per 1000 prompt tokens and per 100 running sequences."""

    stages = 1
    width = 1
    balance = 0.0

    def step(self, decode: float, context: float, prefill: float = 0.0, length: float = 1.0) -> float:
        return 0.010 + prefill * 1e-6 + decode * 1e-5

    def pace(self, decode: float, context: float) -> Pace:
        return Pace(self.step(decode, context), UNKNOWN)

    def prompt(self, tokens: float) -> Pace:
        return Pace(self.step(0.0, 1.0, tokens, tokens), UNKNOWN)


UNKNOWN = StepParts(*[math.nan] * 6)
STEP = cast(Steps, Plain())


def test_steady_state_by_hand() -> None:
    # 100 sequences, each 1000 in and 100 out: one ends every step, so each step carries one prompt of 1000 tokens
    flow = in_flight(STEP, 100, 1000, 100, 8192)
    assert flow.prompt_share == 1.0
    assert flow.seconds_per_token == pytest.approx(0.010 + 0.001 + 0.001)
    assert flow.tokens_per_s == pytest.approx(100 / 0.012)


def test_prompts_in_some_of_the_steps_only() -> None:
    # 10 sequences: a prompt every tenth step
    flow = in_flight(STEP, 10, 1000, 100, 8192)
    assert flow.prompt_share == pytest.approx(0.1)
    assert flow.seconds_per_token == pytest.approx(0.0101 + 0.1 * 0.001)


def test_a_prompt_longer_than_the_budget_takes_several_steps() -> None:
    flow = in_flight(STEP, 1, 10000, 100, 4096)
    assert flow.chunks == 3
    assert flow.first_token >= 3 * 0.010


def test_the_token_budget_limits_what_decodes() -> None:
    # 1000 sequences of 1000 in, 100 out would need 10,000 prompt tokens a step
    flow = in_flight(STEP, 1000, 1000, 100, 2048)
    assert flow.tokens_per_s * flow.seconds_per_token == pytest.approx(2048 / 11)


def test_each_pipeline_stage_has_a_token_budget() -> None:
    class Staged(Plain):
        stages = 4

    flow = in_flight(cast(Steps, Staged()), 1000, 1000, 100, 2048)
    assert flow.tokens_per_s * flow.seconds_per_token == pytest.approx(4 * 2048 / 11)


def test_a_finite_run_starts_and_ends_with_some_of_its_slots() -> None:
    # full waves, and 100 prompts of 1000 tokens over 100 * 1000 / (8192 - 50) steps: so many more with 50 than with 100
    steps = 100 * 1000 / (8192 - 50)
    ramp = steps * (2 * 0.0105 - 0.011)
    wave = 100 * 0.012
    assert run(STEP, 100, 200, 1000, 100, 8192).tokens_per_s == pytest.approx(200 * 100 / (2 * wave + ramp))
    few = run(STEP, 100, 50, 1000, 100, 8192)
    steady = in_flight(STEP, 50, 1000, 100, 8192).tokens_per_s
    assert 0.9 * steady < few.tokens_per_s < steady
    assert run(STEP, 100, 150, 1000, 100, 8192).tokens_per_s < run(STEP, 100, 200, 1000, 100, 8192).tokens_per_s


@pytest.mark.parametrize("requests", [100, 250, 400, 430])
@pytest.mark.parametrize(("isl", "osl", "budget"), [(1000, 100, 8192), (300, 300, 1024), (2000, 200, 2048), (50, 500, 2048)])
def test_a_finite_run_is_what_the_simulation_makes_of_it(isl: int, osl: int, budget: int, requests: int) -> None:
    each = [Request(0.0, isl, osl)] * requests
    simulated = replay(each, STEP.step, Server(slots=100, budget=budget, chunked=True)).output_tokens_per_s
    assert run(STEP, 100, requests, isl, osl, budget).tokens_per_s == pytest.approx(simulated, rel=0.03)


def test_a_long_run_of_arrivals_reaches_the_steady_state() -> None:
    many = filling(STEP, 40.0, 1e6, 1000, 1000, 100, 8192)
    flow = in_flight(STEP, many, 1000, 100, 8192)
    assert many == pytest.approx(40.0 * (flow.first_token + 100 * flow.seconds_per_token), rel=0.02)


def test_a_short_run_near_saturation_does_not() -> None:
    # a prompt takes 1 ms, so 1,000 a second are the most
    few, many = (filling(STEP, 900.0, count, min(count, 2000), 1000, 100, 100_000) for count in (300, 10**6))
    assert few == 300 < 0.2 * many
    arrivals = [Request(number / 900.0, 1000, 100) for number in range(300)]
    simulated = replay(arrivals, STEP.step, Server(slots=2000, budget=100_000)).itl_ms.mean
    assert 1e3 * in_flight(STEP, few, 1000, 100, 100_000).seconds_per_token == pytest.approx(simulated, rel=0.15)


def test_static_batches_idle_while_the_longest_ends() -> None:
    even = static(STEP, 100, 1000, 100, 8192)
    assert even.tokens_per_s == pytest.approx(100 * 100 / (13 * (0.010 + 100 / 13 * 1e-3) + 100 * 0.011))
    assert static(STEP, 100, 1000, 100, 8192, idle=0.5).tokens_per_s < 0.6 * even.tokens_per_s


def test_idle_share_by_hand() -> None:
    # two draws from {1, 3}: the longest is 3 in three of four cases, 1 in one; mean 2, longest 2.5
    assert static_idle_share([1.0, 3.0], 2) == pytest.approx(1 - 2 / 2.5)
    assert static_idle_share([5.0, 5.0, 5.0], 8) == pytest.approx(0.0)
    assert static_idle_share(Load(isl=1, osl=2, lengths=((1, 1), (1, 3))), 2) == pytest.approx(0.2)
    assert static_idle_share([1.0], 8) == 0.0
    assert static_idle_share([1.0, 3.0], 1) == 0.0


@given(st.lists(st.floats(1, 1e4), min_size=2, max_size=50), st.integers(1, 512))
def test_idle_share_is_a_share_and_grows_with_the_batch(lengths: list[float], batch: int) -> None:
    share = static_idle_share(lengths, batch)
    assert 0.0 <= share < 1.0
    assert static_idle_share(lengths, batch + 1) >= share - 1e-9


@given(st.floats(1, 2000), st.floats(1, 32768), st.floats(1, 8192), st.floats(256, 16384))
def test_more_sequences_never_lower_throughput_nor_itl(sequences: float, isl: float, osl: float, budget: float) -> None:
    flow, more = in_flight(STEP, sequences, isl, osl, budget), in_flight(STEP, sequences * 1.5, isl, osl, budget)
    assert more.tokens_per_s >= flow.tokens_per_s * 0.999
    assert more.seconds_per_token >= flow.seconds_per_token * 0.999
    assert 0 <= flow.prompt_share <= 1 and flow.chunks >= 1


def test_the_opening_burst_weighs_one_turn_in_ten() -> None:
    flow = in_flight(STEP, 64, 1000, 1000, 8192)
    prompts = Prompts(isl=1000, osl=1000, budget=8192, abreast=1)
    ten, one = closed_loop(STEP, flow, 64, prompts, 0.0), closed_loop(STEP, flow, 64, prompts, 0.0, turns=1)
    each = STEP.step(32, 1000, 1000)
    assert one.seconds == pytest.approx(65 / 2 * each, rel=1e-6)
    assert ten.burst == pytest.approx(one.burst / 10)
    assert ten.seconds < one.seconds


def test_a_stated_budget_lets_opening_prompts_share_steps() -> None:
    flow = in_flight(STEP, 64, 1000, 1000, 8192)
    burst = closed_loop(STEP, flow, 64, Prompts(1000, 1000, 8192, abreast=8), 0.0, turns=1).burst
    assert burst == pytest.approx((8 + 1) / 2 * STEP.step(32, 1000, 8000))
    # fewer clients than a step has room for: one step takes all
    assert closed_loop(STEP, flow, 4, Prompts(1000, 1000, 8192, 8), 0.0, turns=1).burst == pytest.approx(
        STEP.step(2, 1000, 4000)
    )


def test_prompts_that_are_held_back_wait_for_the_first_of_them_or_a_filled_step() -> None:
    held = Prompts(1000, 1000, 8000, abreast=1, wait_steps=20, wait_fill=0.5)
    # one arrival in ten steps: two more within twenty steps, which wait ten on average
    assert gathered(held, 0.1) == (pytest.approx((20 + 2 * 10) / 3), pytest.approx(3))
    # two a step: the three others that fill half of a step are there after 1.5 steps
    assert gathered(held, 2.0) == (pytest.approx((1.5 + 3 * 0.75) / 4), pytest.approx(4))
    assert gathered(held._replace(wait_steps=0), 0.1) == (0.0, 1.0)
    # a look every eleventh step: five steps on average, for whatever came in eleven
    assert gathered(held._replace(wait_steps=0, poll_steps=11), 0.2) == (5.0, pytest.approx(2.2))
    flow = in_flight(STEP, 100, 1000, 1000, 8000)
    waits = [closed_loop(STEP, flow, 100, prompts, 0.0) for prompts in (held._replace(wait_steps=0), held)]
    assert waits[1].waiting - waits[0].waiting == pytest.approx(0.9 * gathered(held, 0.1)[0] * flow.seconds_per_token)
    together = in_flight(STEP, 100, 1000, 1000, 8000, together=gathered(held, 0.1)[1])
    assert closed_loop(STEP, together, 100, held, 0.0).prefill == pytest.approx(0.9 * STEP.step(100, 1500, 3000))
    assert together.prompt_share == pytest.approx(flow.prompt_share / 3)


def test_open_arrivals_wait_longer_the_busier_the_engine() -> None:
    calm, busy = (in_flight(STEP, n, 1000, 100, 8192) for n in (2, 60))
    assert open_loop(STEP, calm, 0.02).request == 0.02
    assert open_loop(STEP, busy, 0.0).waiting > 2 * open_loop(STEP, calm, 0.0).waiting


def test_a_prompt_waits_for_the_other_attention_dp_ranks() -> None:
    class Balanced(Plain):
        balance = 30.0

    flow, balanced = in_flight(STEP, 8, 1000, 1000, 8192), cast(Steps, Balanced())
    waits = [closed_loop(step, flow, 8, Prompts(1000, 1000, 8192, 1), 0.0).waiting for step in (STEP, balanced)]
    assert waits[1] - waits[0] == pytest.approx(0.9 * 30 * flow.seconds_per_token)


def test_the_queue_for_slots_of_a_finite_loop_drains() -> None:
    # 4 clients, 1 slot, 10 requests each: 3 wait during 36 services, 1.5 on average during the next 3, none during the last
    assert drained(0.25, 10) * 3 == pytest.approx((3 * 36 + 1.5 * 3) / 40)
    assert drained(0.5, 1e9) == pytest.approx(1.0)


def test_a_run_fills_its_steps_up_to_the_sequences_of_a_captured_graph() -> None:
    model, constants = read_model("Qwen/Qwen3-30B-A3B")[0], constants_of(find_gpu("h200-sxm-141gb")[0])
    assert constants is not None
    step = step_time(constants, model, Deployment(weights="fp8"), Engine())

    def rate(sequences: int, largest: float, osl: float = 1000) -> float:
        return run(step, sequences, 4 * sequences, 1000, osl, 8192, largest).tokens_per_s

    # graphs for 512 and 1,024 sequences: one more than 512 multiplies nearly twice the rows once the prompts are in
    assert rate(512, 1024) == rate(512, 0)
    assert rate(513, 1024) < 0.98 * rate(513, 0)
    # the largest batch bounds it, and where every step has prompts nothing is filled up
    assert rate(513, 513) == rate(513, 0)
    assert rate(513, 1024, osl=10) == rate(513, 0, osl=10)
