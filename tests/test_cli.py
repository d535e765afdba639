"""The command as a user meets it: statuses, errors in three lines, nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors_files import write_model

from advisor import types
from advisor.cli import main

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
COMMAND = [sys.executable, "-c", "from advisor.cli import main; main()"]


class Ran:
    """What a run of `advise` left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def advise(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def run(*arguments: str | Path) -> Ran:
        monkeypatch.setattr(sys, "argv", ["advise", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run


def test_text_is_80_columns_wide_and_begins_with_the_verdict(advise) -> None:  # type: ignore[no-untyped-def]
    ran = advise("--model", MODEL, "--gpu", "h100")
    assert ran.status == 0
    assert ran.out.startswith(f"Serve {MODEL} on 1 x NVIDIA H100")
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    assert "\x1b" not in ran.out


def test_json_is_a_report(advise) -> None:  # type: ignore[no-untyped-def]
    ran = advise("--model", MODEL, "--gpu", "h100", "--format", "json")
    report = types.Report.model_validate_json(ran.out)
    assert report.plan.feasible and report.command[0] == "--model"


@pytest.mark.parametrize("form", ["markdown", "html"])
def test_other_forms_are_written_whole(advise, tmp_path: Path, form: str) -> None:  # type: ignore[no-untyped-def]
    ran = advise("--model", MODEL, "--gpu", "h100", "--format", form, "-o", tmp_path / "report")
    assert ran.status == 0 and ran.out == ""
    assert "FP8" in (tmp_path / "report").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_a_file_is_written_in_the_form_that_its_ending_says(advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    asked = ("--model", MODEL, "--gpu", "h100", "-o")
    begins = {"r.json": "{", "r.HTML": "<!doctype html", "r.md": "**Serve", "r.txt": "Serve", "html": "Serve"}
    for name, first in begins.items():
        assert advise(*asked, tmp_path / name).status == 0
        assert (tmp_path / name).read_text(encoding="utf-8").lower().startswith(first.lower()), name
    assert advise("report", tmp_path / "r.json", "-o", tmp_path / "again.md").status == 0
    assert (tmp_path / "again.md").read_text(encoding="utf-8").startswith("**Serve")
    assert advise(*asked, tmp_path / "asked.html", "--format", "json").status == 0
    assert (tmp_path / "asked.html").read_text(encoding="utf-8").startswith("{")


def test_stored_profile_plans_the_same(advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    question = ("--model", MODEL, "--gpu", "h100", "--concurrency", "8")
    advise("profile", *question, "--save", tmp_path / "profile.json")
    plan = json.loads(advise("plan", tmp_path / "profile.json").out)
    assert plan == json.loads(advise(*question, "--format", "json").out)["plan"]


def test_a_plan_alone_is_emitted_with_its_model(advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    question = ("--model", MODEL, "--gpu", "h100")
    advise("profile", *question, "--save", tmp_path / "profile.json")
    advise("plan", tmp_path / "profile.json", "-o", tmp_path / "plan.json")
    ran = advise("emit", tmp_path / "plan.json", "--out", tmp_path / "alone")
    assert ran.status == 1 and "--model" in ran.err and not (tmp_path / "alone").exists()
    assert advise("emit", tmp_path / "plan.json", *question, "--out", tmp_path / "alone").status == 0
    assert advise("emit", *question, "--out", tmp_path / "made").status == 0
    assert {path.name: path.read_text() for path in (tmp_path / "alone").iterdir()} == {
        path.name: path.read_text() for path in (tmp_path / "made").iterdir()
    }


def test_the_emitted_script_finds_a_model_that_was_named_from_here(  # type: ignore[no-untyped-def]
    advise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve.sh starts where it lies; bf16 weights, so that the model is served as it is."""
    write_model(tmp_path / "models" / "mine")
    (tmp_path / "policy.yaml").write_text("deployment: {weights: [bf16]}\n")
    monkeypatch.chdir(tmp_path)
    for model, name in (("models/mine", "mine"), (tmp_path / "models" / "mine", "mine")):
        question = ("--model", model, "--gpu", "h100", "--policy", "policy.yaml")
        assert advise("emit", *question, "--engine", "vllm", "--out", "out/serving").status == 0
        words = (tmp_path / "out" / "serving" / "serve.sh").read_text().splitlines()[-1].split()
        assert (tmp_path / "out" / "serving" / words[3]).resolve() == tmp_path / "models" / "mine"
        assert words[words.index("--served-model-name") + 1] == name


def test_nothing_fits_is_4_and_says_what_gives(advise) -> None:  # type: ignore[no-untyped-def]
    ran = advise("--model", "meta-llama/Llama-3.3-70B-Instruct", "--gpu", "t4")
    assert ran.status == 4
    assert "memory" in ran.out


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3", "Qwen/Qwen3-235B-A22B"])
def test_a_mixture_far_too_large_has_a_student(advise, model: str) -> None:  # type: ignore[no-untyped-def]
    ran = advise("--model", model, "--gpu", "l40s", "--format", "json")
    report = types.Report.model_validate_json(ran.out)
    assert ran.status == 4 and report.plan.distillation is not None
    depth = next(student for student in report.plan.distillation.students if student.how == "depth")
    assert 0 < depth.layers < report.profile.model.layers and depth.expected.fits


def test_predict_of_flags(advise) -> None:  # type: ignore[no-untyped-def]
    ran = advise(
        "predict", "--model", MODEL, "--gpu", "h100", "--weights", "fp8", "--isl", 1024, "--osl", 256, "--concurrency", 8
    )
    assert ran.status == 0
    assert json.loads(ran.out)["output_tokens_per_s"] > 0


def test_predict_keeps_order_and_goes_on_after_a_fault(advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    point = {"model": MODEL, "gpu": "h100", "isl": 128, "osl": 128, "concurrency": 1}
    lines = [json.dumps(point), "{", json.dumps(point | {"gpu": "h1000"}), json.dumps(point | {"concurrency": "max"})]
    (tmp_path / "points.jsonl").write_text("\n".join(lines))
    out = [json.loads(line) for line in advise("predict", "--from", tmp_path / "points.jsonl").out.splitlines()]
    assert [set(one) & {"error"} for one in out] == [set(), {"error"}, {"error"}, set()]
    assert all(one["hint"] for one in out if "error" in one)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--model", MODEL, "--gpu", "h10O"), "did you mean"),
        (("--model", "meta-llama/Llama-3.1-8B-Instrukt", "--gpu", "h100"), ""),
        (("--model", "/no/such/folder", "--gpu", "h100"), "/no/such/folder"),
        (("--model", MODEL, "--gpu", "h100", "--isl", "-5"), "-5"),
        (("--model", MODEL, "--gpu", "h100", "--isl", "nan"), "isl"),
        (("--model", MODEL, "--gpu", "h100", "--isl", "200000"), "131,072"),
        (("--model", MODEL, "--gpu", "h100", "--itl-ms", "0"), "--itl-ms"),
        (("--model", MODEL, "--gpu", "h100", "--traffic", "chatt"), "chat"),
        (("--model", MODEL, "--gpu", "h100", "--rules", "/no/such/rules"), "/no/such/rules"),
        (("--model", MODEL, "--gpu", "h100", "--measured", "/no/such.json"), "/no/such.json"),
        (("explain", "weights-slow-decode/fp8-weight"), "fp8-weights"),
        (("report", "/no/such.json"), "/no/such.json"),
        (("plan", "/etc/passwd"), "/etc/passwd"),
    ],
)
def test_bad_input_is_three_lines_and_status_1(advise, arguments: tuple[str, ...], said: str) -> None:  # type: ignore[no-untyped-def]
    ran = advise(*arguments)
    assert ran.status == 1, ran.err
    assert ran.out == ""
    assert ran.err.startswith("error: ") and "Traceback" not in ran.err
    assert 2 <= len(ran.err.strip().splitlines()) <= 3
    assert said in ran.err


@pytest.mark.parametrize(
    "arguments", [("--gpu", "h100"), ("--nonsense",), ("--model", MODEL, "--format", "pdf"), ("frobnicate",)]
)
def test_wrong_usage_is_2(advise, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    assert advise(*arguments).status == 2


class TestGarbage:
    @pytest.mark.parametrize(
        "content", [b"", b"{", b"[]", b"\x00\xff", b'{"hidden_size": -1}', b'{"hidden_size": "much"}', b"{" * 100_000]
    )
    def test_config_json(self, advise, tmp_path: Path, content: bytes) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "config.json").write_bytes(content)
        ran = advise("--model", tmp_path, "--gpu", "h100")
        assert ran.status == 1 and "Traceback" not in ran.err and "config.json" in ran.err

    def test_a_rule_of_four_gigabytes(self, advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "some-problem").mkdir()
        with (tmp_path / "some-problem" / "big.yaml").open("wb") as file:
            file.truncate(4 * 2**30)
        ran = advise("--model", MODEL, "--gpu", "h100", "--rules", tmp_path)
        assert ran.status == 1 and "big.yaml" in ran.err

    def test_a_trace_with_negative_tokens(self, advise, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
        (tmp_path / "trace.csv").write_text(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,10,5\n2023-11-16 18:17:04,-3,5\n"
        )
        ran = advise("--model", MODEL, "--gpu", "h100", "--traffic", tmp_path / "trace.csv")
        assert ran.status == 1 and "trace.csv:3" in ran.err

    def test_output_that_cannot_be_written(self, advise) -> None:  # type: ignore[no-untyped-def]
        ran = advise("--model", MODEL, "--gpu", "h100", "-o", "/proc/nowhere/report.txt")
        assert ran.status == 1 and "/proc/nowhere" in ran.err


def test_without_a_gpu_here_it_says_how_to_plan_for_one(advise) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("pynvml")
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA GPU")
    ran = advise("--model", MODEL)
    assert ran.status == 1 and "--gpu" in ran.err


@pytest.mark.parametrize("line", [f"--model {MODEL} --gpu h100", "schema", "rules list"])
def test_a_closed_pipe_is_no_error(line: str) -> None:
    with subprocess.Popen([*COMMAND, *line.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_full_disk_under_stdout_is_said() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full on this system")
    with full.open("w") as stdout:
        done = subprocess.run([*COMMAND, "facts"], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and done.stderr == "error: cannot write: the disk is full\nnext:  free space\n"


def test_interrupted_it_says_so_and_no_more(tmp_path: Path) -> None:
    # far more than is answered before the signal comes, on a busy machine too
    traffic = f"[{{traffic: chat, concurrency: {list(range(1, 301))}}}]"
    (tmp_path / "questions.yaml").write_text(f"models: [{MODEL}]\ngpus: [h100, h200, l40s, a100]\ntraffic: {traffic}\n")
    command = [*COMMAND, "sweep", str(tmp_path / "questions.yaml")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a test run in the background ignores
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].strip() == "stopped"
    assert process.returncode == 130


def test_rules_lint_and_test_pass(advise) -> None:  # type: ignore[no-untyped-def]
    assert advise("rules", "lint").status == 0
    ran = advise("rules", "test")
    assert ran.status == 0, ran.out
    assert ran.out.strip().endswith("0 failed")


def test_schema_describes_every_field(advise) -> None:  # type: ignore[no-untyped-def]
    schema = json.loads(advise("schema", "Estimate").out)
    assert schema["properties"]["ttft_ms"] and "range" in schema["properties"]
    assert schema["properties"]["fits"]["description"] == "weights and at least one request fit"


def test_facts_and_rules_are_listed(advise) -> None:  # type: ignore[no-untyped-def]
    assert "traffic.static_idle_share" in advise("facts").out
    assert "weights-slow-decode/fp8-weights" in advise("rules", "list").out
