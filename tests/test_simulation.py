"""The simulation against hand-worked cases, a token-by-token reference, Little's law, and the analytic steady state."""

from __future__ import annotations

import csv
import math
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import NotPossible, TrafficProblem
from advisor.estimator.arrivals import Request, drawn, from_trace
from advisor.estimator.batching import static_idle_share
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.drafting import Speculating, speculating
from advisor.estimator.inflight import InFlight
from advisor.estimator.replica import Server, Step, StepCosts
from advisor.estimator.simulation import percentiles, replay, simulate
from advisor.estimator.step_time import step_time
from advisor.profiler.model import read_model
from advisor.types import Deployment, Engine, Gpu, Load, Model, Speculation, TensorRates

LLAMA_8B = Model(
    name="Llama-3.1-8B", architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336, vocab=128256, heads=32,
    kv_heads=8, head_dim=128, attention="gqa", attention_layers=32, mlp_layers=32, params=8_030_261_248,
)  # fmt: skip
H100 = Gpu(
    id="h100-sxm-80gb", name="H100", sm=90, memory_gib=79.6, bandwidth_gb_s=3352, tflops=TensorRates(bf16=989, fp8=1979),
    link="nvlink", link_gb_s=450,
)  # fmt: skip
TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"


def cost(decode: float, context: float, prefill: float, length: float) -> float:
    """Seconds: 4 ms, 10 us a sequence, 0.1 us a sequence and 1,000 tokens of context, 20 us a prompt token."""
    return 4e-3 + 1e-5 * decode + 1e-10 * decode * context + 2e-5 * prefill + 1e-10 * prefill * length


# ---------------------------------------------------------------- by hand


def test_one_request_takes_its_prefill_and_then_one_step_a_token() -> None:
    result = replay([Request(3.0, 100, 5)], cost, Server(slots=8, budget=8192))
    prefill = 4e-3 + 2e-5 * 100 + 1e-10 * 100 * 100
    # contexts while it decodes: 101, 102, 103, 104
    decode = 4 * (4e-3 + 1e-5 + 1e-10 * 102.5)
    assert result.ttft_ms.mean == pytest.approx(1e3 * prefill, rel=1e-9)
    assert result.latency_ms.mean == pytest.approx(1e3 * (prefill + decode), rel=1e-6)
    assert result.itl_ms.mean == pytest.approx(1e3 * decode / 4, rel=1e-6)
    assert (result.requests, result.queue_ms.max, result.batch) == (1, 0.0, 1.0)
    assert result.busy_share == pytest.approx(1.0)
    assert result.output_tokens_per_s == pytest.approx(5 / (prefill + decode), rel=1e-6)


def test_a_prompt_in_chunks_takes_as_many_steps() -> None:
    flat = lambda decode, context, prefill, length: 1.0  # noqa: E731
    whole = replay([Request(0.0, 1000, 1)], flat, Server(slots=1, budget=1000))
    chunks = replay([Request(0.0, 1000, 1)], flat, Server(slots=1, budget=300, chunked=True))
    assert (whole.ttft_ms.mean, chunks.ttft_ms.mean) == (1000.0, 4000.0)


def test_a_second_request_waits_for_the_only_slot() -> None:
    flat = lambda decode, context, prefill, length: 1.0  # noqa: E731
    result = replay([Request(0.0, 10, 4), Request(0.5, 10, 2)], flat, Server(slots=1, budget=100))
    # first: prefill to 1, tokens at 2, 3, 4; second: from 4, first token at 5, last at 6
    assert result.queue_ms.max == 3500.0
    assert result.ttft_ms.max == 4500.0
    assert result.seconds == 6.0
    assert result.queue_peak == 1


def test_speculation_gives_several_tokens_a_step() -> None:
    flat = lambda decode, context, prefill, length: 1.0  # noqa: E731
    result = replay([Request(0.0, 10, 9)], flat, Server(slots=1, budget=100, tokens_per_step=2.0))
    assert result.seconds == 5.0  # the prefill gives one token, four steps the other eight
    assert result.itl_ms.mean == 500.0


def test_static_batch_idles_until_its_longest_member_ends() -> None:
    flat = lambda decode, context, prefill, length: 1.0  # noqa: E731
    requests = [Request(0.0, 10, 2), Request(0.0, 10, 5), Request(0.0, 10, 3), Request(0.0, 10, 3)]
    result = replay(requests, flat, Server(slots=2, budget=100, batching="static"))
    # batches (2, 5) and (3, 3): decode steps after the first token 4 and 2; slot-steps 8 + 4, useful 1 + 4 + 2 + 2
    assert result.idle_share == pytest.approx(1 - 9 / 12)
    assert result.seconds == 1 + 4 + 1 + 2
    assert result.batch == 2.0


