"""Servers' metrics as traffic: saved texts, and a real HTTP server on loopback."""

import json
import os
import socket
import statistics
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from advisor.errors import FileProblem, TrafficProblem
from advisor.profiler import prometheus
from advisor.profiler.exposition import parse
from advisor.profiler.prometheus import is_metrics, read_metrics
from advisor.profiler.traffic import read_traffic

BOUNDS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


def histogram(name, values, labels='model_name="m"', bounds=BOUNDS):
    lines = [f"# TYPE {name} histogram"]
    lines += [f'{name}_bucket{{le="{bound}",{labels}}} {sum(v <= bound for v in values)}.0' for bound in bounds]
    lines += [f'{name}_bucket{{{labels},le="+Inf"}} {len(values)}', f"{name}_count{{{labels}}} {len(values)}"]
    return "\n".join([*lines, f"{name}_sum{{{labels}}} {float(sum(values))}"]) + "\n"


def vllm(*, running=6, waiting=2, inputs=(150,) * 50 + (300,) * 50, outputs=(60,) * 100, extra=""):
    return (
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}\n'
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
        'vllm:kv_cache_usage_perc{model_name="m"} 0.43\n'
        f'vllm:request_success_total{{finished_reason="stop",model_name="m"}} {len(inputs) - 10}\n'
        'vllm:request_success_total{finished_reason="length",model_name="m"} 10\n'
        'vllm:prefix_cache_queries_total{model_name="m"} 22500\n'
        'vllm:prefix_cache_hits_total{model_name="m"} 4500\n'
        + histogram("vllm:request_prompt_tokens", inputs)
        + histogram("vllm:request_generation_tokens", outputs)
        + histogram("vllm:time_to_first_token_seconds", [0.25] * 100, bounds=(0.1, 0.5))
        + histogram("vllm:inter_token_latency_seconds", [0.02] * 100, bounds=(0.01, 0.05))
        + histogram("vllm:e2e_request_latency_seconds", [2.0] * 100, bounds=(1.0, 5.0))
        + extra
    )


TRTLLM = (
    'trtllm_request_success_total{finished_reason="stop",model_name="m"} 40\n'
    'trtllm_prompt_tokens_total{model_name="m"} 40000\n'
    'trtllm_generation_tokens_total{model_name="m"} 8000\n'
    'trtllm_prompt_cached_tokens_total{model_name="m"} 10000\n'
    'trtllm_num_requests_running{model_name="m"} 12\n'
    'trtllm_num_requests_waiting{model_name="m"} 0\n'
    'trtllm_spec_decode_drafted_tokens_total{model_name="m"} 3000\n'
    'trtllm_spec_decode_accepted_tokens_total{model_name="m"} 2100\n'
    "trtllm_kv_cache_utilization 0.5\n"
    + histogram("trtllm_time_to_first_token_seconds", [0.1] * 40, bounds=(0.25,))
    + histogram("trtllm_time_per_output_token_seconds", [0.01] * 40, bounds=(0.025,))
)


