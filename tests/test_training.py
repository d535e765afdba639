"""Training cost: FLOPs by hand, and ranges that hold the published runs they come from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor import library
from advisor.errors import NotPossible
from advisor.estimator.training import active_params, training_cost
from advisor.profiler.gpu import find_gpu
from advisor.types import Gpu, Model, Moe, TensorRates


def dense(billions: float) -> Model:
    """A model of that many parameters, all but the embedding multiplied with."""
    return Model(
        name="m", architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336, vocab=128256, heads=32,
        kv_heads=8, head_dim=128, attention="gqa", attention_layers=32, mlp_layers=32, params=int(billions * 1e9),
    )  # fmt: skip


LLAMA_8B = dense(8.03)
QWEN_35B_A3B = Model(
    name="Qwen3.6-35B-A3B", architecture="Qwen3MoeForCausalLM", layers=40, hidden=2048, intermediate=512, vocab=248320,
    heads=16, kv_heads=2, head_dim=256, attention="gqa", attention_layers=40, mlp_layers=40,
    moe=Moe(experts=256, active=8, intermediate=512, layers=40, shared_intermediate=512),
)  # fmt: skip
H100 = find_gpu("h100-sxm-80gb")[0]
ANCHORS = library.profile("training", "anchors") or {}


def test_qat_of_an_8b_by_hand() -> None:
    # 7.50e9 parameters are multiplied with; 6 FLOPs each; 1e9 tokens at 33 % and 15 % of the peak
    found = training_cost("qat", LLAMA_8B, H100, tokens=1e9)
    assert found is not None
    params = active_params(LLAMA_8B)
    assert params == pytest.approx(8.03e9 - 128256 * 4096, rel=0.01)
    peak = (H100.tflops.bf16 or 0) * 1e12
    assert found.flops_per_token == 6 * params
    assert found.gpu_hours == (
        pytest.approx(6 * params * 1e9 / (0.33 * peak) / 3600),
        pytest.approx(6 * params * 1e9 / (0.15 * peak) / 3600),
    )
    assert found.basis == "published"
    assert "minitron" in found.source


def test_a_teacher_adds_its_forward_pass() -> None:
    qat, qad = training_cost("qat", LLAMA_8B, H100), training_cost("qad", LLAMA_8B, H100)
    assert qat is not None and qad is not None
    assert qad.flops_per_token == pytest.approx(8 / 6 * qat.flops_per_token)
    small = training_cost("distillation", dense(4.0), H100, teacher=LLAMA_8B)
    assert small is not None
    assert small.flops_per_token == pytest.approx(6 * active_params(dense(4.0)) + 2 * active_params(LLAMA_8B))


def test_a_draft_head_reads_the_base_and_trains_little() -> None:
    head, full = training_cost("draft_head", LLAMA_8B, H100, tokens=1e9), training_cost("qat", LLAMA_8B, H100, tokens=1e9)
    assert head is not None and full is not None
    assert head.flops_per_token == 2 * active_params(LLAMA_8B) + 6 * 7 * 424_673_280
    assert head.gpu_hours[1] < full.gpu_hours[1]
    assert head.least_gpus == 1


def test_memory_says_how_many_gpus_at_least() -> None:
    # 16 bytes for each of 8.03e9 parameters is 119.7 GiB; ModelOpt's QAT example asks for two 80 GB GPUs
    found = training_cost("qat", LLAMA_8B, H100)
    assert found is not None and found.least_gpus == 2
    unknown = training_cost("qat", LLAMA_8B, H100.model_copy(update={"memory_gib": None}))
    assert unknown is not None and unknown.least_gpus is None


@pytest.mark.parametrize("run", [run for run in ANCHORS.get("runs", ()) if run["method"] != "pretraining"])
def test_the_range_holds_the_run_it_comes_from(run: dict[str, float | bool | str]) -> None:
    gpu = Gpu(id=None, name="anchor", memory_gib=80, tflops=TensorRates(bf16=float(run["peak_tflops"])))
    tokens = 1e9 * float(run["tokens_b"])
    if run["method"] == "distillation":
        student, teacher = dense(float(run["trained_b"])), dense(float(run["frozen_b"]))
        found = training_cost("distillation", student, gpu, teacher=teacher, tokens=tokens)
    else:
        found = training_cost("qad", QWEN_35B_A3B, gpu, tokens=tokens)
    assert found is not None
    # the stand-ins multiply with not quite the printed parameters
    printed = (6 * float(run["trained_b"]) + 2 * float(run["frozen_b"])) * 1e9
    low, high = (hours * printed / found.flops_per_token for hours in found.gpu_hours)
    assert low <= float(run["gpu_hours"]) <= high * 1.02
    assert 0.75 < found.flops_per_token / printed < 1.1


def test_the_utilisations_are_those_of_the_runs() -> None:
    reached: dict[bool, list[float]] = {True: [], False: []}
    for run in ANCHORS["runs"]:
        flops = (6 * run["trained_b"] + 2 * run["frozen_b"]) * 1e9 * run["tokens_b"] * 1e9
        reached[run["moe"]].append(flops / (run["gpu_hours"] * 3600 * run["peak_tflops"] * 1e12))
        assert run["source"] in ANCHORS["sources"]
    best = max(reached[True] + reached[False])
    assert ANCHORS["utilisation"]["dense"] == [round(min(reached[False]), 2), round(best, 2)]
    assert ANCHORS["utilisation"]["moe"] == [round(min(reached[True]), 2), round(best, 2)]


@given(st.sampled_from(["qat", "qad", "draft_head"]), st.floats(1e6, 1e13), st.floats(1.0, 10.0))
def test_hours_grow_with_tokens_and_shrink_with_the_peak(method: str, tokens: float, times: float) -> None:
    base = training_cost(method, LLAMA_8B, H100, tokens=tokens)  # type: ignore[arg-type]
    more = training_cost(method, LLAMA_8B, H100, tokens=tokens * times)  # type: ignore[arg-type]
    fast = H100.model_copy(update={"tflops": TensorRates(bf16=(H100.tflops.bf16 or 0) * times)})
    quick = training_cost(method, LLAMA_8B, fast, tokens=tokens)  # type: ignore[arg-type]
    assert base is not None and more is not None and quick is not None
    assert 0 < base.gpu_hours[0] <= base.gpu_hours[1]
    assert more.gpu_hours[1] == pytest.approx(times * base.gpu_hours[1])
    assert quick.gpu_hours[1] == pytest.approx(base.gpu_hours[1] / times)


def test_without_tokens_the_published_range_is_taken_and_named() -> None:
    found = training_cost("qad", QWEN_35B_A3B, find_gpu("gb200")[0])
    assert found is not None
    assert found.tokens == (0.84e9, 8.4e9)
    assert "50 to 500 iterations" in found.source
    # the published run, 735 GPU-hours at 8.4e9 tokens, is the upper end
    assert found.gpu_hours[1] == pytest.approx(735 * active_params(QWEN_35B_A3B) / 3.0e9, rel=0.05)


def test_what_cannot_be_said() -> None:
    assert training_cost("qat", LLAMA_8B, Gpu(id=None, name="Mystery")) is None
    with pytest.raises(NotPossible, match="teacher"):
        training_cost("distillation", LLAMA_8B, H100)
    for tokens in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(NotPossible, match="tokens"):
            training_cost("qat", LLAMA_8B, H100, tokens=tokens)
