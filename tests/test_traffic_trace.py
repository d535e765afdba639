"""Request traces: what is counted, and what is refused."""

import gzip
import io
import itertools
import json
import math
import random
import statistics
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.errors import FileProblem, TrafficProblem
from advisor.profiler import tally
from advisor.profiler.tally import GapTally, PrefixTally, Reservoir, TokenTally
from advisor.profiler.trace import read_trace
from advisor.profiler.traffic import read_traffic

TRACES = Path(__file__).parents[1].parent / "shared" / "traces"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def trace(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(tmp_path, text, name="trace.csv"):
    return read_trace(trace(tmp_path, text, name))[0]


# ---------------------------------------------------------------- the two production traces


def test_the_azure_trace():
    if not TRACES.is_dir():
        pytest.skip("no traces here")
    traffic, sources = read_traffic(str(TRACES / "azure_2023_code.csv"))
    assert traffic.requests == 8819
    assert traffic.isl.mean == pytest.approx(2047.848, abs=1e-3) and traffic.isl.max == 7437
    assert traffic.osl.p50 == 13
    assert traffic.rate == pytest.approx(2.5664, rel=1e-4)
    assert traffic.concurrency is None and traffic.shared_prefix is None
    assert any("latency" in note for note in traffic.notes)
    assert sources["traffic.isl"].endswith("azure_2023_code.csv, column ContextTokens")
    assert "traffic.shared_prefix" not in sources and "traffic.concurrency" not in sources


def test_the_mooncake_trace_agrees_with_its_paper():
    """Qin et al., FAST 2025, table 2: 12,031 requests, 12,035 and 343 tokens; our prefix share against a count by hand."""
    if not TRACES.is_dir():
        pytest.skip("no traces here")
    path = TRACES / "mooncake_conversation.jsonl"
    traffic, _ = read_traffic(str(path))
    assert (traffic.requests, round(traffic.isl.mean), round(traffic.osl.mean)) == (12031, 12035, 343)
    assert traffic.rate == pytest.approx(3.4012, rel=1e-4)
    seen, repeated, total = set(), 0, 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        leading = 0
        for block in row["hash_ids"]:
            if block not in seen:
                break
            leading += 1
        seen.update(row["hash_ids"])
        repeated += min(leading * 512, row["input_length"])
        total += row["input_length"]
    assert traffic.shared_prefix == pytest.approx(repeated / total, rel=1e-12)


# ---------------------------------------------------------------- columns, times, formats


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,10,2\n2023-11-16 18:17:05.9799600,30,4\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10T00:00:00+00:00,10,2\n2024-05-10T02:00:02+0200,30,4\n",
        "arrival_time,prompt_tokens,completion_tokens\n0.5,10,2\n2.5,30,4\n",
        "Timestamp;Request tokens;Response tokens\n5;10;2\n7;30;4\n",
        "isl\tosl\tarrival_time_ms\n10\t2\t0\n30\t4\t2000\n",
        "\ufeffstart_time_s,Input-Tokens,output.tokens,model\r\n0,10,2,a\r\n2,30.0,4,b\r\n",
        '{"timestamp": 0, "input_length": 10, "output_length": 2, "hash_ids": [1]}\n'
        '{"timestamp": 2000, "input_length": 30, "output_length": 4, "hash_ids": [2]}\n',
        '{"timestamp": 0.5, "input_length": 10, "output_length": 2}\n\n'
        '{"timestamp": 2.5, "input_length": 30, "output_length": 4}\n\n',
        '{"ts": 1700000000000, "isl": 10, "osl": 2}\n{"ts": 1700000002000, "isl": 30, "osl": 4}',
        '{"created": 1700000000, "num_prompt_tokens": 10, "num_output_tokens": 2}\n'
        '{"created": 1700000002, "num_prompt_tokens": 30, "num_output_tokens": 4}',
        '{"arrival_us": 0, "isl": 10, "osl": 2}\n{"arrival_us": 2000000, "isl": 30, "osl": 4}',
    ],
)
def test_the_usual_columns_units_and_formats(tmp_path, text):
    traffic = read(tmp_path, text)
    assert (traffic.isl.mean, traffic.osl.mean, traffic.requests) == (20, 3, 2)
    assert traffic.rate == pytest.approx(0.5)
    assert set(traffic.lengths) == {(10, 2), (30, 4)}


