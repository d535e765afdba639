"""A plan on a server, from the command line to the report: a stand-in engine always, vLLM on this CPU where it is installed.

One serves SmolLM2-135M for real, through `advise apply`. It needs an environment with vLLM's CPU build, named by
ADVISE_VLLM_PYTHON (.ci/engines makes one); without it pytest says that it was not run, and in CI it fails.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from smollm import prompts_file, prose

from advisor.executor.servers import aiperf
from advisor.executor.servers.engines import Launch, Server, free_port, serving
from advisor.profiler.stored import load_report
from advisor.types import Change, Report

HERE = Path(__file__).parent
MIXED = (4, 4, 8, 8, 12, 16, 24, 64)
"""output tokens: a static batch of 8 idles most of its slots' time"""
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "head_dim": 64,
    "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
}  # fmt: skip


class User:
    """Somebody at a shell, in a folder of their own."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder = folder
        self.model = model
        self.environment = os.environ | {
            "ADVISE_CACHE": str(folder / "cache"),
            "ADVISE_EVIDENCE": str(folder / "evidence.sqlite"),
        }
        self.trace = folder / "trace.jsonl"
        draw, now, lines = random.Random(3), 0.0, []
        for index in range(96):
            now += draw.expovariate(20.0)
            row = {"timestamp": round(now, 3), "input_length": draw.choice((32, 48, 64, 96)), "output_length": MIXED[index % 8]}
            lines.append(json.dumps(row) + "\n")
        self.trace.write_text("".join(lines))

    def advise(self, *arguments: str, status: int = 0) -> str:
        """Run `advise`; its standard output. The status is held to what is expected."""
        command = [sys.executable, "-c", "from advisor.cli import main; main()", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, cwd=HERE.parent, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def plan(self, *arguments: str) -> Path:
        """A report for the model and the trace, 8 requests at once."""
        file = self.folder / "report.json"
        asked = ("--model", str(self.model), "--gpu", "h100", "--traffic", str(self.trace), "--concurrency", "8")
        self.advise(*asked, "--engine", "vllm", *arguments, "--format", "json", "-o", str(file))
        return file

    def measure(self, *arguments: str, status: int = 0) -> tuple[Report, dict[str, Change], str]:
        """`advise measure`; the report it wrote and the changes by the way of serving."""
        out = self.folder / "out"
        text = self.advise("measure", str(self.folder / "report.json"), "--out", str(out), *arguments, status=status)
        report = load_report(out / "report.json")
        assert (out / "report.html").stat().st_size > 10_000
        return report, {change.rule: change for change in report.changes}, text


def figures(change: Change) -> dict[str, float]:
    return {figure.metric: figure.value for figure in change.serving}


# ---------------------------------------------------------------- a stand-in engine, always


@pytest.fixture
def user(tmp_path: Path) -> User:
    model = tmp_path / "smollm2"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    return User(tmp_path, model)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("stand-in"), free_port()
    command = (sys.executable, str(HERE / "stand_in_engine.py"), "--port", str(port), "--step", "0.01", "--prefill", "0.02")
    launch = Launch("stand-in", "1", command, f"http://127.0.0.1:{port}", "stand-in")
    with serving(launch, log=folder / "log", deadline=30, journal=folder / "journal") as server:
        yield server


SHORT = ("--own-client", "--requests", "16", "--rounds", "3", "--seconds", "30", "--precision", "0.5")


@pytest.mark.slow
def test_from_a_plan_to_a_report_and_back_into_later_estimates(user: User, stand_in: Server) -> None:
    user.plan("--itl-ms", "1000", "--ttft-ms", "1000")
    report, ways, text = user.measure("--url", stand_in.url, "--on-planned-gpu", "--static", *SHORT)
    served, static = ways["as served"], ways["static batching"]
    assert (served.gate, static.gate) == ("passed", "not run")
    assert "ITL limit of 1000 ms passed" in text and "predicted" in text
    seen = {figure.metric: figure for figure in served.serving}
    assert seen["itl_ms"].verdict == "passed" and seen["itl_ms"].limit == 1000
    for metric in ("ttft_ms", "itl_ms", "output_tokens_per_s", "request_latency_ms", "in_flight_gain", "idle_share"):
        assert seen[metric].predicted is not None, metric
        assert seen[metric].low is not None and seen[metric].low <= seen[metric].value <= seen[metric].high
    assert seen["in_flight_gain"].value > 1
    idle = next(figure for figure in static.serving if figure.metric == "idle_share")
    assert idle.predicted is not None and abs(idle.value - idle.predicted) < 0.2

    assert "Measured on a server: every limit was kept." in (user.folder / "out" / "report.html").read_text()
    facts = json.loads((user.folder / "out" / "measured.json").read_text())
    assert set(facts) == {"ttft_ms", "itl_ms", "output_tokens_per_s", "idle_share", "limit_ratio"} and facts["limit_ratio"] < 1
    asked = load_report(user.plan("--itl-ms", "1000", "--measured", str(user.folder / "out" / "measured.json")))
    assert asked.profile.measured["idle_share"] == idle.value

    assert "itl_ms measured / predicted" in user.advise("evidence")
    rows = json.loads(user.advise("evidence", "--format", "json"))
    assert {row["metric"] for row in rows} == {"ttft_ms", "itl_ms", "output_tokens_per_s", "request_latency_ms"}
    before = report.plan.expected
    after = load_report(user.plan()).plan.expected
    assert before.itl_ms is not None and after.itl_ms is not None and seen["itl_ms"].predicted is not None
    assert after.itl_ms > before.itl_ms  # the stand-in is slower than an H100 would be
    assert after.basis["itl_ms"] == "measured"
    (user.folder / "evidence.sqlite").unlink()
    assert load_report(user.plan()).plan.expected == before.model_copy(update={"range": before.range})


def test_a_missed_limit_is_status_3_and_another_machine_has_no_prediction(user: User, stand_in: Server) -> None:
    user.plan("--itl-ms", "9")
    _, ways, text = user.measure("--url", stand_in.url, *SHORT, status=3)
    served = ways["as served"]
    assert served.gate == "failed" and "ITL limit of 9 ms failed" in text
    assert all(figure.predicted is None for figure in served.serving if figure.metric != "idle_share")
    assert "no prediction for this machine" in served.detail
    assert "Measured on a server: a limit is missed" in (user.folder / "out" / "report.html").read_text()


def test_a_trace_is_replayed_at_its_own_times(user: User, stand_in: Server) -> None:
    user.plan()
    began = time.monotonic()
    _, ways, _ = user.measure("--url", stand_in.url, "--replay", str(user.trace), *SHORT[:-4], "--rounds", "1", status=0)
    assert "at their arrival times" in ways["as served"].detail
    assert time.monotonic() - began < 30


def test_what_cannot_be_measured_is_told_in_three_lines(user: User) -> None:
    user.plan()
    for arguments, what in (
        (("--url", f"http://127.0.0.1:{free_port()}"), "no server answers there"),
        (("--url", "ftp://x"), "not the URL of a server"),
        (("--engine-python", sys.executable), "not run: vLLM is not installed here"),
        (("--replay", str(user.folder / "absent.jsonl"), "--url", "http://127.0.0.1:9"), "error:"),
    ):
        text = user.advise(
            "measure", str(user.folder / "report.json"), *arguments, "--out", str(user.folder / "none"), status=1
        )
        assert what in text and "Traceback" not in text
    assert not (user.folder / "none").exists()
    assert "no engine was left behind" in user.advise("measure", "--stop")
    assert "Give a report" in user.advise("measure", status=2)


def test_more_requests_at_once_than_our_client_keeps_are_not_measured_with_fewer(user: User, stand_in: Server) -> None:
    file = user.plan()
    content = json.loads(file.read_text())
    content["profile"]["traffic"]["concurrency"] = 2000.0 * content["plan"]["deployment"]["replicas"]
    file.write_text(json.dumps(content))
    text = user.advise(
        "measure", str(file), "--url", stand_in.url, "--own-client", "--out", str(user.folder / "none"), status=1
    )
    assert "not run: 2,000 requests at once, the advisor's own client keeps 1,024" in text and "aiperf" in text


# ---------------------------------------------------------------- vLLM on this CPU, where it is installed


def engine_python() -> str:
    """The Python of vLLM's environment; without one the test is skipped with the reason, and in CI it fails."""
    found = os.environ.get("ADVISE_VLLM_PYTHON")
    if found is None or shutil.which(found) is None:
        why = "not run: vLLM is not installed here; name its environment's Python in ADVISE_VLLM_PYTHON (.ci/engines makes it)"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    return found


