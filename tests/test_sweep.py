"""`advise sweep`: questions multiplied out, answers in order, picked up again, costs from the user's prices only."""

from __future__ import annotations

import fcntl
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from advisor import pipeline
from advisor.cli import main
from advisor.errors import FileProblem, InputError, UnknownName
from advisor.report.sweep import group, render_sweep_html, render_sweep_text
from advisor.sweep import finished, read_answers, read_sweep
from advisor.types import Answer

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
FILE = f"""\
models: [{MODEL}]
gpus: [a100, {{gpu: h100, gpus: [1, 2]}}]
traffic: [{{isl: 1024, osl: 256, concurrency: [8, 64]}}]
limits: [{{}}, {{itl_ms: 10}}]
prices: {{a100: 1.5, h100: 3}}
"""
MANY = str(list(range(1, 301)))


def _file(tmp_path: Path, text: str = FILE, name: str = "sweep.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["advise", "sweep", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_axes_are_multiplied_out_in_order(tmp_path: Path) -> None:
    questions = read_sweep(_file(tmp_path)).questions
    assert len(questions) == 1 * 3 * 2 * 2
    assert questions[0] == {"model": MODEL, "gpu": "a100", "isl": 1024, "osl": 256, "concurrency": 8}
    assert questions[-1] == {
        "model": MODEL, "gpu": "h100", "gpus": 2, "isl": 1024, "osl": 256, "concurrency": 64, "itl_ms": 10,
    }  # fmt: skip


def test_an_answer_is_the_plan_of_advise(tmp_path: Path) -> None:
    for answer in read_sweep(_file(tmp_path)).answers():
        question = {name: value for name, value in answer.question.items() if name != "model"}
        plan = pipeline.advise(pipeline.profile(MODEL, **question)).plan  # type: ignore[arg-type]
        assert (answer.deployment, answer.feasible) == (plan.deployment, plan.feasible)
        assert answer.expected is not None
        assert answer.expected.output_tokens_per_s == plan.expected.output_tokens_per_s
        assert set(answer.rules) >= {step.rule for step in plan.steps}


def test_the_cost_is_price_times_gpus_over_tokens(tmp_path: Path) -> None:
    answers = list(read_sweep(_file(tmp_path)).answers())
    feasible = [one for one in answers if one.feasible]
    assert feasible and len(feasible) < len(answers)
    for one in feasible:
        assert one.expected is not None and one.expected.output_tokens_per_s and one.gpus_used
        price = 1.5 if one.question["gpu"] == "a100" else 3.0
        hours = 1e6 / one.expected.output_tokens_per_s / 3600
        assert one.cost_per_million_output_tokens == pytest.approx(price * one.gpus_used * hours)
    assert all(one.cost_per_million_output_tokens is None for one in answers if not one.feasible)


def test_without_prices_there_is_no_cost(tmp_path: Path) -> None:
    answers = list(read_sweep(_file(tmp_path, FILE.replace("prices", "# prices"))).answers())
    assert all(one.cost_per_million_output_tokens is None and one.price_per_gpu_hour is None for one in answers)


def test_what_cannot_be_answered_does_not_stop_the_rest(tmp_path: Path) -> None:
    lines = [{"model": "nobody/nothing", "gpu": "h100"}, {"model": MODEL, "gpu": "h101"}, {"model": MODEL, "gpu": "h100"}]
    path = _file(tmp_path, "\n".join(map(json.dumps, lines)) + "\n", "sweep.jsonl")
    first, second, third = read_sweep(path).answers()
    assert first.error and first.hint and second.error == "unknown GPU: 'h101'"
    assert third.feasible and not third.error


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [a]\n", "did you mean models"),
        (f"models: [{MODEL}]\n", "has no 'gpus'"),
        (f"models: [{MODEL}]\ngpus: [h100]\ntraffic: [{{islt: 3}}]\n", "did you mean isl"),
        (f"models: [{MODEL}]\ngpus: [{{gpu: h100, gpus: 0}}]\ntraffic: [chat]\n", "gpus is a whole number"),
        (f"models: [{MODEL}]\ngpus: [h100]\ntraffic: [{{isl: -1}}]\n", "isl is a number"),
        ("models: []\ngpus: [h100]\ntraffic: [chat]\n", "models is empty"),
        (f"models: [{MODEL}]\ngpus: [h100]\ntraffic: [chat]\nobjective: speed\n", "objective is throughput"),
        (f"models: [{MODEL}]\ngpus: [h100]\ntraffic:\n  - isl: {MANY}\n    osl: {MANY}\n    rate: {MANY}\n", "split the file"),
        (f"models: [{', '.join([MODEL] * 40)}]\ngpus: [{{gpu: h100, gpus: {MANY}}}]\ntraffic: [{{isl: {MANY}}}]\n", "split"),
    ],
)  # fmt: skip
def test_a_fault_in_the_file_is_shown_where_it_stands(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_sweep(_file(tmp_path, text))
    assert said in str(caught.value) and "sweep.yaml:" in str(caught.value) and "^" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"model": "a"}', "has no gpu"),
        ('{"model": "a", "gpu": "b", "isll": 2}', "did you mean isl"),
        ('{"model": "a", "gpu": "b", "isl": true}', "isl is a number"),
    ],
)
def test_a_fault_in_a_line_names_the_line(tmp_path: Path, line: str, said: str) -> None:
    good = json.dumps({"model": MODEL, "gpu": "h100"})
    with pytest.raises(FileProblem) as caught:
        read_sweep(_file(tmp_path, f"{good}\n{line}\n", "sweep.jsonl"))
    assert said in str(caught.value) and "sweep.jsonl:2" in str(caught.value)


