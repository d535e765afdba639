"""Points in, Estimates out: the contract's example, the order, and every way a line can be wrong."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor import prediction
from advisor.cli import main
from advisor.errors import InputError, UnknownName
from advisor.estimator.arrivals import Request, drawn
from advisor.estimator.deployment import estimate
from advisor.prediction import LONGEST_LINE, predict, predict_lines, read_lines, simulate_traffic
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.types import Deployment, Estimate, Load, Point, Simulated

TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"

EXAMPLE: dict[str, Any] = {
    "model": "meta-llama/Llama-3.3-70B-Instruct", "gpu": "h100-sxm-80gb", "tensor_parallel": 2, "pipeline_parallel": 1,
    "expert_parallel": 1, "attention_dp": False, "weights": "fp8", "kv_cache": "fp8", "batching": "in-flight",
    "isl": 1024, "osl": 1024, "concurrency": 64, "speculation": None,
}  # fmt: skip


def one(**changes: Any) -> dict[str, Any]:
    """The answer to the example with these fields changed; a field of ... is left out."""
    row = {name: value for name, value in {**EXAMPLE, **changes}.items() if value is not ...}
    found: dict[str, Any] = json.loads(next(predict_lines([json.dumps(row)])))
    return found


def test_the_contracts_example_gives_the_contracts_fields() -> None:
    found = one()
    assert set(found["memory_gib"]) == {"weights", "kv_cache", "activations", "runtime", "total", "capacity"}
    assert found["fits"] is True
    assert set(found["bound_by"]) == {"prefill", "decode"}
    for number in ("max_concurrency", "ttft_ms", "itl_ms", "output_tokens_per_s", "output_tokens_per_s_per_gpu"):
        assert found[number] > 0
        assert found["basis"][number] in ("arithmetic", "published", "silicon", "measured")
    assert isinstance(found["range"], dict)
    assert found["output_tokens_per_s"] == pytest.approx(2 * found["output_tokens_per_s_per_gpu"])
    assert Estimate.model_validate(found).fits


def test_a_line_is_what_estimate_says() -> None:
    model, gpu = read_model(EXAMPLE["model"])[0], find_gpu("h100-sxm-80gb", 2)[0]
    deployment = Deployment(tensor_parallel=2, weights="fp8", kv_cache="fp8")
    expected = estimate(model, gpu, deployment, Load(isl=1024, osl=1024, concurrency=64))
    assert one() == json.loads(expected.model_dump_json())


def test_max_concurrency_is_what_memory_holds_and_a_rate_replaces_it() -> None:
    offline, crowded = one(concurrency="max"), one(concurrency=4)
    assert offline["output_tokens_per_s"] > 2 * crowded["output_tokens_per_s"]
    assert offline["concurrency"] <= offline["max_concurrency"]
    rated = one(rate=1.5)
    assert rated["output_tokens_per_s"] == pytest.approx(1.5 * 1024, rel=0.01)


def test_replicas_need_their_gpus_and_multiply_throughput() -> None:
    alone, four = one(), one(replicas=4, concurrency=256)
    assert four["output_tokens_per_s"] == pytest.approx(4 * alone["output_tokens_per_s"])


def test_answers_come_in_order_and_errors_take_their_place() -> None:
    rows = []
    for number in range(300):
        rows.append(json.dumps({**EXAMPLE, "isl": 100 + number}) if number % 7 else "{" if number % 2 else '{"model": 1}')
    answers = [json.loads(answer) for answer in predict_lines(rows)]
    assert len(answers) == 300
    assert [("error" in answer) for answer in answers] == [number % 7 == 0 for number in range(300)]
    good = [answer["memory_gib"]["kv_cache"] for answer in answers if "error" not in answer]
    assert good == sorted(good) and good[0] < good[-1]


def test_blank_lines_are_left_out_and_a_byte_order_mark_is_forgiven() -> None:
    line = json.dumps(EXAMPLE)
    assert len(list(predict_lines(["\ufeff" + line + "\n", "\n", "   ", line]))) == 2


# ---------------------------------------------------------------- what can be wrong


@pytest.mark.parametrize(
    "changes, error, hint",
    [
        ({"weigths": "fp8"}, "unknown key 'weigths'", "did you mean weights?"),
        ({"colour": "red"}, "unknown key 'colour'", "known: "),
        ({"speculation": {"method": "ngram", "draftlen": 3}}, "'speculation.draftlen'", "did you mean speculation.draft_len?"),
        ({"weights": "fp16"}, 'unknown weights format "fp16"', "bf16 stands for any 16-bit weights"),
        ({"weights": "w4a16"}, 'unknown weights format "w4a16"', "int4_awq or int4_gptq"),
        ({"weights": "nvpf4"}, "nvpf4", "did you mean nvfp4?"),
        ({"weights": "BF16"}, "BF16", "did you mean bf16?"),
        ({"weights": None}, "null", "one of bf16"),
        ({"kv_cache": "fp4"}, "kv_cache", "did you mean nvfp4?"),
        ({"kv_cache": "auto"}, "kv_cache", "name the format"),
        ({"batching": "continuous"}, "batching", "'in-flight' or 'static'"),
        ({"isl": 0}, "isl is 0", "above 0"),
        ({"osl": -5}, "osl is -5", "above 0"),
        ({"isl": 1e300}, "isl is 1e+300", "at most 100,000,000"),
        ({"isl": 1.5}, "isl is 1.5", "integer"),
        ({"isl": None}, "isl is null", "integer"),
        ({"isl": ...}, "isl is missing", "model, gpu, isl and osl"),
        ({"concurrency": "many"}, 'concurrency is "many"', 'or "max"'),
        ({"concurrency": 0}, "concurrency is 0", "above 0"),
        ({"concurrency": True}, "concurrency is true", "above 0"),
        ({"rate": -1}, "rate is -1", "above 0"),
        ({"tensor_parallel": 0}, "tensor_parallel is 0", "above 0"),
        ({"tensor_parallel": 3}, "64 attention heads", "divisor of 64"),
        ({"expert_parallel": 2}, "without experts", "tensor parallelism"),
        ({"gpu": "h1000"}, "unknown GPU: 'h1000'", "did you mean"),
        ({"model": "lama-3.3-70b"}, "unknown model: 'lama-3.3-70b'", "did you mean"),
        ({"model": 7}, "model is 7", "string"),
        ({"model": ...}, "model is missing", "a Point needs"),
        ({"engine": "trt"}, 'engine is "trt"', "tensorrt-llm"),
        ({"speculation": "ngram"}, 'speculation is "ngram"', "method"),
        ({"speculation": {"draft_len": 3}}, "speculation.method is missing", "method"),
        ({"speculation": {"method": "eagle"}}, 'speculation.method is "eagle"', "'eagle3'"),
        ({"speculation": {"method": "ngram", "acceptance": 1.7}}, "speculation.acceptance is 1.7", "0 to 1"),
        ({"batch_wait_steps": -3}, "batch_wait_steps", ""),
        ({"batch_wait_fill": 1.5}, "batch_wait_fill", ""),
        ({"poll_steps": 0}, "poll_steps", ""),
        ({"speculation": {"method": "ngram", "draft_len": 0}}, "speculation.draft_len is 0", "above 0"),
    ],
)
def test_a_wrong_point_says_what_and_what_to_do(changes: dict[str, Any], error: str, hint: str) -> None:
    found = one(**changes)
    assert set(found) == {"error", "hint"}
    assert error in found["error"]
    assert hint in found["hint"]
    assert "--" not in found["error"], "a flag is no place in a line of JSON"


@pytest.mark.parametrize(
    "line, error",
    [
        ("{", "not JSON at column 2"),
        ('{"isl": NaN}', "NaN is not a JSON number"),
        ('{"isl": Infinity}', "Infinity is not a JSON number"),
        ("[1, 2]", "this is a list"),
        ('"text"', "this is a string"),
        ("null", "this is null"),
        ("true", "this is true or false"),
        ("12", "this is a number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"isl": ' + "9" * 5000 + "}", "not JSON"),
        ("\x00\x01", "not JSON"),
    ],
)
def test_what_is_not_a_point_says_so(line: str, error: str) -> None:
    found = json.loads(next(predict_lines([line])))
    assert error in found["error"] and found["hint"]


def test_a_deployment_that_does_not_fit_is_an_answer_not_an_error() -> None:
    found = one(weights="bf16", tensor_parallel=1)
    assert found["fits"] is False
    assert found["ttft_ms"] is None and found["output_tokens_per_s"] is None
    assert any("GiB per GPU are missing" in note for note in found["notes"])


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*EXAMPLE, "replicas", "rate", "requests", "max_batch_size", "max_num_tokens", "engine", "draft"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
        max_size=4,
    )
)  # fmt: skip
def test_whatever_a_line_holds_it_gets_one_line_of_json_back(changes: dict[str, Any]) -> None:
    # names that could be hub ids are left out: they are looked up on the network
    if isinstance(changes.get("model"), str):
        changes.pop("model")
    answers = list(predict_lines([json.dumps({**EXAMPLE, **changes})]))
    assert len(answers) == 1 and "\n" not in answers[0]
    found = json.loads(answers[0], parse_constant=lambda name: pytest.fail(f"{name} in the output"))
    if "error" in found:
        assert set(found) == {"error", "hint"} and "made the estimator fail" not in found["error"]
    else:
        assert "memory_gib" in found


# ---------------------------------------------------------------- values and streams


def test_values_go_in_and_out_as_values() -> None:
    point = Point.model_validate(EXAMPLE)
    first, second, third = predict([point, EXAMPLE, point.model_copy(update={"isl": -1})])
    assert isinstance(first, Estimate) and isinstance(second, Estimate)
    assert first == second
    assert isinstance(third, dict) and "isl is -1" in third["error"]


def test_a_fault_of_ours_costs_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> Estimate:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(prediction, "estimate", broken)
    found = one()
    assert "ZeroDivisionError" in found["error"] and found["hint"]


def test_a_name_is_looked_up_once_whether_known_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> Any:
        calls.append(name)
        raise UnknownName("model", name, ())

    monkeypatch.setattr(prediction, "read_model", counted)
    prediction._read.cache_clear()
    try:
        answers = list(predict_lines([json.dumps({**EXAMPLE, "model": "nobody-knows"})] * 50))
    finally:
        prediction._read.cache_clear()
    assert calls == ["nobody-knows"]
    assert len(set(answers)) == 1


def test_a_line_without_end_is_cut_and_the_rest_goes_on() -> None:
    long = "x" * (3 * LONGEST_LINE)
    stream = io.StringIO(f"{json.dumps(EXAMPLE)}\n{long}\n{json.dumps(EXAMPLE)}\n")
    answers = [json.loads(answer) for answer in predict_lines(read_lines(stream))]
    assert ["error" in answer for answer in answers] == [False, True, False]
    assert "characters" in answers[1]["error"]


def test_memory_does_not_grow_with_the_number_of_lines() -> None:
    line = json.dumps(EXAMPLE)
    list(predict_lines([line] * 10))
    tracemalloc.start()
    for _ in predict_lines(line for _ in range(3000)):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 2**20


# ---------------------------------------------------------------- single requests


def trace_of(folder: Path, requests: Sequence[Request]) -> str:
    """A trace file of these requests."""
    file = folder / "trace.csv"
    rows = (f"{request.arrival:.6f},{request.isl},{request.osl}\n" for request in requests)
    file.write_text("".join(["arrival_time,prompt_tokens,completion_tokens\n", *rows]))
    return str(file)


def test_a_trace_is_served_as_it_was_and_agrees_with_the_estimate_where_that_applies(tmp_path: Path) -> None:
    rate, lengths = 5.0, {"isl": 1000, "osl": 200}
    trace = trace_of(tmp_path, drawn([(1000, 200)], 3000, rate=rate, seed=1))
    point = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h100", "weights": "fp8", "chunked_prefill": True}
    simulated = simulate_traffic(point, trace)
    estimated = next(iter(predict([{**point, **lengths, "rate": rate}])))
    assert isinstance(estimated, Estimate)
    assert (simulated.requests, simulated.refused) == (3000, 0)
    assert simulated.itl_ms.mean == pytest.approx(estimated.itl_ms, rel=0.06)
    assert simulated.ttft_ms.mean == pytest.approx(estimated.ttft_ms, rel=0.15)
    assert simulated.output_tokens_per_s == pytest.approx(estimated.output_tokens_per_s, rel=0.05)
    assert simulated.ttft_ms.p50 < simulated.ttft_ms.p99
    assert "3,000 requests of" in simulated.notes[0] and "as they arrived" in simulated.notes[0]


def test_a_load_beside_a_trace_draws_requests_of_its_lengths(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, drawn([(100, 20), (3000, 400)], 500, rate=2.0, seed=1))
    point = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h100"}
    few, many = (simulate_traffic({**point, "concurrency": users}, trace) for users in (4, 64))
    assert few.concurrency == pytest.approx(4, rel=0.01) and many.concurrency == pytest.approx(64, rel=0.05)
    assert few.itl_ms.mean < many.itl_ms.mean and few.kv_peak < many.kv_peak
    offline = simulate_traffic({**point, "concurrency": "max", "requests": 300}, trace)
    assert offline.requests == 300 and offline.queue_ms.max > many.queue_ms.max
    for slip in ({"requests": 10**9}, {"concurrency": 10**6}):
        with pytest.raises(InputError, match="more than the 100,000 that are simulated"):
            simulate_traffic({**point, **slip}, trace)


def advise(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a command."""
    monkeypatch.setattr(sys, "argv", ["advise", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces are not here")
def test_the_command_simulates_a_real_hour(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("predict", "--model", "meta-llama/Llama-3.1-8B", "--gpu", "h100", "--chunked-prefill", "--traffic")
    assert advise(monkeypatch, *words, str(TRACES / "azure_2023_code.csv")) == 0
    made = Simulated.model_validate_json(capsys.readouterr().out)
    assert made.requests > 8000 and made.busy_share < 0.5 and made.queue_peak > 0
    assert advise(monkeypatch, *words, str(TRACES / "no.csv")) == 1
    assert "there is no such trace" in capsys.readouterr().err
    assert advise(monkeypatch, *words, "chat", "--from", "points.jsonl") == 2