def test_percentiles_are_the_least_value_that_covers_the_share() -> None:
    found = percentiles([(float(value), 1.0) for value in range(1, 101)])
    assert (found.p50, found.p90, found.p95, found.p99, found.max, found.mean) == (50, 90, 95, 99, 100, 50.5)
    weighted = percentiles([(1.0, 98.0), (7.0, 2.0)])
    assert (weighted.p50, weighted.p95, weighted.p99, weighted.mean) == (1.0, 1.0, 7.0, 1.12)


# ---------------------------------------------------------------- a reference that loops over every token


def binary(decode: float, context: float, prefill: float, length: float) -> float:
    """A cost of binary fractions and without context, so that the event loop and the token loop meet to the last bit."""
    return 2.0**-8 + decode * 2.0**-14 + prefill * 2.0**-13


def reference(requests: list[Request], server: Server, step: Step) -> tuple[list[float], list[float]]:
    """First-token and end times, one step at a time, with the same rules of admission and no shortcuts."""
    now, waiting, prefilling, running = 0.0, [], [], {}
    first, ended, following, reserved = [0.0] * len(requests), [0.0] * len(requests), 0, 0.0
    while following < len(requests) or waiting or prefilling or running:
        while following < len(requests) and requests[following].arrival <= now:
            waiting.append(following)
            following += 1
        room = server.budget - len(running) - sum(left for _, left, _ in prefilling)
        while waiting and len(running) + len(prefilling) < server.slots and room > 0:
            index = waiting[0]
            need = (requests[index].isl + requests[index].osl) / 512 if server.cache_share else 0.0
            if not server.chunked and requests[index].isl > room and (running or prefilling):
                break
            if reserved + need > 1.0 and (running or prefilling):
                break
            waiting.pop(0)
            reserved += need
            prefilling.append([index, requests[index].isl, 0])
            room -= requests[index].isl
        if not prefilling and not running:
            now = requests[following].arrival
            continue
        room, work, weighted, whole = max(1, server.budget - len(running)), 0, 0.0, []
        for entry in prefilling:
            tokens = min(entry[1], room - work) if server.chunked else entry[1]
            if tokens <= 0 or (work and work + tokens > room):
                break
            work, weighted = work + tokens, weighted + tokens * (2 * entry[2] + tokens)
            entry[1] -= tokens
            entry[2] += tokens
            whole.append(entry)
        context = sum(requests[i].isl + made for i, made in running.items()) / len(running) if running else 1.0
        now += step(len(running), context, work, weighted / work if work else 1.0)
        done = [i for i in running if running[i] + 1 == requests[i].osl]
        for index in running:
            running[index] += 1
        for entry in whole:
            if entry[1] == 0:
                prefilling.remove(entry)
                first[entry[0]] = now
                running[entry[0]] = 1
                if requests[entry[0]].osl == 1:
                    done.append(entry[0])
        for index in done:
            del running[index]
            ended[index] = now
            reserved -= (requests[index].isl + requests[index].osl) / 512 if server.cache_share else 0.0
    return first, ended


def requests_of(longest: int) -> st.SearchStrategy[list[Request]]:
    """Up to 25 requests within two seconds, arriving at 1024ths of a second."""
    row = st.tuples(st.integers(0, 2048).map(lambda time: time / 1024), st.integers(1, longest), st.integers(1, 60))
    return st.lists(row.map(lambda each: Request(*each)), min_size=1, max_size=25).map(sorted)


workload = requests_of(120)


@settings(max_examples=150, deadline=None)
@given(requests_of(20), st.integers(1, 6), st.sampled_from([32, 1000]), st.booleans(), st.booleans())
def test_events_agree_with_a_loop_over_every_token_to_the_last_bit(
    requests: list[Request], slots: int, budget: int, chunked: bool, limited: bool
) -> None:
    share = (lambda tokens: tokens / 512) if limited else None
    server = Server(slots=slots, budget=budget, chunked=chunked, cache_share=share)
    first, ended = reference(requests, server, binary)
    outcome = InFlight(requests, StepCosts(binary), server, None).run()
    assert [outcome.first[index] for index in range(len(requests))] == first
    assert [outcome.ended[index] for index in range(len(requests))] == ended


