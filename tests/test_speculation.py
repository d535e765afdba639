"""Speculative decoding: the formula by hand, published priors, draft costs, best length, break-even, and published ratios."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor import library
from advisor.errors import NotPossible
from advisor.estimator.acceptance import acceptance_of, acceptance_rate, expected_tokens, prior
from advisor.estimator.constants import constants_of
from advisor.estimator.drafting import (
    Speculating,
    draft_cost_ratio,
    draft_params,
    draft_weight_bytes,
    params_in_name,
    speculating,
)
from advisor.estimator.speculation import METHODS, best, best_draft_len, break_even_concurrency, choose, outlook
from advisor.estimator.step_time import step_time
from advisor.types import (
    Deployment,
    Draft,
    Engine,
    Gpu,
    Load,
    Mla,
    Model,
    Moe,
    Quantized,
    Speculation,
    SpeculationMethod,
    TensorRates,
)

LLAMA_8B = Model(
    name="Llama-3.1-8B", architecture="LlamaForCausalLM", layers=32, hidden=4096, intermediate=14336, vocab=128256, heads=32,
    kv_heads=8, head_dim=128, attention="gqa", attention_layers=32, mlp_layers=32, params=8_030_261_248,
    drafts=(Draft(method="eagle3", id="yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"),),
)  # fmt: skip
LLAMA_70B = Model(
    name="Llama-3.3-70B-Instruct", architecture="LlamaForCausalLM", layers=80, hidden=8192, intermediate=28672, vocab=128256,
    heads=64, kv_heads=8, head_dim=128, attention="gqa", attention_layers=80, mlp_layers=80, params=70_553_706_496,
    siblings=("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
)  # fmt: skip
DEEPSEEK_R1 = Model(
    name="DeepSeek-R1", architecture="DeepseekV3ForCausalLM", layers=61, hidden=7168, intermediate=18432, vocab=129280,
    heads=128, kv_heads=128, head_dim=128, attention="mla", attention_layers=61, mlp_layers=61, params=671_026_404_352,
    mla=Mla(q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128),
    moe=Moe(experts=256, active=8, intermediate=2048, layers=58, shared_intermediate=2048), mtp_layers=1,
)  # fmt: skip
H100 = Gpu(
    id="h100-sxm-80gb", name="H100", sm=90, count=8, memory_gib=79.6, bandwidth_gb_s=3352, link="nvlink", link_gb_s=450,
    tflops=TensorRates(bf16=989, fp8=1979),
)  # fmt: skip
B200 = Gpu(
    id="b200", name="B200", sm=100, count=8, memory_gib=178, bandwidth_gb_s=8000, link="nvlink", link_gb_s=900,
    tflops=TensorRates(bf16=2250, fp8=4500, fp4=9000),
)  # fmt: skip
SPEEDUPS = Path(__file__).resolve().parents[2] / "shared" / "facts" / "truth" / "speedups.jsonl"


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    "acceptance, draft_len, tokens",
    [(0.0, 4, 1.0), (1.0, 4, 5.0), (0.5, 1, 1.5), (0.5, 3, 1.875), (0.8, 2, 2.44), (0.7, 3, 2.533)],
)
def test_expected_tokens_by_hand(acceptance: float, draft_len: int, tokens: float) -> None:
    # 1 + a + a^2 + ... + a^k
    assert expected_tokens(acceptance, draft_len) == pytest.approx(tokens)


@given(st.floats(0.0, 1.0), st.integers(1, 16))
def test_a_longer_draft_gives_more_tokens_but_never_more_than_it_has(acceptance: float, draft_len: int) -> None:
    tokens = expected_tokens(acceptance, draft_len)
    assert 1.0 <= tokens <= draft_len + 1.0
    assert tokens <= expected_tokens(acceptance, draft_len + 1) + 1e-12


@given(st.floats(0.0, 0.999), st.integers(1, 12))
def test_rate_and_length_convert_back_and_forth(acceptance: float, draft_len: int) -> None:
    assert acceptance_rate(expected_tokens(acceptance, draft_len), draft_len) == pytest.approx(acceptance, abs=1e-6)


def test_an_acceptance_outside_0_and_1_is_refused() -> None:
    for acceptance in (-0.1, 1.1, float("nan")):
        with pytest.raises(NotPossible):
            expected_tokens(acceptance, 3)


# ---------------------------------------------------------------- priors


def test_priors_are_ranges_of_published_values() -> None:
    # EAGLE-3 at one draft: 1.665 (gemma-4-12B) is the least published, so an acceptance of 0.665
    found = prior("eagle3", 1)
    assert found.low == pytest.approx(0.665, abs=1e-6)
    assert found.high == pytest.approx(acceptance_rate(3.53, 3), abs=1e-6)  # a value at 3 drafts lends its rate
    assert found.low <= found.typical <= found.high
    assert "InferenceX" in found.source


def test_a_prior_can_be_asked_for_one_task() -> None:
    chat, translation = prior("ngram", 5, "chat"), prior("ngram", 5, "translation")
    assert expected_tokens(chat.low, 5) == pytest.approx(1.37, abs=1e-6)
    assert expected_tokens(chat.high, 5) == pytest.approx(1.66, abs=1e-6)
    assert translation.low > chat.high
    with pytest.raises(NotPossible, match="no acceptance"):
        prior("ngram", 5, "poetry")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_prior_at_every_length_and_every_row_a_source(method: SpeculationMethod) -> None:
    data = library.profile("speculation", method)
    assert data is not None and data["method"] == method
    for row in data["rows"]:
        assert row["source"] in data["sources"]
        assert ("lengths" in row) != ("rate" in row)
        assert all(1.0 < tokens <= draft_len + 1 for draft_len, tokens in row.get("lengths", {}).items())
    assert {row["source"] for row in data["rows"]} == set(data["sources"])
    for draft_len in range(1, 9):
        found = prior(method, draft_len)
        assert 0.0 < found.low <= found.typical <= found.high < 1.0


def test_the_models_own_published_draft_is_the_typical_value() -> None:
    own = LLAMA_8B.model_copy(update={"drafts": (Draft(method="eagle3", draft_len=3, acceptance_length=2.0, source="card"),)})
    found = acceptance_of(own, "eagle3", 3)
    assert expected_tokens(found.typical, 3) == pytest.approx(2.0)
    assert (found.low, found.source) == (found.typical, "card")
    assert acceptance_of(LLAMA_8B, "eagle3", 3) == prior("eagle3", 3)


# ---------------------------------------------------------------- costs


def test_the_eagle3_head_of_llama_8b_has_the_size_of_the_published_one() -> None:
    # EAGLE3-LLaMA3.1-Instruct-8B, by hand: q, k, v from 2 x 4096; o; three MLP matrices; fusion 3 x 4096; 32,000-token head
    by_hand = 2 * 4096 * (32 + 16) * 128 + 4096 * 4096 + 3 * 4096 * 14336 + 3 * 4096 * 4096 + 32000 * 4096
    assert draft_params(LLAMA_8B, Speculation(method="eagle3")) == by_hand == 424_673_280
    # over the 7.50e9 parameters that a step reads (the input embedding is looked up, not read)
    ratio = draft_cost_ratio(LLAMA_8B, Speculation(method="eagle3"))
    assert ratio == pytest.approx(by_hand / (8_030_261_248 - 128256 * 4096 - 266_240), rel=1e-4)


def test_quantizing_the_target_makes_the_draft_dearer() -> None:
    eagle = Speculation(method="eagle3")
    plain, fp8, int4 = (draft_cost_ratio(LLAMA_8B, eagle, weights) for weights in ("bf16", "fp8", "int4_awq"))
    assert plain is not None and fp8 is not None and int4 is not None
    assert plain < fp8 < int4 < 4 * plain


def test_a_draft_model_costs_its_size_over_the_targets() -> None:
    one = draft_cost_ratio(LLAMA_70B, Speculation(method="draft", draft_model="meta-llama/Llama-3.2-1B-Instruct"))
    eight = draft_cost_ratio(LLAMA_70B, Speculation(method="draft", draft_model="meta-llama/Llama-3.1-8B-Instruct"))
    assert one == pytest.approx(1 / 69.5, rel=0.01)
    assert eight == pytest.approx(8 / 69.5, rel=0.01)
    assert draft_cost_ratio(LLAMA_70B, Speculation(method="draft", draft_model="mystery")) is None
    assert draft_cost_ratio(LLAMA_70B, Speculation(method="ngram")) == 0.0


def test_an_mtp_layer_costs_about_a_layer_and_a_head() -> None:
    mtp = Speculation(method="mtp")
    ratio = draft_cost_ratio(DEEPSEEK_R1, mtp)
    # 37.5e9 active: one 61st of them without the head, 2 x 7168^2, and the head's 0.93e9
    assert ratio == pytest.approx((36.6e9 / 61 - 0.93e9 / 61 + 0.103e9 + 0.927e9) / 36.6e9, rel=0.05)
    native = DEEPSEEK_R1.model_copy(update={"quantized": Quantized(weights="fp8_block", method="fp8")})
    quantized, kept = draft_cost_ratio(native, mtp, "fp8_block"), draft_cost_ratio(DEEPSEEK_R1, mtp, "fp8_block")
    assert quantized is not None and kept is not None and quantized < kept


@pytest.mark.parametrize(
    "name, params",
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1e9), ("Qwen/Qwen3-0.6B", 0.6e9), ("HuggingFaceTB/SmolLM2-135M", 135e6),
        ("Qwen/Qwen3-30B-A3B", 3e9), ("Qwen3.6-35B-A3B", 3e9), ("meta-llama/Llama-2-7b-chat-hf", 7e9), ("gpt2", None),
        ("deepseek-ai/DeepSeek-R1", None), ("", None),
    ],
)  # fmt: skip
def test_the_size_in_a_models_name(name: str, params: float | None) -> None:
    assert params_in_name(name) == params


def test_memory_of_a_draft() -> None:
    assert draft_weight_bytes(LLAMA_8B, Speculation(method="ngram")) == 0.0
    assert draft_weight_bytes(LLAMA_8B, Speculation(method="eagle3")) == 2 * 424_673_280
    # an MTP layer of DeepSeek-R1 holds all 256 experts: 256 x 3 x 7168 x 2048 x 2 bytes is 22.5 GB of its 23.6
    assert draft_weight_bytes(DEEPSEEK_R1, Speculation(method="mtp")) == pytest.approx(22.5e9, rel=0.1)


# ---------------------------------------------------------------- steps


def with_draft(model: Model, gpu: Gpu, speculation: Speculation, **fields: object) -> Speculating:
    deployment = Deployment(speculation=speculation, **fields)  # type: ignore[arg-type]
    constants = constants_of(gpu)
    assert constants is not None
    made = speculating(step_time(constants, model, deployment, Engine()), model, deployment)
    assert isinstance(made, Speculating)
    return made


def test_without_speculation_the_step_times_stay_as_they_are() -> None:
    constants = constants_of(H100)
    assert constants is not None
    plain = step_time(constants, LLAMA_8B, Deployment(), Engine())
    assert speculating(plain, LLAMA_8B, Deployment()) is plain


def test_verifying_costs_little_at_batch_one_and_its_rows_at_a_large_batch() -> None:
    made = with_draft(LLAMA_8B, H100, Speculation(method="ngram", draft_len=3, acceptance=0.5))
    assert made.whole(1, 1000) == pytest.approx(made.plain.step(1, 1000), rel=0.05)
    # at 512 sequences 4 x 512 rows are computed: at least half of the rows' multiplication time more
    assert made.whole(512, 1000) > 1.3 * made.plain.step(512, 1000)
    assert made.step(4, 1000) == pytest.approx(made.whole(4, 1000) / expected_tokens(0.5, 3))


def test_a_step_with_prompts_carries_them_and_a_prompt_alone_is_not_drafted_for() -> None:
    made = with_draft(LLAMA_8B, H100, Speculation(method="eagle3", draft_len=2, acceptance=0.6))
    assert made.step(0, 1.0, 2048, 2048) == made.plain.step(0, 1.0, 2048, 2048)
    assert made.prompt(1024) == made.plain.prompt(1024)
    more = made.whole(8, 1000, 2048, 2048) - made.whole(8, 1000)
    assert more == pytest.approx(made.plain.step(8, 1000, 2048, 2048) - made.plain.step(8, 1000), rel=0.15)


@given(st.floats(0.05, 0.95), st.integers(1, 8), st.sampled_from([1, 8, 64, 256]))
def test_the_gain_never_exceeds_the_tokens_and_rises_with_the_acceptance(rate: float, draft_len: int, batch: int) -> None:
    low = with_draft(LLAMA_8B, H100, Speculation(method="eagle3", draft_len=draft_len, acceptance=rate))
    high = with_draft(LLAMA_8B, H100, Speculation(method="eagle3", draft_len=draft_len, acceptance=min(1.0, rate + 0.05)))
    assert low.gain(batch, 1000) <= low.tokens * (1 + 1e-9)
    assert low.gain(batch, 1000) < high.gain(batch, 1000)
    for made in (low, high):  # the steps that drafts share are those that a deployment takes
        assert made.gain(batch, 1000) == pytest.approx(made.plain.step(batch, 1000) / made.step(batch, 1000), rel=1e-12)


@pytest.mark.parametrize(
    "speculation",
    [
        Speculation(method="mtp"), Speculation(method="draft", draft_model="mystery"), Speculation(method="draft"),
        Speculation(method="ngram", draft_len=0), Speculation(method="ngram", draft_len=1000),
        Speculation(method="ngram", acceptance=1.5),
    ],
)  # fmt: skip
def test_speculation_that_cannot_be_is_refused(speculation: Speculation) -> None:
    with pytest.raises(NotPossible) as caught:
        with_draft(LLAMA_8B, H100, speculation)
    assert caught.value.where and caught.value.hint


# ---------------------------------------------------------------- choice


LOAD = Load(isl=1024, osl=512, concurrency=1)
SPREAD = Deployment(tensor_parallel=4, weights="fp8")


def test_one_stream_of_a_70b_gains_with_a_small_sibling_and_many_gain_less() -> None:
    alone = choose(LLAMA_70B, H100, SPREAD, LOAD, Engine(), ("draft",))
    assert alone is not None
    assert alone.method == "draft" and alone.draft_model == "meta-llama/Llama-3.2-1B-Instruct"
    assert 0.6 < (alone.acceptance or 0) < 0.75
    one = outlook(LLAMA_70B, H100, SPREAD, LOAD, Engine(), "draft")
    many = outlook(LLAMA_70B, H100, SPREAD, LOAD.model_copy(update={"concurrency": 256}), Engine(), "draft")
    assert one is not None and many is not None
    assert one.gain > 1.5 > many.gain
    assert many.speculation.draft_len < one.speculation.draft_len
    assert one.low <= one.gain <= one.high


def test_the_draft_stops_paying_where_it_says() -> None:
    # a third of what is drafted is accepted: worth it alone, not in a crowd
    found = outlook(LLAMA_8B.model_copy(update={"drafts": ()}), H100, Deployment(), LOAD, Engine(), "ngram")
    assert found is not None
    turn = found.break_even_concurrency
    assert 1 < turn < 286
    made = with_draft(LLAMA_8B, H100, found.speculation)
    assert made.gain(turn, 1280) > 1.0 >= made.gain(turn + 1, 1280)
    assert found.speculation.max_concurrency == turn


def test_at_a_concurrency_beyond_the_turn_nothing_is_chosen() -> None:
    weak = LLAMA_8B.model_copy(
        update={"drafts": (Draft(method="eagle3", id="x", draft_len=3, acceptance_length=1.05, source="test"),)}
    )
    crowd = Load(isl=64, osl=512, concurrency=1500)
    found = outlook(weak, H100, Deployment(), crowd, Engine(), "eagle3")
    assert found is not None
    assert found.gain < 1.0 and found.break_even_concurrency < 1500
    assert choose(weak, H100, Deployment(), crowd, Engine(), ("eagle3",)) is None
    assert best(weak, H100, Deployment(), crowd, Engine(), ("eagle3",)) == found


def test_the_best_length_is_the_best_of_all_lengths() -> None:
    for concurrency in (1, 64):
        load = LOAD.model_copy(update={"concurrency": concurrency})
        length = best_draft_len(LLAMA_8B, H100, Deployment(), load, Engine(), "eagle3")
        assert length is not None
        gains = {
            k: with_draft(
                LLAMA_8B, H100, Speculation(method="eagle3", draft_len=k, acceptance=round(prior("eagle3", k).typical, 3))
            ).gain(concurrency, 1280)
            for k in range(1, 9)
        }
        assert gains[length] == max(gains.values())


def test_methods_that_the_model_has_not_are_not_offered() -> None:
    bare = LLAMA_8B.model_copy(update={"drafts": ()})
    for method in ("mtp", "eagle3", "draft"):
        assert outlook(bare, H100, Deployment(), LOAD, Engine(), method) is None  # type: ignore[arg-type]
        assert break_even_concurrency(bare, H100, Deployment(), LOAD, Engine(), method) is None  # type: ignore[arg-type]
    assert choose(bare, H100, Deployment(), LOAD, Engine(), ("mtp", "eagle3", "draft")) is None
    chosen = choose(bare, H100, Deployment(), LOAD, Engine())
    assert chosen is not None and chosen.method == "ngram"
    # siblings of half the size or more are no drafts
    twin = LLAMA_70B.model_copy(update={"siblings": ("meta-llama/Llama-3.1-70B",)})
    assert choose(twin, H100, SPREAD, LOAD, Engine(), ("draft",)) is None


def test_what_does_not_fit_or_is_not_known_has_no_outlook() -> None:
    assert outlook(LLAMA_70B, H100, Deployment(), LOAD, Engine(), "ngram") is None
    unknown = Gpu(id=None, name="Mystery")
    assert outlook(LLAMA_8B, unknown, Deployment(), LOAD, Engine(), "ngram") is None


def test_concurrency_is_counted_over_all_replicas() -> None:
    one = outlook(LLAMA_8B, H100, Deployment(), LOAD.model_copy(update={"concurrency": 16}), Engine(), "ngram")
    four = outlook(LLAMA_8B, H100, Deployment(replicas=4), LOAD.model_copy(update={"concurrency": 64}), Engine(), "ngram")
    assert one is not None and four is not None
    assert four.gain == pytest.approx(one.gain)
    assert four.break_even_concurrency == 4 * one.break_even_concurrency


# ---------------------------------------------------------------- published


@pytest.mark.parametrize(
    "draft_len, tokens, speedup", [(1, 1.92, 1.78), (2, 2.58, 2.25), (3, 2.82, 2.28), (4, 2.99, 2.21), (5, 3.01, 2.15)]
)
def test_mtp_of_deepseek_r1_on_eight_b200(draft_len: int, tokens: float, speedup: float) -> None:
    """NVIDIA/TensorRT-LLM tech_blog/blog1: NVFP4, one stream, ISL 1024, OSL 2048; its own acceptance lengths."""
    speculation = Speculation(method="mtp", draft_len=draft_len, acceptance=acceptance_rate(tokens, draft_len))
    made = with_draft(DEEPSEEK_R1, B200, speculation, tensor_parallel=8, weights="nvfp4", kv_cache="fp8")
    assert made.gain(1, 2048) == pytest.approx(speedup, rel=0.13)


@pytest.mark.skipif(not SPEEDUPS.is_file(), reason="the published ratios are not here")
def test_published_mtp_pairs_are_on_the_right_side_of_one() -> None:
    """59 pairs of ITL with and without MTP, DeepSeek-R1-0528, B200, 4 to 256 concurrent; 2.6 tokens a step taken for MTP3."""
    from advisor.estimator.batching import in_flight

    rows = [json.loads(line) for line in SPEEDUPS.open() if '"technique": "mtp"' in line]
    pairs = [row for row in rows if row["kind"] == "derived_from_published_pair" and row["metric"] == "tpot_ms"]
    assert len(pairs) > 50
    errors = []
    for row in pairs:
        speculation = Speculation(method="mtp", draft_len=3, acceptance=acceptance_rate(2.6, 3))
        made = with_draft(
            DEEPSEEK_R1, B200, speculation, tensor_parallel=row["tp"], expert_parallel=row.get("ep") or 1, weights="fp8_block"
        )
        load = row["concurrency"], row["isl"], row["osl"], 8192
        predicted = in_flight(made.plain, *load).seconds_per_token / in_flight(made, *load).seconds_per_token  # type: ignore[arg-type]
        assert predicted > 1.0 and row["speedup"] > 1.0
        errors.append(abs(predicted / row["speedup"] - 1.0))
    assert sum(errors) / len(errors) < 0.15


def test_every_method_is_covered() -> None:
    assert set(METHODS) == set(get_args(SpeculationMethod))
