"""The load client and what is made of it: against a server whose pace is known, and against figures worked out by hand."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm import CACHE

from advisor.errors import InputError
from advisor.executor.servers import aiperf, load
from advisor.executor.servers.engines import Launch, Server, fetch, free_port, serving
from advisor.executor.servers.load import Answer, Request, Round, gaps, make_requests, order_of, send
from advisor.executor.servers.measuring import (
    Arm,
    Bounds,
    Measured,
    NotMeasured,
    _why_end,
    figures_of,
    interval,
    measure,
    percentile,
)
from advisor.executor.servers.verifying import change_of, gate_of, judge, verify
from advisor.profiler.exposition import parse
from advisor.types import Estimate, Interval, Memory

STAND_IN = Path(__file__).with_name("stand_in_engine.py")
STEP, PREFILL = 0.01, 0.02
REFUSED, CUT = 77, 78
LENGTHS = [(16, 3), (32, 6), (48, 12), (64, 24)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("engine"), free_port()
    pace = ("--step", str(STEP), "--prefill", str(PREFILL), "--refuse", str(REFUSED), "--cut", str(CUT))
    command = (sys.executable, str(STAND_IN), "--port", str(port), *pace)
    launch = Launch("stand-in", "1", command, f"http://127.0.0.1:{port}", "stand-in")
    with serving(launch, log=folder / "log", deadline=30, journal=folder / "journal") as found:
        yield found


def seen(server: Server) -> dict[str, object]:
    return json.loads(fetch(server.url + "/seen")[1])


# ---------------------------------------------------------------- requests


def test_requests_have_the_lengths_asked_for_and_never_a_prompt_twice() -> None:
    first, second = (make_requests(LENGTHS, 12, vocab=1000, seed=seed) for seed in (1, 2))
    assert [(len(r.prompt), r.osl) for r in first] == [(len(r.prompt), r.osl) for r in second] == list(order_of(LENGTHS, 12))
    assert {pair: order_of(LENGTHS, 12).count(pair) for pair in LENGTHS} == dict.fromkeys(LENGTHS, 3)
    assert not {r.prompt for r in first} & {r.prompt for r in second}
    assert all(load.LOWEST_TOKEN <= token < 1000 for r in first for token in r.prompt)


def test_a_shared_prefix_is_shared() -> None:
    half = make_requests([(100, 4)], 3, vocab=50_000, shared_prefix=0.5, seed=3)
    assert len({r.prompt[:50] for r in half}) == 1
    assert len({r.prompt[50:] for r in half}) == 3


def test_texts_are_cut_or_joined_to_the_lengths_and_never_begin_alike() -> None:
    texts = [(101, 102, 103, 104), (201, 202), (301, 302, 303)]
    made = make_requests([(3, 4)], 3, vocab=1000, texts=texts)
    assert [r.prompt for r in made] == [(101, 102, 103), (201, 202, 301), (301, 302, 303)]
    again = make_requests([(3, 4)], 3, vocab=1000, texts=texts, first=3)
    assert [r.prompt for r in again] == [(102, 103, 104), (202, 301, 302), (302, 303, 101)]


def test_requests_need_lengths() -> None:
    with pytest.raises(InputError, match="no request lengths"):
        make_requests([], 4, vocab=100)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_arrivals_have_the_rate_and_burstiness_asked_for(burstiness: float) -> None:
    times = gaps(20_000, 4.0, burstiness)
    between = [b - a for a, b in zip((0.0, *times), times, strict=False)]
    assert statistics.fmean(between) == pytest.approx(0.25, rel=0.1)
    assert statistics.stdev(between) / statistics.fmean(between) == pytest.approx(burstiness, rel=0.1)


# ---------------------------------------------------------------- sending


def test_what_the_client_measures_is_the_servers_pace(server: Server) -> None:
    found = send(server, make_requests([(16, 11)], 3, vocab=1000), "in-flight", 1, 60)
    assert [answer.tokens for answer in found.answers] == [11, 11, 11]
    first = [answer.first - answer.sent for answer in found.answers if answer.first is not None]
    rest = [(answer.last - answer.first) / 10 for answer in found.answers if answer.first is not None]
    assert PREFILL <= min(first) < 3 * PREFILL  # the quickest of them: other processes may take the processor away
    assert 0.95 * STEP <= min(rest) < 2 * STEP
    body = seen(server)["bodies"][-1]  # type: ignore[index]
    assert body["max_tokens"] == body["min_tokens"] == 11 and body["ignore_eos"] is True and len(body["prompt"]) == 16


def test_in_flight_sends_the_next_as_soon_as_one_ends(server: Server) -> None:
    found = send(server, make_requests(LENGTHS, 16, vocab=1000), "in-flight", 4, 60)
    assert len(found.good) == 16
    events = sorted([(a.sent, 1) for a in found.good] + [(a.last, -1) for a in found.good], key=lambda e: (e[0], e[1]))
    at_once = [sum(step for _, step in events[: index + 1]) for index in range(len(events))]
    assert max(at_once) == 4


def test_static_sends_a_batch_when_the_one_before_has_ended(server: Server) -> None:
    found = send(server, make_requests(LENGTHS, 12, vocab=1000), "static", 4, 60)
    batches = [found.answers[first : first + 4] for first in (0, 4, 8)]
    for before, after in itertools.pairwise(batches):
        assert max(a.last for a in before) <= min(a.sent for a in after)
    longest = [max(osl for _, osl in order_of(LENGTHS, 12)[first : first + 4]) for first in (0, 4, 8)]
    expected = sum(PREFILL + STEP * (osl - 1) for osl in longest)
    assert 0.95 * expected <= found.ended - found.started < 4 * expected


def test_static_idles_as_the_lengths_say_and_in_flight_does_not(server: Server) -> None:
    requests = make_requests(LENGTHS, 24, vocab=1000)
    static = figures_of(send(server, requests, "static", 4, 60))
    flowing = figures_of(send(server, requests, "in-flight", 4, 60))
    batches = [order_of(LENGTHS, 24)[first : first + 4] for first in range(0, 24, 4)]
    steps = [osl - 1 for batch in batches for _, osl in batch]
    slots = sum(4 * max(osl - 1 for _, osl in batch) for batch in batches)
    assert static["idle_share"] == pytest.approx(1 - sum(steps) / slots, abs=0.15)
    assert flowing["idle_share"] < static["idle_share"] - 0.1
    assert flowing["output_tokens_per_s"] > static["output_tokens_per_s"]


def test_arrivals_are_sent_at_their_times(server: Server) -> None:
    times = (0.0, 0.3, 0.35, 0.8)
    found = send(server, make_requests([(16, 4)], 4, vocab=1000, arrivals=times), "arrivals", 1, 60)
    late = [answer.sent - found.started - at for answer, at in zip(found.answers, times, strict=True)]
    assert all(0 <= each < 0.5 for each in late), late


def test_a_trace_keeps_its_order_and_lengths() -> None:
    rows = [(5, 1), (6, 2), (7, 3)]
    made = make_requests(rows, 3, vocab=1000, arrivals=(0.0, 1.0, 2.0), shuffled=False)
    assert [(len(r.prompt), r.osl, r.at) for r in made] == [(5, 1, 0.0), (6, 2, 1.0), (7, 3, 2.0)]


def test_refused_cut_and_absent_are_errors_not_figures(server: Server) -> None:
    requests = [Request((1, 2), REFUSED), Request((1, 2), CUT), Request((1, 2), 3)]
    found = send(server, requests, "in-flight", 3, 60)
    assert [bool(answer.error) for answer in found.answers] == [True, True, False]
    assert "status 400" in found.answers[0].error and "too long" in found.answers[0].error
    nobody = send(Server(f"http://127.0.0.1:{free_port()}", "m"), requests[2:], "in-flight", 1, 60)
    assert "refused" in nobody.answers[0].error


def test_the_time_limit_ends_a_round(server: Server) -> None:
    found = send(server, make_requests([(16, 10)], 50, vocab=1000), "in-flight", 1, 0.6)
    assert found.cut and 1 <= len(found.answers) < 50
    assert found.ended - found.started < 2


# ---------------------------------------------------------------- figures


def test_figures_by_hand() -> None:
    answers = (Answer(0.0, 1.0, 3.0, 5), Answer(0.0, 2.0, 4.0, 3), Answer(4.0, 5.0, 6.0, 2), Answer(4.0, None, 4.5, 0, "no"))
    figures = figures_of(Round(answers, slots=2, started=0.0, ended=6.0))
    assert figures["ttft_ms"] == pytest.approx(4000 / 3)
    assert figures["itl_ms"] == pytest.approx((2000 / 4 + 2000 / 2 + 1000 / 1) / 3)
    assert figures["request_latency_ms"] == pytest.approx((3000 + 4000 + 2000) / 3)
    assert figures["output_tokens_per_s"] == pytest.approx(10 / 6)
    assert figures["idle_share"] == pytest.approx(3 / (3 + 5))  # 12 slot-seconds, 9 with a request, 5 of them decoding


def test_percentiles_are_numpys() -> None:
    values = [7.0, 1.0, 4.0, 10.0]
    assert [percentile(values, share) for share in (0, 0.25, 0.5, 0.9, 1)] == pytest.approx([1.0, 3.25, 5.5, 9.1, 10.0])


def test_intervals_hold_the_true_mean_19_times_of_20() -> None:
    draw = random.Random(7)
    inside = 0
    for _ in range(2000):
        found = interval("itl_ms", "plan", [draw.gauss(10, 2) for _ in range(4)], 4)
        assert found.low is not None and found.high is not None
        inside += found.low <= 10 <= found.high
    assert 0.935 <= inside / 2000 <= 0.965
    assert interval("itl_ms", "plan", [3.0], 1).low is None


# ---------------------------------------------------------------- measuring


def fixed(pairs: list[tuple[int, int]], count: int):
    return lambda number: make_requests(pairs, count, vocab=1000, seed=number)


def test_measuring_ends_once_it_is_decided_and_arms_take_turns(server: Server) -> None:
    lines: list[str] = []
    numbers: list[int] = []

    def requests(number: int) -> tuple[Request, ...]:
        numbers.append(number)
        return fixed(LENGTHS, 8)(number)

    arms = [Arm("static batching", server, "static", 4), Arm("plan", server, "in-flight", 4)]
    found = measure(
        arms, requests, limits={"itl_ms": 1000.0}, bounds=Bounds(least=2, most=3, seconds=60, precision=0.3),
        read_metrics=lambda text: parse(text, "m").values, tell=lines.append,
    )  # fmt: skip
    static, plan = found
    assert len(set(numbers)) == len(numbers)  # the arms share a server: its cache must not know what the other one asked
    assert all(2 <= len(each.rounds) <= 3 and each.errors == 0 for each in found)
    assert all(each.ended.startswith(("decided after", "ended at the bound of 3 rounds")) for each in found)
    assert lines[0].startswith("static batching: warm-up") and lines[2].startswith("static batching: round 1")
    assert lines[3].startswith("plan: round 1")
    assert plan.rounds[0].started > static.rounds[0].ended
    assert plan.metrics["acceptance"] == pytest.approx(0.5) and plan.metrics["acceptance_length"] == pytest.approx(3.0)
    assert 1 <= plan.metrics["batch_size"] <= 4 and plan.metrics["kv_cache_use_max"] == 0.25
    # the stand-in counts 1 for 4 requests, and counts one a moment after its client has the answer
    assert plan.metrics["preemptions"] == pytest.approx(2 * len(plan.rounds), abs=len(plan.rounds))


def test_a_limit_that_is_clearly_kept_or_missed_decides_whatever_the_width() -> None:
    """Rounds of one request each: TTFT 1 and 3 s, ITL 0.5 s, 1 token/s and so on, known to the last digit."""
    rounds = [Round((Answer(0.0, ttft, ttft + 1.0, 3),), 1, 0.0, 3.0) for ttft in (1.0, 1.2)]
    measured = Measured(Arm("plan", Server("http://127.0.0.1:9", "m"), "in-flight", 1), rounds=rounds)
    wide = measured.figure("ttft_ms")
    assert wide is not None and wide.low is not None and wide.high is not None and wide.high - wide.low > 2000
    ended = {limit: _why_end(measured, {"ttft_ms": limit}, Bounds(least=2, precision=0.05)) for limit in (1e6, 1100.0)}
    assert ended == {1e6: "decided after 2 rounds", 1100.0: ""}


def test_measuring_ends_at_its_bounds(server: Server) -> None:
    arms = [Arm("plan", server, "in-flight", 2)]
    rounds = measure(arms, fixed(LENGTHS, 4), limits={}, bounds=Bounds(least=2, most=3, seconds=60, precision=1e-9))[0]
    assert rounds.ended == "ended at the bound of 3 rounds"
    timed = measure(arms, fixed([(16, 20)], 50), limits={}, bounds=Bounds(least=2, most=9, seconds=1.0, precision=1e-9))[0]
    assert timed.ended.startswith("ended at the bound of 1 s") and len(timed.rounds) == 1


def test_a_server_that_answers_nothing_is_not_measured(server: Server) -> None:
    with pytest.raises(NotMeasured, match="no request was answered: status 400"):
        measure([Arm("plan", server, "in-flight", 2)], fixed([(16, REFUSED)], 2), limits={}, bounds=Bounds())


# ---------------------------------------------------------------- verifying


def figure(value: float, low: float | None, high: float | None, metric: str = "itl_ms") -> Interval:
    return Interval(metric=metric, what="plan", value=value, low=low, high=high, samples=9)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(8, 9, "passed"), (8, 10, "passed"), (10.1, 12, "failed"), (9, 11, "inconclusive"), (None, None, "inconclusive")],
)
def test_a_limit_is_judged_by_the_whole_interval(low: float | None, high: float | None, verdict: str) -> None:
    assert judge(figure(9.5, low, high), 10.0) == verdict


def test_the_gate_is_the_worst_verdict_and_errors_fail_it() -> None:
    good, bad, open_ = (figure(1, 1, 1).model_copy(update={"verdict": v}) for v in ("passed", "failed", "inconclusive"))
    assert gate_of([good], 0) == "passed"
    assert gate_of([good, open_], 0) == "inconclusive"
    assert gate_of([good, open_, bad], 0) == "failed"
    assert gate_of([good], 1) == "failed"
    assert gate_of([], 0) == "passed"


def test_every_figure_stands_beside_its_prediction(server: Server) -> None:
    bounds = Bounds(least=5, most=5, seconds=60)  # a machine that others load makes two rounds differ
    measured = measure([Arm("plan", server, "in-flight", 2)], fixed([(16, 11)], 4), limits={}, bounds=bounds)[0]
    memory = Memory(weights=1, kv_cache=1, activations=1, runtime=1, total=4, capacity=80)
    expected = Estimate(
        memory_gib=memory, fits=True, max_concurrency=9, ttft_ms=50.0, itl_ms=10.0, output_tokens_per_s=400.0,
        range={"itl_ms": (8.0, 12.0), "output_tokens_per_s": (300.0, 500.0)},
    )  # fmt: skip
    found = {f.metric: f for f in verify(measured, limits={"itl_ms": 500.0, "ttft_ms": 1.0}, expected=expected, replicas=2)}
    assert found["itl_ms"].predicted == 10.0 and found["itl_ms"].predicted_range == (8.0, 12.0)
    assert found["output_tokens_per_s"].predicted == 200.0  # one of two replicas
    assert found["output_tokens_per_s"].predicted_range == (150.0, 250.0)
    assert found["itl_ms"].verdict == "passed" and found["ttft_ms"].verdict == "failed"
    assert found["request_latency_ms"].predicted is None
    change = change_of(measured, tuple(found.values()))
    assert change.gate == "failed" and change.serving == tuple(found.values())
    assert "TTFT limit of 1 ms failed" in change.detail and "ITL: predicted 10, measured" in change.detail
    aside = change_of(measured, verify(measured, limits={}), gated=False)
    assert aside.gate == "not run"


# ---------------------------------------------------------------- aiperf


def test_a_record_of_aiperf_is_an_answer() -> None:
    recorded = json.loads(Path(__file__).with_name("recordings").joinpath("aiperf_record.json").read_text())
    good, failed = (aiperf.answer_of(record) for record in recorded["records"])
    assert good.tokens == recorded["tokens"] and not good.error
    assert good.first is not None and good.sent < good.first <= good.last
    assert (good.first - good.sent) * 1e3 == pytest.approx(recorded["ttft_ms"], rel=1e-4)
    assert failed.error and failed.tokens == 0


def test_aiperf_is_found_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv(aiperf.PROGRAM, raising=False)
    assert aiperf.find() is None
    assert aiperf.find(sys.executable) == sys.executable
    with pytest.raises(InputError, match="no such program"):
        aiperf.find("/no/such/aiperf")


@pytest.mark.slow
def test_aiperf_measures_what_our_own_client_measures(server: Server) -> None:
    """NVIDIA's client on the same requests to the same server: the pace that is known, by both."""
    program = aiperf.find()
    tokenizer = CACHE / "SmolLM2-135M-Instruct"
    if program is None or not (tokenizer / "tokenizer.json").exists():
        pytest.skip("not run: aiperf or a tokenizer is not here; name aiperf's program in ADVISE_AIPERF")
    found = aiperf.sender(program, str(tokenizer))(server, make_requests([(16, 11)], 8, vocab=1000), "in-flight", 2, 60)
    assert [answer.error for answer in found.answers] == [""] * 8 and not found.cut
    assert {answer.tokens for answer in found.answers} == {11}
    first = [answer.first - answer.sent for answer in found.answers if answer.first is not None]
    rest = [(answer.last - answer.first) / 10 for answer in found.answers if answer.first is not None]
    assert PREFILL <= min(first) < 3 * PREFILL
    assert 0.9 * STEP <= min(rest) < 2 * STEP
    with pytest.raises(ValueError, match="does not send static"):
        aiperf.sender(program, str(tokenizer))(server, [], "static", 2, 60)