@settings(max_examples=100, deadline=None)
@given(workload, st.integers(1, 6), st.sampled_from([128, 1000]), st.booleans())
def test_contexts_that_grow_change_times_by_less_than_a_step(
    requests: list[Request], slots: int, budget: int, chunked: bool
) -> None:
    server = Server(slots=slots, budget=budget, chunked=chunked)
    _, ended = reference(requests, server, cost)
    result = replay(requests, cost, server)
    # an arrival that falls on the other side of a step's end waits one step more or less
    assert result.seconds == pytest.approx(max(ended) - requests[0].arrival, rel=0.01, abs=0.006)
    mean = sum(end - request.arrival for end, request in zip(ended, requests, strict=True)) / len(requests)
    assert result.latency_ms.mean == pytest.approx(1e3 * mean, rel=0.01, abs=6.0)


# ---------------------------------------------------------------- properties


@settings(max_examples=100, deadline=None)
@given(
    workload, st.integers(1, 8), st.sampled_from(["in-flight", "static"]), st.booleans(), st.booleans(),
    st.sampled_from([None, 1, 3]),
)  # fmt: skip
def test_littles_law_and_that_everybody_is_served(
    requests: list[Request], slots: int, batching: str, evicts: bool, limited: bool, users: int | None
) -> None:
    share = (lambda tokens: tokens / 300) if limited else None
    server = Server(slots=slots, budget=256, batching=batching, evicts=evicts, cache_share=share)  # type: ignore[arg-type]
    result = replay(requests, cost, server, concurrency=users)
    assert result.requests + result.refused == len(requests)
    assert result.refused == 0
    # the integral of the number in the system over time, kept while the clock runs, is throughput x time in the system
    assert result.concurrency == pytest.approx(result.requests_per_s * result.latency_ms.mean / 1e3, rel=1e-6)
    for each in (result.ttft_ms, result.itl_ms, result.latency_ms, result.queue_ms):
        assert 0.0 <= each.p50 <= each.p90 <= each.p95 <= each.p99 <= each.max
        assert each.mean <= each.max * (1 + 1e-9)
    assert result.ttft_ms.mean <= result.latency_ms.mean + 1e-9
    assert 0.0 < result.busy_share <= 1.0
    assert result.batch <= slots
    if users is not None:
        assert result.concurrency <= users + 1e-9
    if limited:
        assert result.kv_peak <= 1.0 + slots * 60 / 300 * evicts
    if not evicts or not limited or batching == "static":
        assert result.preemptions == 0


