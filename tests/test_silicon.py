"""The second opinion: what is asked of aiconfigurator-core, what it refuses, and, where it is installed, what it answers."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import Any

import pytest

from advisor import pipeline
from advisor.errors import MissingExtra
from advisor.estimator import silicon
from advisor.estimator.deployment import estimate
from advisor.estimator.opinion import instead, second_opinion
from advisor.estimator.silicon import NotMeasured, Question, ask, config_of, formats, refuse
from advisor.prediction import predict_lines
from advisor.profiler.gpu import find_gpu
from advisor.profiler.model import read_model
from advisor.report.commands import upcoming
from advisor.report.rendering import render
from advisor.types import Deployment, Engine, Load, Report, SecondFigure, SecondOpinion, Speculation

MODEL = read_model("meta-llama/Llama-3.1-8B-Instruct")[0]
LARGE = read_model("meta-llama/Llama-3.3-70B-Instruct")[0]
GPU = find_gpu("h100", 8)[0]
LOAD = Load(isl=1155, osl=211, concurrency=32)
installed = pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None, reason="aiconfigurator-core (extra silicon) is not installed"
)


# ---------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("weights", "kv_cache", "backend", "expected"),
    [
        ("bf16", "bf16", "trtllm", ("bfloat16", "bfloat16", "bfloat16", "bfloat16")),
        ("fp8", "fp8", "trtllm", ("fp8_static", "fp8", "fp8", "fp8")),
        ("fp8", "fp8", "vllm", ("fp8_static", "fp8", "bfloat16", "fp8")),
        ("int4_awq", "bf16", "trtllm", ("int4_wo", "bfloat16", "bfloat16", "int4_wo")),
        ("mxfp4", "bf16", "trtllm", ("bfloat16", "bfloat16", "bfloat16", "w4a16_mxfp4")),
    ],
)
def test_formats_in_its_words(weights: Any, kv_cache: Any, backend: str, expected: tuple[str, ...]) -> None:
    question = Question(MODEL, GPU, Deployment(weights=weights, kv_cache=kv_cache), backend)
    assert formats(question, "h100_sxm") == expected


def test_mxfp4_experts_multiply_in_mxfp8_on_blackwell_and_old_gpus_attend_in_16_bits() -> None:
    assert formats(Question(MODEL, GPU, Deployment(weights="mxfp4")), "b200_sxm")[3] == "w4a8_mxfp4_mxfp8"
    assert formats(Question(MODEL, GPU, Deployment(weights="fp8", kv_cache="fp8")), "a100_sxm")[2] == "bfloat16"


@pytest.mark.parametrize("changes", [{"weights": "fp8_rowwise"}, {"weights": "w4a8_awq"}, {"kv_cache": "nvfp4"}])
def test_formats_it_lacks_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotMeasured, match=next(iter(changes.values()))):
        formats(Question(MODEL, GPU, Deployment(**changes)), "h100_sxm")


@pytest.mark.parametrize(
    ("gpu", "changes", "reason"),
    [
        ("l4", {}, "no kernel tables of NVIDIA L4"),
        ("h100", {"batching": "static"}, "in flight only"),
        ("h100", {"speculation": Speculation(method="eagle3")}, "drafts"),
        ("h100", {"keep_high_precision": ("*o_proj*",)}, "one format for all layers"),
        ("h100", {}, ""),
    ],
)
def test_what_it_is_not_even_asked(gpu: str, changes: dict[str, Any], reason: str) -> None:
    said = refuse(MODEL, find_gpu(gpu, 1)[0], Deployment(**changes))
    assert reason in said and bool(said) is bool(reason)


def test_every_gpu_it_is_asked_about_is_one_of_ours() -> None:
    assert all(find_gpu(name, 1)[0].id == name for name in silicon.SYSTEMS)


def test_plain_models_are_described_by_their_sizes_and_others_are_not() -> None:
    dense, experts = config_of(MODEL), config_of(read_model("Qwen/Qwen3-30B-A3B")[0])
    assert dense and (dense["architectures"], dense["num_hidden_layers"]) == (["LlamaForCausalLM"], 32)
    assert experts and (experts["architectures"], experts["num_experts"]) == (["Qwen3MoeForCausalLM"], 128)
    for name in ("deepseek-ai/DeepSeek-R1", "google/gemma-3-27b-it"):
        assert config_of(read_model(name)[0]) is None


def test_without_the_package_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    with pytest.raises(MissingExtra) as problem:
        next(predict_lines(["{}"], silicon=True))
    assert "inference-advisor[silicon]" in problem.value.hint


def test_the_pages_show_both_and_what_has_no_answer() -> None:
    report = pipeline.advise(pipeline.profile("meta-llama/Llama-3.1-8B-Instruct", gpu="h100"))
    assert "Second opinion" not in render(report, "text")
    figures = (SecondFigure(metric="itl_ms", ours=10.0, silicon=12.5, difference_pct=25.0),)
    opinions = (
        SecondOpinion(label="baseline", figures=figures, source="tables"),
        SecondOpinion(label="plan", reason="no <data>"),
    )
    report = report.model_copy(update={"second_opinions": opinions})
    for form in ("text", "markdown", "html"):
        page = render(report, form)
        assert "+25.0" in page and "12.5" in page and "no answer: no" in page, form
        assert form == "text" or "<data>" not in page
    assert Report.model_validate_json(render(report, "json")) == report
    unanswered = report.model_copy(update={"second_opinions": opinions[1:]})
    assert all("difference, %" not in render(unanswered, form) for form in ("text", "markdown", "html"))


def test_the_next_commands_do_not_ask_again() -> None:
    asked = ("--model", MODEL.name, "--gpu", "h100", "--estimator", "silicon", "--grid", "--format=html")
    report = pipeline.advise(pipeline.profile(MODEL.name, gpu="h100"), command=asked)
    assert [command for _, command in upcoming(report)] == [
        f"advise emit --model {MODEL.name} --gpu h100 --out serving",
        f"advise apply --model {MODEL.name} --gpu h100 --out applied",
    ]


# ---------------------------------------------------------------- what it answers


@installed
def test_it_agrees_with_us_on_a_dense_model_over_one_gpu() -> None:
    for deployment in (Deployment(), Deployment(weights="fp8", kv_cache="fp8")):
        ours = estimate(MODEL, GPU, deployment, LOAD, Engine())
        found = second_opinion("plan", MODEL, GPU, deployment, LOAD, Engine(), ours)
        differences = {one.metric: one.difference_pct for one in found.figures}
        assert not found.reason and "h100_sxm" in found.source
        assert abs(differences["itl_ms"]) < 10 and abs(differences["output_tokens_per_s"]) < 10, differences


@installed
def test_a_model_asked_after_another_gets_its_own_answer() -> None:
    """Its backend's cache forgets the model (facts/estimator.md, pitfall 1)."""
    small, large = Question(MODEL, GPU, Deployment()), Question(LARGE, GPU, Deployment(tensor_parallel=8))
    first, second, again = ask(small, LOAD, 32), ask(large, LOAD, 32), ask(small, LOAD, 32)
    assert first == again and second.itl_ms > 1.2 * first.itl_ms