def saved(tmp_path, text, name="metrics.prom"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# ---------------------------------------------------------------- saved texts


def test_vllm_metrics(tmp_path):
    path = saved(tmp_path, vllm())
    traffic, sources, measured = read_metrics(path)
    assert traffic.concurrency == 8
    assert traffic.isl.mean == 225 and traffic.osl.mean == 60
    assert traffic.isl.p50 == 200
    assert traffic.isl.p90 == pytest.approx(200 + 300 * 40 / 50)
    assert traffic.isl.max == 500
    assert traffic.osl.p50 == pytest.approx(75)
    assert traffic.shared_prefix == pytest.approx(0.2)
    assert traffic.rate is None and any("One reading has no rate" in note for note in traffic.notes)
    assert any("43% of the KV cache" in note for note in traffic.notes)
    assert measured == {"ttft_ms": pytest.approx(250), "itl_ms": pytest.approx(20)}
    assert len(traffic.lengths) == 64 and statistics.fmean(a for a, _ in traffic.lengths) == pytest.approx(250, rel=0.05)
    assert sources["traffic.isl"] == f"vLLM metrics {path}: quantiles interpolated in its buckets"
    assert "measured.ttft_ms" in sources and "traffic.rate" not in sources


def test_trtllm_metrics_have_means_only(tmp_path):
    traffic, sources, measured = read_metrics(saved(tmp_path, TRTLLM))
    assert (traffic.isl.mean, traffic.osl.mean, traffic.isl.p99) == (1000, 200, 1000)
    assert traffic.concurrency == 12 and traffic.shared_prefix == 0.25
    assert measured == {"ttft_ms": pytest.approx(100), "itl_ms": pytest.approx(10), "acceptance": pytest.approx(0.7)}
    assert traffic.lengths == () and traffic.length_dispersion is None
    assert sum("spread is not known" in note for note in traffic.notes) == 2
    assert sources["traffic.shared_prefix"].startswith("TensorRT-LLM metrics")


def test_a_saved_text_is_recognised_as_traffic(tmp_path):
    path = saved(tmp_path, vllm(), "metrics.txt")
    assert read_traffic(path)[0].concurrency == 8
    assert not is_metrics(tmp_path) and not is_metrics(tmp_path / "none")


def test_two_readings_give_the_time_between_them(tmp_path):
    first = saved(tmp_path, vllm(inputs=(900,) * 100), "a.prom")
    second = saved(tmp_path, vllm(inputs=(900,) * 100 + (150,) * 60, outputs=(60,) * 160), "b.prom")
    os.utime(first, (1_700_000_000, 1_700_000_000))
    os.utime(second, (1_700_000_030, 1_700_000_030))
    traffic, sources, _ = read_metrics(f"{first},{second}")
    assert traffic.isl.mean == pytest.approx(150)
    assert traffic.isl.max == 200
    assert traffic.rate == pytest.approx(2.0)
    assert "modification times" in sources["traffic.rate"]
    assert read_traffic(f"{first},{second}")[0] == traffic


def test_without_running_requests_little_s_law_gives_the_concurrency(tmp_path):
    later = vllm(inputs=(150,) * 110 + (300,) * 50, outputs=(60,) * 160, running=0, waiting=0)
    later += histogram("vllm:e2e_request_latency_seconds", [2.0] * 60, labels='model_name="n"', bounds=(1.0, 5.0))
    first, second = saved(tmp_path, vllm(), "a.prom"), saved(tmp_path, later, "b.prom")
    os.utime(first, (0, 0))
    os.utime(second, (30, 30))
    traffic, sources, _ = read_metrics(f"{first},{second}")
    assert traffic.concurrency == pytest.approx(2.0 * 2.0)
    assert "Little's law" in sources["traffic.concurrency"]


def test_an_idle_server_has_no_concurrency(tmp_path):
    traffic, sources, _ = read_metrics(saved(tmp_path, vllm(running=0, waiting=0)))
    assert traffic.concurrency is None and "traffic.concurrency" not in sources
    assert any("No request was running" in note for note in traffic.notes)


def test_the_second_reading_must_be_the_later_one(tmp_path):
    first, second = saved(tmp_path, vllm(), "a.prom"), saved(tmp_path, vllm(inputs=(150,) * 200), "b.prom")
    os.utime(first, (50, 50))
    os.utime(second, (50, 50))
    with pytest.raises(TrafficProblem, match="not newer"):
        read_metrics(f"{first},{second}")
    os.utime(first, (90, 90))
    with pytest.raises(TrafficProblem, match="lower in the second reading"):
        read_metrics(f"{second},{first}")


def test_several_engines_are_added_up_and_said(tmp_path):
    text = vllm(extra='vllm:num_requests_running{engine="1",model_name="m"} 4\n')
    traffic, _, _ = read_metrics(saved(tmp_path, text))
    assert traffic.concurrency == 12 and any("2 models or engines" in note for note in traffic.notes)


def test_a_length_above_the_last_bucket_is_a_lower_bound(tmp_path):
    traffic, _, _ = read_metrics(saved(tmp_path, vllm(inputs=(9000,) * 100)))
    assert traffic.isl.p50 == 5000 and traffic.isl.mean == 9000 and traffic.isl.max == 9000
    assert any("above the last bucket: at least 5,000" in note for note in traffic.notes)


def test_interpolation_is_promql_s():
    values = [3] * 10 + [40] * 30 + [150] * 60
    found = parse(histogram("h", values), "t").histogram("h")
    assert found.quantile(0.05) == pytest.approx(2 + 3 * 5 / 10)
    assert found.quantile(0.25) == pytest.approx(20 + 30 * 15 / 30)
    assert found.quantile(0.7) == pytest.approx(100 + 100 * 30 / 60)
    assert found.largest() == (200, False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no metrics of vLLM or TensorRT-LLM"),
        ("# TYPE up gauge\nup 1\n", "no metrics of vLLM or TensorRT-LLM"),
        ("vllm:num_requests_running 0\n", "count no input tokens"),
        (vllm(inputs=(), outputs=()).replace("} -10", "} 0"), "count no input tokens"),
        ("vllm:num_requests_running\n", "not a Prometheus sample"),
        ("vllm:num_requests_running eight\n", "not a Prometheus sample"),
        ("<html>no</html>\n", "not a Prometheus sample"),
        (vllm(extra="vllm:request_prompt_tokens_bucket 4\n"), "no bound le"),
        (
            vllm().replace('tokens_bucket{le="1000",model_name="m"} 100.0', 'tokens_bucket{le="1000",model_name="m"} 7'),
            "cumulative",
        ),
    ],
)
def test_what_are_no_such_metrics_is_refused(tmp_path, text, says):
    path = saved(tmp_path, text)
    with pytest.raises(TrafficProblem) as caught:
        read_metrics(path)
    assert says in caught.value.what and caught.value.where.startswith(path) and caught.value.hint