def real_model() -> Path:
    """SmolLM2-135M-Instruct in safetensors."""
    from smollm import CACHE, smollm2

    if not (CACHE / "SmolLM2-135M-Instruct" / "config.json").exists() and not os.environ.get("CI"):
        for module in ("torch", "transformers", "gguf"):
            pytest.importorskip(module, reason=f"not run: the model cannot be made here without {module}")
    return smollm2()


@pytest.mark.slow
def test_smollm2_from_a_poor_baseline_to_the_served_and_published_plan(tmp_path: Path) -> None:
    """Static batching without speculation against the plan's in-flight batching with n-grams, on vLLM and on this machine:
    started, loaded as the trace says, judged, published with the report."""
    python, user = engine_python(), User(tmp_path, real_model())
    # so that it speculates, though n-grams cost vLLM's asynchronous scheduling: what vLLM finds is below
    (tmp_path / "measured.json").write_text('{"ngram_acceptance": 0.95}')
    limits = ("--ttft-ms", "20000", "--itl-ms", "5000")  # a CPU that others share
    file = user.plan("--batching", "static", "--objective", "latency", "--measured", str(tmp_path / "measured.json"), *limits)
    planned = load_report(file).plan
    assert planned.baseline_deployment.batching == "static" and planned.baseline_deployment.speculation is None
    assert planned.deployment.batching == "in-flight"
    assert planned.deployment.speculation is not None and planned.deployment.speculation.method == "ngram"

    # how often n-grams guess right is measured first, on prompts that repeat themselves; else the plan would drop them
    prompts = prompts_file(tmp_path / "prompts.jsonl", [f"{text}. " * 8 for text in prose(8, words=7)])
    few = ("--calibration", str(prompts), "--evaluation-prompts", "4", "--prompt-tokens", "96")
    serving = ("--serve", "--engine-python", python, "--serve-rounds", "3", "--serve-seconds", "240")
    began, out = time.monotonic(), tmp_path / "served"
    text = user.advise("apply", str(file), "--out", str(out), "--yes", *few, *serving)
    print(f"{text}\nfrom plan to verified: {time.monotonic() - began:,.0f} s")

    assert "Served and measured: every limit was kept." in text
    ways = {change.rule: change for change in load_report(out / "report.json").changes if change.action == "measure"}
    assert list(ways) == ["baseline", "in-flight batching", "plan"]
    assert all("0 without an answer" in change.detail for change in ways.values())
    client = "aiperf" if aiperf.find() else "the advisor's own client"
    assert ways["plan"].gate == "passed" and f"sent by {client}" in ways["plan"].detail
    static, flowing = figures(ways["baseline"]), figures(ways["in-flight batching"])
    assert flowing["idle_share"] < static["idle_share"] - 0.1
    assert float(str(ways["plan"].after["acceptance_length"])) > 1.2 and "preemptions" in ways["plan"].after
    assert "no prediction for this machine" in ways["plan"].detail
    assert "--speculative-config" in ways["plan"].command and "--speculative-config" not in ways["baseline"].command
    facts = json.loads((out / "measured.json").read_text())
    assert facts["limit_ratio"] < 1 and facts["idle_share"] == pytest.approx(static["idle_share"])
    assert "Applied, and measured on a server: every gate passed." in (out / "report.html").read_text()
    assert {"serve.sh", "kubernetes.yaml", "journal.jsonl"} <= {path.name for path in out.iterdir()}
    assert len(json.loads(user.advise("evidence", "--format", "json"))) == 12
    assert len(list((out / "logs").glob("*.log"))) == 2
    assert list((tmp_path / "cache" / "engines").glob("*.json")) == []  # nothing runs on
