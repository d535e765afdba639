"""Engine processes: real processes are started, left behind by a real kill -9, found again and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from advisor import pipeline
from advisor.errors import InputError, MissingExtra, NotPossible
from advisor.executor.servers import engines, tensorrt_llm_engine, vllm_engine
from advisor.executor.servers.engines import EngineFailed, Launch, fetch, free_port, serving, stop_left_over
from advisor.types import Deployment, Speculation

STAND_IN = Path(__file__).with_name("stand_in_engine.py")


def launch(*options: str) -> Launch:
    port = free_port()
    command = (sys.executable, str(STAND_IN), "--port", str(port), *options)
    return Launch("stand-in", "1", command, f"http://127.0.0.1:{port}", "stand-in")


def marked(marker: str) -> list[int]:
    """Processes of this machine with that marker in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{engines.MARKER}={marker}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def only_entry(journal: Path) -> dict[str, object]:
    (entry,) = journal.glob("*.json")
    return json.loads(entry.read_text())


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "journal"
    yield folder
    for entry in folder.glob("*.json"):  # a failing test leaves nothing running
        for pid in marked(entry.stem):
            os.kill(pid, signal.SIGKILL)


def test_serves_on_loopback_in_its_own_session_and_stops(tmp_path: Path, journal: Path) -> None:
    with serving(launch("--healthy-after", "0.6", "--child"), log=tmp_path / "log", deadline=30, journal=journal) as server:
        assert fetch(server.url + "/health")[0] == 200
        assert server.seconds is not None and server.seconds >= 0.6
        marker = str(only_entry(journal)["marker"])
        pids = marked(marker)
        assert len(pids) == 2  # the engine and its child, which has a session of its own
        assert os.getsid(0) not in {os.getsid(pid) for pid in pids}
    assert marked(marker) == []
    assert list(journal.glob("*.json")) == []
    assert "stand-in engine starts" in (tmp_path / "log").read_text()
    with pytest.raises(OSError):
        fetch(server.url + "/health")


def test_an_engine_that_ignores_sigterm_is_stopped(tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "PATIENCE", 0.3)
    with serving(launch("--stubborn"), log=tmp_path / "log", deadline=30, journal=journal):
        marker = str(only_entry(journal)["marker"])
    assert marked(marker) == []


def test_it_is_stopped_when_what_uses_it_fails(tmp_path: Path, journal: Path) -> None:
    with pytest.raises(ZeroDivisionError), serving(launch(), log=tmp_path / "log", deadline=30, journal=journal):
        marker = str(only_entry(journal)["marker"])
        raise ZeroDivisionError
    assert marked(marker) == []


def test_a_crash_is_told_with_the_end_of_the_log(tmp_path: Path, journal: Path) -> None:
    with pytest.raises(EngineFailed) as error, serving(launch("--crash"), log=tmp_path / "log", deadline=30, journal=journal):
        pass
    assert "ended with status 1" in error.value.what
    assert "RuntimeError: no memory left" in error.value.hint
    assert error.value.where == str(tmp_path / "log")


def test_the_deadline_ends_the_wait_and_the_process(tmp_path: Path, journal: Path) -> None:
    began = time.monotonic()
    slow = launch("--healthy-after", "600")
    with pytest.raises(EngineFailed, match="deadline"), serving(slow, log=tmp_path / "log", deadline=1.0, journal=journal):
        pass
    assert time.monotonic() - began < 30
    with pytest.raises(OSError):
        fetch(slow.url + "/health")


def test_a_program_that_is_not_there(tmp_path: Path, journal: Path) -> None:
    absent = Launch("vLLM", "1", ("/no/such/python",), "http://127.0.0.1:9", "m")
    with pytest.raises(EngineFailed, match="cannot be started"), serving(absent, log=tmp_path / "log", journal=journal):
        pass
    assert list(journal.glob("*.json")) == []


ADVISOR = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_engines import launch
from advisor.executor.servers.engines import serving
with serving(launch("--child"), log=Path({log!r}), deadline=30, journal=Path({journal!r})) as server:
    print(server.url, flush=True)
    time.sleep(600)
"""


def other_advisor(tmp_path: Path, journal: Path) -> tuple[subprocess.Popen[str], str]:
    code = ADVISOR.format(tests=str(STAND_IN.parent), log=str(tmp_path / "log"), journal=str(journal))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=STAND_IN.parents[1])
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_after_kill_9_of_the_advisor_the_next_run_finds_and_stops_the_engine(tmp_path: Path, journal: Path) -> None:
    process, url = other_advisor(tmp_path, journal)
    marker = str(only_entry(journal)["marker"])
    assert stop_left_over(journal) == ()  # its advisor lives: not ours to stop
    assert len(marked(marker)) == 2
    process.kill()
    process.wait()
    assert fetch(url + "/health")[0] == 200  # left behind
    stopped = stop_left_over(journal)
    assert len(stopped) == 1 and "stand_in_engine.py" in stopped[0]
    assert marked(marker) == []
    assert list(journal.glob("*.json")) == []
    assert stop_left_over(journal) == ()


def test_sigterm_to_the_advisor_stops_the_engine(tmp_path: Path, journal: Path) -> None:
    process, url = other_advisor(tmp_path, journal)
    marker = str(only_entry(journal)["marker"])
    process.terminate()
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert marked(marker) == []
    with pytest.raises(OSError):
        fetch(url + "/health")


def test_a_process_that_only_has_the_number_of_one_is_left_alone(tmp_path: Path, journal: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        journal.mkdir()
        gone = {"pid": 2**22 + 1, "started": "long ago"}
        entry = {
            "marker": "0" * 32,
            "owner": gone,
            "process": {"pid": bystander.pid, "started": "another time"},
            "command": ["x"],
        }
        (journal / f"{'0' * 32}.json").write_text(json.dumps(entry))
        assert stop_left_over(journal) == ()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_damaged_journal_does_no_harm(journal: Path) -> None:
    journal.mkdir()
    (journal / "abc.json").write_text("{")
    assert stop_left_over(journal) == ()
    assert list(journal.iterdir()) == []


# ---------------------------------------------------------------- what an engine is given


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """SmolLM2-135M's configuration as a checkpoint folder; its weights are not read here."""
    made = tmp_path / "smollm2"
    made.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "head_dim": 64,
        "max_position_embeddings": 8192, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (made / "config.json").write_text(json.dumps(config))
    return made