def test_prices_need_a_gpu_and_a_positive_number(tmp_path: Path) -> None:
    with pytest.raises(UnknownName):
        read_sweep(_file(tmp_path), {"h101": 2.0})
    with pytest.raises(InputError, match="a price of 0"):
        read_sweep(_file(tmp_path), {"h100": 0.0})


def test_a_policy_holds_for_every_plan(tmp_path: Path) -> None:
    (tmp_path / "advise.yaml").write_text("deployment: {weights: [bf16]}\n", encoding="utf-8")
    answers = list(read_sweep(_file(tmp_path, FILE + "policy: advise.yaml\n")).answers())
    assert {one.deployment.weights for one in answers if one.deployment} == {"bf16"}
    free = read_sweep(_file(tmp_path))
    assert not {one.key for one in answers} & {free.key(question) for question in free.questions}


def test_a_sweep_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, whole, cut = _file(tmp_path), tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    assert _run(monkeypatch, path, "-o", whole, "--quiet") == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    assert len(lines) == 12
    cut.write_bytes(b"".join(lines[:5]) + lines[5][:-40])
    assert len(finished(cut)[0]) == 5
    capsys.readouterr()
    assert _run(monkeypatch, path, "-o", cut, "--quiet") == 0
    assert "7 plans made, 5 were there" in capsys.readouterr().err
    assert cut.read_bytes() == whole.read_bytes()
    assert _run(monkeypatch, path, "-o", cut) == 0
    assert "0 plans made, 12 were there" in capsys.readouterr().err


def test_a_new_price_makes_no_new_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, output = _file(tmp_path), tmp_path / "out.jsonl"
    assert _run(monkeypatch, path, "-o", output, "--quiet") == 0
    before = {one.key: one.cost_per_million_output_tokens for one in read_answers(output)}
    dearer = read_sweep(path, {"a100": 3.0, "h100": 6.0})
    for one in read_answers(output, dearer.prices):
        old = before[one.key]
        assert one.cost_per_million_output_tokens == (pytest.approx(2 * old) if old else None)


def test_another_file_is_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine\n", encoding="utf-8")
    assert _run(monkeypatch, _file(tmp_path), "-o", other) == 1
    assert other.read_text(encoding="utf-8") == "mine\n"


def test_two_sweeps_do_not_write_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    with output.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert _run(monkeypatch, _file(tmp_path), "-o", output) == 1
        assert "another sweep is writing" in capsys.readouterr().err
    assert _run(monkeypatch, _file(tmp_path), "-o", output) == 0


def test_lines_on_stdout_and_the_table_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, _file(tmp_path), "--price", "h100=30") == 0
    out, err = capsys.readouterr()
    assert len([Answer.model_validate_json(line) for line in out.splitlines()]) == 12
    assert MODEL in err.splitlines() and all(len(line) <= 110 for line in err.splitlines())
    rows = [line for line in err.splitlines() if re.search(r" (none|\d x )", line) and "next best" not in line]
    assert len(rows) == 4 and all("a100" in row for row in rows if "none" not in row and "ITL" not in row)
    assert _run(monkeypatch, _file(tmp_path), "--price", "h100") == 2
    assert _run(monkeypatch, _file(tmp_path), "--summary", tmp_path / "s.html") == 2


def test_the_cheapest_machine_that_keeps_the_limits_is_best(tmp_path: Path) -> None:
    answers = list(read_sweep(_file(tmp_path)).answers())
    for one in group(answers):
        feasible = [each for each in one.answers if each.feasible]
        costs = [each.cost_per_million_output_tokens for each in feasible]
        if one.best is None:
            assert not feasible
        else:
            assert one.best.cost_per_million_output_tokens == min(cost for cost in costs if cost is not None)
    assert "All figures are estimates" in render_sweep_text(answers)


def test_the_page_has_a_bar_for_every_plan_and_no_script(tmp_path: Path) -> None:
    lines = [
        {"model": MODEL, "gpu": "h100"},
        {"model": MODEL, "gpu": "a100"},
        {"model": "<script>alert(1)</script>", "gpu": "h100"},
    ]
    answers = list(read_sweep(_file(tmp_path, "\n".join(map(json.dumps, lines)) + "\n", "s.jsonl")).answers())
    page = render_sweep_html(answers)
    tags: list[str] = []

    class Collect(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)

    Collect().feed(page)
    assert tags.count("rect") == 2 and tags.count("section") == 2 and "script" not in tags
    assert "http://" not in page and "https://" not in page
