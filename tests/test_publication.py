"""What stands in the output folder: reused when nothing changed, replaced when asked for, never half; what a run may spend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from smollm import Silent, forced_report, needed, prompts_file, prose, tiny_llama

from advisor import pipeline
from advisor.errors import FileProblem
from advisor.executor.bookkeeping.journal import Journal
from advisor.executor.bookkeeping.spending import Limit, Spending, Spent
from advisor.executor.publishing.seal import SEAL, read_seal
from advisor.library import write_whole
from advisor.types import Policy

REAL = needed("torch", "modelopt", "transformers")
FP8 = "weights-slow-decode/fp8-weights"
EVENTS = ("reused", "changed", "kept", "stopped")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_file(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", prose(60))


def _apply(report: Any, out: Path, prompts: Path, **more: Any) -> tuple[Any, Any, list[dict[str, Any]]]:
    """(report, outcome, what was said as values)"""
    stream = Silent()
    given = {"out": out, "calibration": prompts, "prompts": 6, "held_out": 12, "tokens": 64} | more
    made, outcome = pipeline.apply(report, stream=stream, log_format="json", **given)
    return made, outcome, [json.loads(line) for line in stream.said.splitlines()]


def _said(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines if line["event"] in EVENTS]


def _inodes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- reused, replaced


@REAL
@pytest.mark.slow
def test_the_same_inputs_reuse_what_they_gave(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", forced_report(tiny, "fp8", 20, rule=FP8)
    first, one, said = _apply(report, out, prompts)
    assert one.published and not one.reused and _said(said) == []
    before = _inodes(out)
    again, two, said = _apply(report, out, prompts)
    assert two.published and two.reused and _said(said) == ["reused"] and not any(line["event"] == "round" for line in said)
    assert _inodes(out) == before and not (tmp_path / "out.work").exists()
    assert (again.changes, again.profile) == (first.changes, first.profile) and two.summary == one.summary
    seal = read_seal(out)
    assert seal is not None and set(seal.files) == set(before) - {SEAL} and not seal.broken(out, content=True)


@REAL
@pytest.mark.slow
def test_a_changed_input_redoes_only_what_depends_on_it(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _apply(forced_report(tiny, "fp8", 20, rule=FP8), out, prompts)
    weights = (out / "checkpoint" / "model.safetensors").stat().st_ino
    stricter = forced_report(tiny, "fp8", 19, rule=FP8)
    with pytest.raises(FileProblem, match="other inputs: the plan, its profile, policy or rules") as caught:
        _apply(stricter, out, prompts)
    assert "--replace" in caught.value.hint

    _, outcome, said = _apply(stricter, out, prompts, replace=True)
    assert outcome.published and _said(said) == ["changed", "kept"]
    assert not any(line["event"] == "progress" for line in said), "nothing was computed: the budget alone changed"
    assert (out / "checkpoint" / "model.safetensors").stat().st_ino == weights
    assert json.loads((out / "report.json").read_text())["profile"]["goal"]["accuracy_budget_pct"] == 19

    _, outcome, said = _apply(stricter, out, prompts, replace=True, seed=1)
    assert outcome.published and _said(said) == ["changed"], "another seed chooses other prompts: all is made again"
    assert (out / "checkpoint" / "model.safetensors").stat().st_ino != weights

    failing = forced_report(tiny, "fp8", 0.0, rule=FP8)
    before = _inodes(out)
    _, outcome, _ = _apply(failing, out, prompts, replace=True, seed=1, max_rounds=1)
    assert not outcome.published and _inodes(out) == before, "a gate that fails leaves the earlier result in its place"


@REAL
@pytest.mark.slow
def test_a_folder_that_was_touched_is_neither_reused_nor_replaced(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "out", forced_report(tiny, "fp8", 20, rule=FP8)
    _apply(report, out, prompts)
    (out / "note.txt").write_text("mine")
    assert _said(_apply(report, out, prompts)[2]) == ["reused"]
    with pytest.raises(FileProblem, match=r"no longer as it was published: note\.txt"):
        _apply(forced_report(tiny, "fp8", 19, rule=FP8), out, prompts, replace=True)
    (out / "note.txt").unlink()
    shard = out / "checkpoint" / "model.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(FileProblem, match=r"no longer as it was published: checkpoint/model\.safetensors"):
        _apply(report, out, prompts, replace=True)


@REAL
@pytest.mark.slow
def test_unattended_a_stopped_run_goes_on_whatever_changed(prompts: Path, tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "model")
    report, out = forced_report(model, "fp8", 0.0, rule=FP8), tmp_path / "out"
    _apply(report, out, prompts, max_rounds=1)
    assert _said(_apply(report, out, prompts, max_rounds=1, renew=True)[2]) == ["kept"]
    config = model / "generation_config.json"
    config.write_text(config.read_text() + " ")
    assert _said(_apply(report, out, prompts, max_rounds=1, renew=True)[2]) == [], "the model changed: nothing is believed"


# ---------------------------------------------------------------- spending


def test_time_is_counted_over_all_processes(tmp_path: Path) -> None:
    limit = Limit("seconds", 100.0, "advise.yaml:3 (hours: 0.0278)")
    with Journal(tmp_path / "work") as journal:
        Spending(journal, [limit], gpus=0).check()
    now = time.time()
    path = tmp_path / "work" / "journal.jsonl"
    path.write_text(json.dumps({"event": "session", "at": now - 500, "before": 20.0}) + "\n")
    os.utime(tmp_path / "work" / "lock", (now - 430, now - 430))
    with Journal(tmp_path / "work") as journal:
        spending = Spending(journal, [limit], gpus=0)
        assert 89 < spending.seconds < 91, "20 before it, and 70 until its last sign of life"
        spending.check()
        assert spending.seconds_left is not None and 9 < spending.seconds_left < 11
        with pytest.raises(Spent, match=r"advise.yaml:3 \(hours: 0\.0278\) is spent: 1\.5 minutes"):
            Spending(journal, [Limit("seconds", 80.0, limit.says)], gpus=0).check()
        gpu = [Limit("gpu_seconds", 300.0, "gpu_hours")]
        Spending(journal, gpu, gpus=0).check()
        Spending(journal, gpu, gpus=3).check()
        with pytest.raises(Spent, match="of GPU time"):
            Spending(journal, gpu, gpus=4).check()


def test_what_is_written_counts_once_and_what_is_to_come_counts_too(tmp_path: Path) -> None:
    with Journal(tmp_path / "work") as journal:
        (tmp_path / "work" / "one").write_bytes(b"x" * 2000)
        os.link(tmp_path / "work" / "one", tmp_path / "work" / "two")
        spending = Spending(journal, [Limit("bytes", 4000.0, "disk_gib")], gpus=0)
        assert 2000 < spending.written() < 2500
        spending.check(writes=1000)
        with pytest.raises(Spent, match="are to come"):
            spending.check(writes=2000)
        (tmp_path / "work" / "three").write_bytes(b"x" * 2000)
        with pytest.raises(Spent, match="disk_gib is spent"):
            spending.check()


@REAL
@pytest.mark.slow
@pytest.mark.parametrize("spend", [{"hours": 1 / 36000}, {"disk_gib": 1e-6}])
def test_a_limit_holds_within_a_round(tiny: Path, prompts: Path, tmp_path: Path, spend: dict[str, float]) -> None:
    """A tenth of a second, or a thousand bytes: the run stops in its first stage, publishes nothing and keeps what it made."""
    report = forced_report(tiny, "fp8", 20, rule=FP8)
    out = tmp_path / "out"
    limited = report.model_copy(update={"policy": Policy(**spend)})
    made, outcome, said = _apply(limited, out, prompts)
    assert not outcome.published and not out.exists() and _said(said) == ["stopped"]
    stopped = next(change for change in made.changes if change.gate == "not run" and "stopped" in change.detail)
    assert next(iter(spend)) in stopped.detail and "is spent" in stopped.detail
    assert json.loads((tmp_path / "out.work" / "report.json").read_text())["changes"]
    assert _said(_apply(limited, out, prompts, resume=True)[2]) == ["stopped"], "what an earlier process spent is spent"
    _, outcome, _ = _apply(report, out, prompts, resume=True)
    assert outcome.published, "without the limit it goes on"


@REAL
@pytest.mark.slow
def test_a_scoring_command_does_not_outlast_the_limit(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    report = forced_report(tiny, "fp8", 20, rule=FP8)
    goal = report.profile.goal.model_copy(update={"accuracy_metric": "command"})
    profile = report.profile.model_copy(update={"goal": goal})
    limited = report.model_copy(update={"profile": profile, "policy": Policy(hours=20 / 3600)})
    began = time.monotonic()
    _, outcome, said = _apply(limited, tmp_path / "out", prompts, command="sleep 600")
    assert not outcome.published and _said(said) == ["stopped"] and time.monotonic() - began < 120
    assert "(hours: 0.00555556) is spent" in outcome.summary


# ---------------------------------------------------------------- two runs


@REAL
@pytest.mark.slow
def test_of_two_runs_on_one_folder_the_second_stops_and_a_dead_one_holds_nothing(
    tiny: Path, prompts: Path, tmp_path: Path
) -> None:
    out, plan = tmp_path / "out", tmp_path / "report.json"
    plan.write_text(forced_report(tiny, "fp8", 20, rule=FP8).model_dump_json())
    command = [sys.executable, "-c", "from advisor.cli import main; main()", "apply", str(plan), "--auto", "--no-serve"]
    command += ["--calibration", str(prompts), "--out", str(out), "--evaluation-prompts", "24", "--prompt-tokens", "64"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert first.stderr is not None
    for line in first.stderr:
        if '"round"' in line:
            first.send_signal(signal.SIGSTOP)  # alive and at work for as long as we like
            break
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.returncode == 1 and f"another run is at work in this folder (process {first.pid})" in second.stderr
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert third.returncode == 0 and (out / SEAL).exists(), third.stderr
    assert json.loads(third.stdout)["changes"]
    fourth = subprocess.run(command, capture_output=True, text=True, check=False)
    assert fourth.returncode == 0 and '"event": "reused"' in fourth.stderr and third.stdout == fourth.stdout


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_whole(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "page")
    assert (tmp_path / "pipe").is_fifo() and os.read(reader, 99) == b"page"
    os.close(reader)
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "pipe"}
    with pytest.raises(FileProblem, match="Is a directory"):
        write_whole(tmp_path, "page")


def test_what_is_written_is_readable_as_the_umask_has_it(tmp_path: Path) -> None:
    """Pages and serving files are read by other users: an artefact store, an engine's container."""
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "report.html", "page")
    finally:
        os.umask(before)
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o640 and len(list(tmp_path.iterdir())) == 1