CPU = vllm_engine.Installed("/engine/bin/python", "0.32.0", cpu=True)
CUDA = vllm_engine.Installed("/engine/bin/python", "0.11.0", cpu=False)


def report_of(folder: Path):
    profile = pipeline.profile(str(folder), gpu="h100", isl=64, osl=16, concurrency=4, engine="vllm", evidence="none")
    return pipeline.advise(profile)


def test_vllm_on_a_cpu_gets_what_it_can_take_and_the_rest_is_said(folder: Path) -> None:
    report = report_of(folder)
    deployment = Deployment(speculation=Speculation(method="ngram", draft_len=4), max_batch_size=8, replicas=2)
    made = vllm_engine.launch(report.plan, deployment, report.profile, CPU)
    assert made.command[:5] == ("/engine/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder))
    given = dict(zip(made.command, made.command[1:], strict=False))
    assert given["--host"] == "127.0.0.1"
    assert made.url == f"http://127.0.0.1:{given['--port']}"
    assert given["--dtype"] == "bfloat16"
    assert given["--max-num-seqs"] == "8"
    assert json.loads(given["--speculative-config"])["num_speculative_tokens"] == 4
    assert int(given["--max-model-len"]) >= max(a + b for a, b in report.profile.traffic.lengths)
    assert "--gpu-memory-utilization" not in given
    assert made.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert any("one of 2 replicas" in note for note in made.notes)
    assert any("CPU build" in note for note in made.notes)


def test_vllm_on_a_gpu_keeps_its_formats(folder: Path) -> None:
    report = report_of(folder)
    made = vllm_engine.launch(report.plan, Deployment(kv_cache="fp8"), report.profile, CUDA)
    given = dict(zip(made.command, made.command[1:], strict=False))
    assert made.command[1:5] == ("-m", "vllm.entrypoints.cli.main", "serve", str(folder))
    assert given["--kv-cache-dtype"] == "fp8"
    assert "--gpu-memory-utilization" in given and "--dtype" not in given
    assert "--max-model-len" not in given  # 0.11 cannot fit it to the cache
    later = vllm_engine.launch(report.plan, Deployment(), report.profile, replace(CUDA, version="0.20.1"))
    assert later.command[later.command.index("--max-model-len") + 1] == "auto"
    assert made.environment["HF_HUB_OFFLINE"] == "1"
    hub = Speculation(method="eagle3", draft_model="someone/eagle3-of-it")
    drafting = vllm_engine.launch(report.plan, Deployment(speculation=hub), report.profile, CUDA)
    assert "HF_HUB_OFFLINE" not in drafting.environment  # its weights are fetched


@pytest.mark.parametrize(
    ("deployment", "what"),
    [
        (Deployment(weights="fp8"), "fp8 weights"),
        (Deployment(kv_cache="fp8"), "fp8 KV cache"),
        (Deployment(tensor_parallel=3), "3 GPUs"),
    ],
)
def test_what_the_cpu_build_cannot_serve_is_not_run(folder: Path, deployment: Deployment, what: str) -> None:
    report = report_of(folder)
    with pytest.raises(NotPossible, match="not run") as error:
        vllm_engine.launch(report.plan, deployment, report.profile, CPU)
    assert what in error.value.what


def test_a_checkpoint_folder_must_be_one(folder: Path, tmp_path: Path) -> None:
    report = report_of(folder)
    with pytest.raises(InputError, match="not the folder of a checkpoint"):
        vllm_engine.launch(report.plan, Deployment(), report.profile, CPU, checkpoint=tmp_path)


def test_vllm_is_looked_for_in_the_given_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(vllm_engine.PYTHON, raising=False)
    with pytest.raises(MissingExtra, match="not run: vLLM is not installed here"):
        vllm_engine.find(sys.executable)
    with pytest.raises(InputError, match="no such Python") as error:
        vllm_engine.find("/no/such/python")
    assert error.value.where == "--engine-python"
    monkeypatch.setenv(vllm_engine.PYTHON, "/no/such/python")
    with pytest.raises(InputError) as error:
        vllm_engine.find()
    assert error.value.where == vllm_engine.PYTHON


@pytest.mark.skipif(tensorrt_llm_engine.installed_version() is not None, reason="TensorRT-LLM is installed here")
def test_without_tensorrt_llm_nothing_is_called_passed(folder: Path, tmp_path: Path) -> None:
    assert tensorrt_llm_engine.check_options(tmp_path / "trtllm.yaml") == "not run: TensorRT-LLM is not installed here"
    report = report_of(folder)
    with pytest.raises(MissingExtra, match="not run: TensorRT-LLM is not installed here"):
        tensorrt_llm_engine.launch(report.plan, Deployment(), report.profile, folder=tmp_path)