@installed
def test_it_refuses_with_the_reason_what_was_never_measured() -> None:
    ours = estimate(MODEL, GPU, Deployment(weights="int4_awq"), LOAD, Engine())
    made = instead(ours, MODEL, GPU, Deployment(weights="int4_awq"), LOAD, Engine())
    assert "int4_wo" in made.notes[-1] and "/" not in made.notes[-1].split("answer:")[1]
    assert made.model_copy(update={"notes": ours.notes}) == ours


@installed
def test_predict_answers_with_its_times_and_our_memory() -> None:
    point = {"model": MODEL.name, "gpu": "h100", "weights": "fp8", "isl": 1024, "osl": 256}
    lines = [json.dumps({**point, **load}) for load in ({"concurrency": 16}, {"concurrency": "max"}, {"rate": 4.0})]
    for line, ours in zip(predict_lines(lines, silicon=True), predict_lines(lines), strict=True):
        theirs, mine = json.loads(line), json.loads(ours)
        assert theirs["memory_gib"] == mine["memory_gib"] and theirs["basis"]["memory_gib"] == "arithmetic"
        assert theirs["basis"]["itl_ms"] == "silicon" and theirs["itl_ms"] != mine["itl_ms"] and not theirs["range"]
        assert 0.6 < theirs["output_tokens_per_s"] / mine["output_tokens_per_s"] < 1.67


@installed
def test_a_model_that_it_does_not_have_is_described_to_it() -> None:
    mistral = read_model("mistralai/Mistral-7B-Instruct-v0.3")[0]
    assert ask(Question(mistral, GPU, Deployment()), LOAD, 32).itl_ms == pytest.approx(11, rel=0.2)
