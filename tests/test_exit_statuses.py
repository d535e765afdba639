"""Every exit status of CONTRACT.md, reached through the command: what a pipeline branches on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from smollm import forced_report, needed, prompts_file, prose, tiny_llama

from advisor.cli import main

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
ASKED = f"--model {MODEL} --gpu h100"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report, policies and questions to give to the commands."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "strict.yaml").write_text("deployment: {weights: [nvfp4]}\n")
    (folder / "slip.yaml").write_text("deployment:\n  wieghts: [fp8]\n")
    (folder / "nobody.yaml").write_text("tell: []\n")
    (folder / "good.jsonl").write_text(json.dumps({"model": MODEL, "gpu": "h100", "traffic": "chat"}) + "\n")
    (folder / "bad.jsonl").write_text(json.dumps({"model": MODEL, "gpu": "h101", "traffic": "chat"}) + "\n")
    row = {"timestamp": 0.1, "input_length": 1150, "output_length": 211}
    busy = [json.dumps(row | {"timestamp": at * 0.1}) for at in range(200)]
    (folder / "trace.jsonl").write_text("\n".join(busy) + "\n")
    return folder


def _run(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["advise", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (f"{ASKED} --format json -o report.json", 0),
        (f"--model {MODEL} --gpu h101", 1),
        (f"{ASKED} --policy slip.yaml", 1),
        (f"{ASKED} --no-such-option", 2),
        ("--gpu h100", 2),
        ("--model meta-llama/Llama-3.3-70B-Instruct --gpu t4", 4),
        (f"{ASKED} --policy strict.yaml", 4),
        ("check report.json", 0),
        ("check no-such.json", 1),
        ("check report.json --hashes", 2),
        ("check report.json --concurrency 1", 3),
        ("check s3://nobodys-bucket/../x", 1),
        ("watch report.json --traffic http://127.0.0.1:9/metrics", 1),
        ("watch report.json", 2),
        ("sweep good.jsonl -o good.out", 0),
        ("sweep bad.jsonl -o bad.out", 1),
        ("sweep good.jsonl --price h100", 2),
        (f"apply {ASKED} --out out", 1),
        (f"apply {ASKED}", 2),
        (f"apply {ASKED} --out out --policy nobody.yaml --publish hf://org/name", 1),
        ("apply --model meta-llama/Llama-3.3-70B-Instruct --gpu t4 --out out", 4),
        (f"apply {ASKED} --out out --auto", 1),
        (f"emit {ASKED} --out serving", 0),
        ("emit --model meta-llama/Llama-3.3-70B-Instruct --gpu t4 --out nothing", 4),
    ],
)
def test_statuses(
    line: str, status: int, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "report.json" in line and not (here / "report.json").exists():
        _run(monkeypatch, here, f"{ASKED} --format json -o report.json")
        capsys.readouterr()
    assert _run(monkeypatch, here, line) == status
    err = capsys.readouterr().err
    assert "Traceback" not in err
    if "--auto" in line:
        assert [json.loads(one)["event"] for one in err.splitlines()] == ["error"]
    elif status == 1 and not line.startswith(("watch", "sweep")):
        assert err.startswith("error: ") and "\nnext:  " in err


def test_watch_ends_with_what_its_last_round_found(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, here, f"{ASKED} --traffic trace.jsonl --format json -o traced.json") == 0
    assert _run(monkeypatch, here, "watch traced.json --traffic trace.jsonl") == 0
    assert _run(monkeypatch, here, f"{ASKED} --concurrency 1 --itl-ms 2.5 --format json -o calm.json") == 0
    assert _run(monkeypatch, here, "watch calm.json --traffic trace.jsonl --times 2 --every 0") == 3


@needed("torch", "modelopt", "transformers")
@pytest.mark.slow
@pytest.mark.parametrize(("budget", "status"), [(100.0, 0), (0.0, 3)])
def test_apply_ends_with_its_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], budget: float, status: int
) -> None:
    report = forced_report(tiny_llama(tmp_path / "model"), "fp8", budget, rule="weights-slow-decode/fp8-weights")
    (tmp_path / "plan.json").write_text(report.model_dump_json())
    prompts_file(tmp_path / "prompts.jsonl", prose(60))
    line = "apply plan.json --auto --calibration prompts.jsonl --calibration-prompts 6 --evaluation-prompts 12"
    line += " --prompt-tokens 64 --max-rounds 1 --no-serve --out out"
    capsys.readouterr()  # making the model shows a progress bar
    assert _run(monkeypatch, tmp_path, line) == status
    told = capsys.readouterr()
    lines = [json.loads(one) for one in told.err.splitlines()]
    assert lines[-1]["event"] == "done" and lines[-1]["published"] is (status == 0)
    assert json.loads(told.out)["changes"]
    assert (tmp_path / "out").exists() is (status == 0) and (tmp_path / "out.work").exists() is (status == 3)
    folder = tmp_path / ("out" if status == 0 else "out.work")
    assert (folder / "report.json").exists() and (folder / "report.html").exists()