def test_gzip_is_recognised_by_its_content(tmp_path):
    text = AZURE + "2023-11-16 18:17:03,10,2\n2023-11-16 18:17:05,30,4\n"
    assert read(tmp_path, gzip.compress(text.encode()), "trace.csv.gz").isl.mean == 20
    assert read(tmp_path, gzip.compress(text.encode()), "trace.csv").isl.mean == 20


def test_standard_input(monkeypatch):
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b"ts,isl,osl\n0,10,2\n1,10,2\n"))

    monkeypatch.setattr(sys, "stdin", Stdin)
    traffic, sources = read_traffic("-")
    assert traffic.requests == 2 and sources["traffic.isl"] == "trace standard input, column isl"
    assert not Stdin.buffer.closed


def test_a_unit_that_the_names_do_not_tell_is_said(tmp_path):
    assert (
        "timestamp is read as milliseconds"
        in read(
            tmp_path,
            '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"timestamp": 9, "input_length": 1, "output_length": 1}',
        ).notes[0]
    )
    assert "arrival is read as seconds" in read(tmp_path, "arrival,isl,osl\n0,1,1\n2,1,1\n").notes[0]


# ---------------------------------------------------------------- what is counted


def test_littles_law_from_a_latency_column(tmp_path):
    rows = "".join(f"{i},100,10,4.0\n" for i in range(101))
    traffic, sources = read_trace(trace(tmp_path, "arrival_time_s,isl,osl,latency_s\n" + rows))
    assert traffic.concurrency == pytest.approx(4.0)
    assert "Little's law" in sources["traffic.concurrency"]
    milliseconds = rows.replace(",4.0", ",4000")
    assert read(tmp_path, "arrival_time_s,isl,osl,e2e_latency_ms\n" + milliseconds).concurrency == pytest.approx(4.0)


@pytest.mark.parametrize("unit", ["date", "_ms", ""])
def test_littles_law_from_an_end_column(tmp_path, unit):
    def shown(second):
        if unit == "date":
            return f"2024-01-01 00:{second // 60:02d}:{second % 60:02d}"
        return str(second * 1000 if unit else second)

    suffix = unit if unit.startswith("_") else ""
    rows = "".join(f"{shown(i)},100,10,{shown(i + 7)}\n" for i in range(101))
    assert read(tmp_path, f"start_time{suffix},isl,osl,end_time{suffix}\n{rows}").concurrency == pytest.approx(7.0)


def test_arrivals_all_at_once_have_no_rate(tmp_path):
    traffic = read(tmp_path, "ts,isl,osl\n" + "0,10,2\n" * 5)
    assert traffic.rate is None and traffic.burstiness is None
    assert any("same time" in note for note in traffic.notes)


def test_one_request_is_a_trace(tmp_path):
    traffic = read(tmp_path, "ts,isl,osl\n0,10,2\n")
    assert traffic.requests == 1 and traffic.rate is None and traffic.isl.p99 == 10


def test_no_output_tokens_are_counted_and_said(tmp_path):
    traffic = read(tmp_path, "ts,isl,osl\n0,10,0\n1,10,0\n2,10,4\n")
    assert traffic.osl.p50 == 0 and any("2 of 3 requests have no output tokens" in note for note in traffic.notes)
    assert read(tmp_path, "ts,isl,osl\n0,10,0\n").length_dispersion is None