def test_a_missing_file_is_said():
    with pytest.raises(FileProblem):
        read_metrics("nowhere.prom")


# ---------------------------------------------------------------- a live server


@contextmanager
def serving(answers):
    """A server on loopback: path -> (status, body), or a callable that takes the handler."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path, (404, b"no"))
            if callable(answer):
                answer(self)
                return
            self.send_response(answer[0])
            self.end_headers()
            self.wfile.write(answer[1])

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_live_server_and_its_mean_rate():
    text = vllm(extra=f"process_start_time_seconds {time.time() - 50}\n").encode()
    with serving({"/metrics": (200, text)}) as url:
        for given in (url, url + "/", url + "/metrics"):
            traffic, sources, measured = read_metrics(given)
            assert traffic.rate == pytest.approx(2.0, rel=0.05)
            assert "since the server started" in sources["traffic.rate"]
            assert traffic.concurrency == 8 and measured["ttft_ms"] == pytest.approx(250)
        assert read_traffic(url)[0].isl.mean == 225


def test_trtllm_s_json_metrics_are_told_from_its_text():
    with serving({"/metrics": (200, json.dumps([{"iter": 1}]).encode()), "/prometheus/metrics": (200, TRTLLM.encode())}) as url:
        with pytest.raises(TrafficProblem, match="JSON") as caught:
            read_metrics(url)
        assert "/prometheus/metrics" in caught.value.hint
        assert read_metrics(url + "/prometheus/metrics")[0].concurrency == 12


@pytest.mark.parametrize(("status", "says"), [(404, "404"), (500, "500"), (401, "401")])
def test_an_answer_that_is_an_error_is_said(status, says):
    with serving({"/metrics": (status, b"no")}) as url, pytest.raises(TrafficProblem, match=says):
        read_metrics(url)


def test_a_reply_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(prometheus, "LARGEST_REPLY", 1000)
    with serving({"/metrics": (200, b"x" * 2000)}) as url, pytest.raises(TrafficProblem, match="MiB of metrics"):
        read_metrics(url)


def test_binary_and_broken_replies_are_refused():
    def broken(handler):
        handler.wfile.write(b"\x00\x01 no http at all\r\n\r\n")

    with serving({"/metrics": (200, b"\xff\xfe\x00"), "/broken": broken}) as url:
        with pytest.raises(TrafficProblem, match="not text"):
            read_metrics(url)
        with pytest.raises(TrafficProblem, match="no metrics from there"):
            read_metrics(url + "/broken")


def test_a_slow_server_is_given_up(monkeypatch):
    monkeypatch.setattr(prometheus, "SECONDS", 0.2)
    release = threading.Event()
    with serving({"/metrics": lambda handler: release.wait(5)}) as url:
        with pytest.raises(TrafficProblem, match="no metrics from there"):
            read_metrics(url)
        release.set()


def test_no_server_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrafficProblem, match="no metrics from there"):
        read_metrics(f"http://127.0.0.1:{port}")
    with pytest.raises(TrafficProblem):
        read_metrics("http://[::bad")