def test_the_same_seed_gives_the_same_result_and_another_seed_does_not() -> None:
    lengths, server = [(100, 30), (400, 60), (50, 10)], Server(slots=16, budget=2048)
    runs = [replay(drawn(lengths, 300, rate=20.0, seed=seed), cost, server) for seed in (7, 7, 8)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_max_utilization_preempts_and_keeps_more_in_flight() -> None:
    requests = drawn([(50, 400)], 200, rate=None)
    share = lambda tokens: tokens / 4000  # noqa: E731
    careful = replay(requests, cost, Server(64, 8192, cache_share=share))
    eager = replay(requests, cost, Server(64, 8192, cache_share=share, evicts=True))
    # reserved: 450 tokens each, 8 at once; by use an average 250 tokens, up to twice as many
    assert (careful.preemptions, careful.batch <= 8) == (0, True)
    assert eager.preemptions > 0
    assert eager.batch > 1.3 * careful.batch
    assert eager.kv_share > careful.kv_share
    assert eager.output_tokens_per_s > careful.output_tokens_per_s


def test_prefix_reuse_shortens_the_wait_for_the_first_token() -> None:
    requests = drawn([(2000, 20)], 100, rate=5.0)
    plain = replay(requests, cost, Server(16, 8192))
    reused = replay(requests, cost, Server(16, 8192, shared_prefix=0.75))
    assert reused.ttft_ms.mean < 0.5 * plain.ttft_ms.mean


def test_what_the_engine_would_refuse_is_counted_and_left_out() -> None:
    requests = [Request(0.0, 5000, 10), Request(0.0, 100, 10), Request(0.0, 100, 4000)]
    result = replay(requests, cost, Server(4, 4096, cache_share=lambda tokens: tokens / 4000))
    assert (result.requests, result.refused) == (1, 2)
    assert "refused" in result.notes[0]
    # asked one by one, the users behind the refused ones go on
    closed = replay(requests, cost, Server(4, 4096, cache_share=lambda tokens: tokens / 4000), concurrency=1)
    assert (closed.requests, closed.refused) == (1, 2)


def test_queueing_grows_as_the_load_nears_saturation() -> None:
    server, waits = Server(slots=8, budget=2048), []
    for rate in (2.0, 6.0, 9.0, 14.0):
        waits.append(replay(drawn([(100, 200)], 2000, rate=rate, seed=3), cost, server).queue_ms.mean)
    assert waits == sorted(waits)
    assert waits[-1] > 100 * waits[0]


# ---------------------------------------------------------------- with the estimator's own step times


LLAMA_70B = read_model("meta-llama/Llama-3.3-70B-Instruct")[0]
FP8_OVER_4 = Deployment(weights="fp8", kv_cache="fp8", tensor_parallel=4)


@pytest.mark.parametrize("model, deployment", [(LLAMA_8B, Deployment()), (LLAMA_70B, FP8_OVER_4)], ids=["8B", "70B"])
@pytest.mark.parametrize("rate, isl, osl", [(2.0, 1024, 256), (6.0, 1024, 256), (4.0, 512, 512), (1.0, 4096, 256)])
def test_the_steady_state_and_the_simulation_agree_at_a_moderate_rate(
    rate: float, isl: int, osl: int, model: Model, deployment: Deployment
) -> None:
    load = Load(isl=isl, osl=osl, rate=rate, requests=1500)
    analytic = estimate(model, H100, deployment, load)
    simulated = simulate(model, H100, deployment, load)
    assert simulated.itl_ms.mean == pytest.approx(analytic.itl_ms, rel=0.05)
    assert simulated.output_tokens_per_s == pytest.approx(analytic.output_tokens_per_s, rel=0.05)
    assert simulated.concurrency == pytest.approx(analytic.concurrency, rel=0.06)
    assert simulated.ttft_ms.mean == pytest.approx(analytic.ttft_ms, rel=0.13)
    assert simulated.latency_ms.mean == pytest.approx(analytic.request_latency_ms, rel=0.05)


@pytest.mark.parametrize("users", [4, 32, 128])
def test_the_steady_state_and_the_simulation_agree_in_a_closed_loop(users: int) -> None:
    # lengths spread evenly around the mean, so that the users do not march in step
    lengths = tuple((isl, osl) for isl in range(512, 1537, 128) for osl in range(128, 385, 32))
    load = Load(isl=1024, osl=256, concurrency=users, requests=40 * users, lengths=lengths)
    analytic = estimate(LLAMA_8B, H100, Deployment(), load)
    simulated = simulate(LLAMA_8B, H100, Deployment(), load)
    assert simulated.itl_ms.mean == pytest.approx(analytic.itl_ms, rel=0.06)
    assert simulated.output_tokens_per_s == pytest.approx(analytic.output_tokens_per_s, rel=0.06)
    assert simulated.ttft_ms.mean == pytest.approx(analytic.ttft_ms, rel=0.15)


@pytest.mark.parametrize("users", [8, 64])
@pytest.mark.parametrize("settings", [{"batch_wait_steps": 20, "batch_wait_fill": 0.9}, {"poll_steps": 30}])
def test_both_know_how_long_prompts_are_held_back(users: int, settings: dict[str, float]) -> None:
    lengths = tuple((isl, osl) for isl in range(512, 1537, 128) for osl in range(256, 769, 64))
    load = Load(isl=1024, osl=512, concurrency=users, requests=40 * users, lengths=lengths)
    plain = Deployment(max_num_tokens=8192)
    held = plain.model_copy(update=settings)
    ours = [estimate(LLAMA_8B, H100, deployment, load).ttft_ms for deployment in (plain, held)]
    simulated = [simulate(LLAMA_8B, H100, deployment, load).ttft_ms.mean for deployment in (plain, held)]
    assert ours[0] is not None and ours[1] is not None and ours[1] > 1.5 * ours[0]
    assert simulated[1] - simulated[0] == pytest.approx(ours[1] - ours[0], rel=0.15)


def test_the_engines_handling_of_a_request_is_in_its_latency_and_in_no_queue() -> None:
    plain, handled = (replay(drawn([(100, 20)], 200, rate=3.0), cost, Server(8, 2048), handling=x) for x in (0.0, 0.05))
    assert handled.ttft_ms.mean == pytest.approx(plain.ttft_ms.mean + 50) and handled.queue_ms == plain.queue_ms
    assert handled.concurrency == pytest.approx(handled.requests_per_s * handled.latency_ms.mean / 1e3, rel=1e-6)


def test_the_idle_share_of_static_batches_is_the_one_computed_from_the_lengths() -> None:
    lengths = tuple((100, osl) for osl in (50, 80, 100, 150, 400))
    load = Load(isl=100, osl=156, requests=4000, lengths=lengths)
    simulated = simulate(LLAMA_8B, H100, Deployment(batching="static", max_batch_size=16), load, seed=5)
    assert simulated.idle_share == pytest.approx(static_idle_share(load, 16), abs=0.02)
    in_flight = simulate(LLAMA_8B, H100, Deployment(max_batch_size=16), load, seed=5)
    assert in_flight.idle_share == 0.0
    assert in_flight.output_tokens_per_s > 1.3 * simulated.output_tokens_per_s


def test_speculation_shortens_the_time_between_tokens_by_its_gain() -> None:
    deployment = Deployment(speculation=Speculation(method="ngram", draft_len=4, acceptance=0.6))
    load = Load(isl=128, osl=512, concurrency=1, requests=20)
    plain, drafted = simulate(LLAMA_8B, H100, Deployment(), load), simulate(LLAMA_8B, H100, deployment, load)
    constants = constants_of(H100)
    assert constants is not None
    made = speculating(step_time(constants, LLAMA_8B, deployment, Engine()), LLAMA_8B, deployment)
    assert isinstance(made, Speculating)
    assert plain.itl_ms.mean / drafted.itl_ms.mean == pytest.approx(made.gain(1, 384), rel=0.02)


def test_replicas_share_the_requests() -> None:
    one = simulate(LLAMA_8B, H100, Deployment(), Load(isl=512, osl=128, rate=2.0, requests=500))
    two = simulate(LLAMA_8B, H100, Deployment(replicas=2), Load(isl=512, osl=128, rate=4.0, requests=1000))
    assert two.output_tokens_per_s == pytest.approx(2 * one.output_tokens_per_s)
    assert two.ttft_ms == one.ttft_ms


def test_fewer_users_than_replicas_leave_some_idle() -> None:
    one = simulate(LLAMA_8B, H100, Deployment(), Load(isl=512, osl=128, concurrency=1, requests=50))
    spread = simulate(LLAMA_8B, H100, Deployment(replicas=4), Load(isl=512, osl=128, concurrency=2, requests=100))
    assert spread.output_tokens_per_s == pytest.approx(2 * one.output_tokens_per_s)
    assert spread.concurrency == pytest.approx(2.0)


def test_weights_that_leave_no_cache_cannot_be_simulated() -> None:
    small = H100.model_copy(update={"memory_gib": 16.0})
    with pytest.raises(NotPossible):
        simulate(LLAMA_8B, small, Deployment(), Load(isl=512, osl=128, rate=1.0))


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces are not here")
def test_a_real_hour_of_a_coding_service() -> None:
    with (TRACES / "azure_2023_code.csv").open() as file:
        rows = [
            (datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
            for row in csv.DictReader(file)
        ]
    requests = from_trace(rows)
    result = simulate(LLAMA_8B, H100, Deployment(chunked_prefill=True), Load(isl=2048, osl=28), requests=requests)
    assert result.requests == len(requests) == len(rows) > 8000
    assert result.seconds == pytest.approx(requests[-1].arrival, rel=0.01)
    assert result.concurrency == pytest.approx(result.requests_per_s * result.latency_ms.mean / 1e3, rel=1e-6)
    assert result.ttft_ms.p50 < result.ttft_ms.p99
    assert result.busy_share < 1.0


# ---------------------------------------------------------------- requests


def test_a_trace_is_sorted_and_starts_at_zero() -> None:
    assert from_trace([(5.0, 2, 3), (4.0, 1, 1)]) == (Request(0.0, 1, 1), Request(1.0, 2, 3))


@pytest.mark.parametrize("row", [(0.0, -1, 5), (0.0, 5, 0), (0.0, 10**9, 5), (math.inf, 5, 5), (math.nan, 5, 5)])
def test_a_trace_with_impossible_requests_is_refused(row: tuple[float, int, int]) -> None:
    with pytest.raises(TrafficProblem):
        from_trace([(0.0, 1, 1), row])


def test_drawn_arrivals_have_the_rate_and_the_burstiness() -> None:
    for burstiness in (0.0, 1.0, 2.0):
        times = [request.arrival for request in drawn([(1, 1)], 20001, rate=4.0, burstiness=burstiness, seed=1)]
        gaps = [later - earlier for earlier, later in pairwise(times)]
        mean = sum(gaps) / len(gaps)
        deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
        assert mean == pytest.approx(0.25, rel=0.05)
        assert deviation / mean == pytest.approx(burstiness, abs=0.08)


def test_drawing_needs_lengths_and_a_positive_rate() -> None:
    with pytest.raises(TrafficProblem):
        drawn([], 5, rate=None)
    with pytest.raises(TrafficProblem):
        drawn([(1, 1)], 5, rate=0.0)