@given(st.lists(st.integers(0, 9_999_999) | st.integers(0, 3000), min_size=1, max_size=300))
@settings(max_examples=60, deadline=None)
def test_quantiles_are_those_of_the_sorted_list(values):
    counted = TokenTally()
    for value in values:
        counted.add(value)
    ordered = sorted(values)
    lengths = counted.lengths()
    for share, found in ((0.5, lengths.p50), (0.9, lengths.p90), (0.99, lengths.p99)):
        exact = ordered[max(1, math.ceil(share * len(ordered))) - 1]
        assert found == exact if exact < tally.EXACT_BELOW else exact * 0.999 <= found <= exact
    assert lengths.max == ordered[-1] and lengths.mean == pytest.approx(statistics.fmean(values))
    if sum(values):
        assert counted.dispersion() == pytest.approx(statistics.pstdev(values) / statistics.fmean(values), abs=1e-9)


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=200))
@settings(max_examples=60, deadline=None)
def test_burstiness_is_the_spread_of_the_gaps(gaps):
    counted, time = GapTally(), 1.7e9
    times = [time := time + gap for gap in gaps]
    assert all(counted.add(t) for t in times)
    real = [b - a for a, b in itertools.pairwise(times)]
    if statistics.fmean(real) > 0:
        assert counted.burstiness() == pytest.approx(statistics.pstdev(real) / statistics.fmean(real), rel=1e-6, abs=1e-6)
        assert counted.rate() == pytest.approx(len(real) / (times[-1] - times[0]))


def test_poisson_arrivals_have_burstiness_one():
    source, counted, time = random.Random(1), GapTally(), 0.0
    for _ in range(20_000):
        time += source.expovariate(3.0)
        counted.add(time)
    assert counted.burstiness() == pytest.approx(1.0, abs=0.03) and counted.rate() == pytest.approx(3.0, rel=0.03)


def test_shared_prefixes_count_leading_blocks_only():
    counted = PrefixTally()
    counted.add([1, 2, 3], 48)
    counted.add([1, 2, 9, 3], 60)
    counted.add([7, 2, 3], 48)
    counted.add(["1", 2], 20)
    assert counted.block_tokens() == 16
    assert counted.share() == pytest.approx(2 * 16 / 176)


def test_prompts_that_disagree_on_the_block_size_are_shared_by_blocks():
    counted = PrefixTally()
    counted.add([1, 2], 100)
    counted.add([1, 3, 4, 5], 100)
    assert counted.block_tokens() is None and counted.share() == pytest.approx(25 / 200)


def test_prefix_blocks_are_forgotten_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(tally, "GENERATION", 100)
    counted = PrefixTally()
    for i in range(1000):
        counted.add(range(i * 10, i * 10 + 10), 160)
    assert counted.forgot and len(counted._new) + len(counted._old) <= 240
    counted.add(range(10), 160)
    assert counted.share() == 0
    counted.add(range(9990, 10_000), 160)
    assert counted.share() > 0


def test_the_sample_is_uniform_and_the_same_each_time(tmp_path):
    def sampled(count):
        reservoir = Reservoir()
        for i in range(count):
            reservoir.add((i, i))
        return reservoir.pairs()

    assert sampled(512) == tuple((i, i) for i in range(512))
    drawn = sampled(200_000)
    assert drawn == sampled(200_000) and len(set(drawn)) == 512
    assert statistics.fmean(a for a, _ in drawn) == pytest.approx(100_000, rel=0.06)
    text = "ts,isl,osl\n" + "".join(f"{i},{i + 1},1\n" for i in range(2000))
    assert read(tmp_path, text).lengths == read(tmp_path, text).lengths
    assert len(read(tmp_path, text).lengths) == 512


# ---------------------------------------------------------------- what is refused, and where


GOOD = '{"ts": 0, "isl": 5, "osl": 5}\n'


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", None, "empty"),
        ("\n \n", None, "empty"),
        (AZURE, None, "no requests"),
        ("ts,osl\n0,5\n", 1, "no column for input tokens"),
        ("isl,osl\n5,5\n", 1, "no column for arrival time"),
        ("0,5,5\n1,5,5\n", 1, "no column for"),
        ("ts,isl,osl\n0,5,5\n1,-5,5\n", 3, "isl is '-5'"),
        ("ts,isl,osl\n0,5,-1\n", 2, "osl is '-1'"),
        ("ts,isl,osl\n0,0,5\n", 2, "isl is '0'"),
        ("ts,isl,osl\n0,5,5\n1,5,nan\n", 3, "osl is 'nan'"),
        ("ts,isl,osl\n0,5,inf\n", 2, "osl is 'inf'"),
        ("ts,isl,osl\n0,5.5,5\n", 2, "isl is '5.5'"),
        ("ts,isl,osl\n0,1_0,5\n", 2, "isl is '1_0'"),
        ("ts,isl,osl\n0,99999999999,5\n", 2, "isl is '99999999999'"),
        ("ts,isl,osl\n0,5,\n", 2, "osl is ''"),
        ("ts,isl,osl\nnan,5,5\n", 2, "ts is 'nan'"),
        ("ts,isl,osl\nyesterday,5,5\n", 2, "ts is 'yesterday'"),
        ("ts,isl,osl\n2024-13-01 00:00:00,5,5\n", 2, "ts is '2024-13-01 00:00:00'"),
        ("ts,isl,osl\n5,5,5\n4,5,5\n", 3, "arrived before the one above"),
        ("ts,isl,osl\n0,5,5\n1,5\n", 3, "2 fields where the header has 3"),
        ('ts,isl,osl\n0,5,5\n1,5,"5\n', 3, "not CSV"),
        ("ts,isl,osl,latency\n0,5,5,-1\n", 2, "ends before it arrives"),
        ("ts,isl,osl,end\n9,5,5,8\n", 2, "ends before it arrives"),
        ("ts,isl,osl,end\n9,5,5,soon\n", 2, "end is 'soon'"),
        (GOOD + '{"ts": 1, "isl": 5}\n', 2, "no osl"),
        (GOOD + '{"ts": 1, "isl": true, "osl": 5}\n', 2, "isl is 'True'"),
        (GOOD + '{"ts": 1, "isl": NaN, "osl": 5}\n', 2, "isl is 'nan'"),
        (GOOD + '{"ts": 1, "isl": null, "osl": 5}\n', 2, "isl is 'None'"),
        (GOOD + '{"ts": 1, "isl": [5], "osl": 5}\n', 2, "isl is"),
        (GOOD + '{"ts": [1], "isl": 5, "osl": 5}\n', 2, "ts is"),
        (GOOD + '{"ts": 1, "isl": 5, "osl": 5\n', 2, "not JSON"),
        (GOOD + "[1, 5, 5]\n", 2, "not a JSON object"),
        (GOOD + "[" * 100_000 + "\n", 2, "not JSON"),
        ('{"ts": 1, "isl": 5, "osl": 5, "hash_ids": 7}\n', 1, "hash_ids is '7'"),
        ('{"ts": 1, "isl": 5, "osl": 5, "hash_ids": [[1]]}\n', 1, "hash_ids is"),
        ('[{"ts": 1}]\n', 1, "JSON list"),
        (b"\x00\x01\x02\x03", 1, "not UTF-8 text"),
        (b"ts,isl,osl\n0,5,5\n1,5,5\n\xff\xfe\n", None, "not UTF-8 text"),
        ("ts,isl,osl\n0,5,5\n".encode("utf-16"), 1, "not UTF-8 text"),
        ("ts,isl,osl\n" + "7" * 2_000_000, 2, "a line of more than"),
        (gzip.compress(b"ts,isl,osl\n" + b"0,5,5\n" * 10_000)[:-20], None, "gzip"),
        (b"\x1f\x8bnot really", None, "gzip"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path, text, line, says):
    path = trace(tmp_path, text, "bad.csv")
    with pytest.raises(TrafficProblem, match=r"(?s).+") as caught:
        read_trace(path)
    assert says in caught.value.what
    assert caught.value.hint
    if line:
        assert caught.value.where == f"{path}:{line}"
    else:
        assert caught.value.where.startswith(path)


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(FileProblem, match="not a file"):
        read_traffic(str(tmp_path))


def test_a_missing_file_is_said_even_when_it_vanishes_after_the_check(tmp_path):
    with pytest.raises(FileProblem):
        read_trace(str(tmp_path / "gone.csv"))


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_never_raise_anything_else(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(content)
    try:
        read_trace(str(path))
    except (TrafficProblem, FileProblem) as error:
        assert error.hint
