"""The models in profiles/models: every one is described, its cache and its parameters are those that were published."""

from __future__ import annotations

from pathlib import Path

import pytest

from advisor.errors import UnknownName
from advisor.library import profile, profile_names
from advisor.profiler.known_models import find_known, known_names
from advisor.profiler.model import read_model
from advisor.types import Model, Window

STEMS = profile_names("models")
SHARED = Path(__file__).parents[1].parent / "shared" / "facts" / "truth" / "model_configs"


def cache_elements(model: Model) -> tuple[float, float]:
    """Elements that a token adds to the global and to the local layers' cache, as types.py defines them."""
    plain = float(model.mla.kv_lora_rank + model.mla.qk_rope_head_dim) if model.mla else 2.0 * model.kv_heads * model.head_dim
    local = model.window.layers if model.window else 0
    in_window = (model.window.kv_elements or plain) * local if model.window else 0.0
    return (model.kv_elements or plain) * (model.attention_layers - local), in_window


# model, global elements per token, local elements per token, window: by hand from the published architecture
CACHES = [
    ("meta-llama/Llama-3.1-8B", 32 * 2 * 8 * 128, 0, None),
    ("meta-llama/Llama-3.3-70B-Instruct", 80 * 2 * 8 * 128, 0, None),
    ("meta-llama/Llama-2-7b-hf", 32 * 2 * 32 * 128, 0, None),
    ("tiiuae/falcon-7b", 32 * 2 * 1 * 64, 0, None),
    ("tiiuae/falcon-40b", 60 * 2 * 8 * 64, 0, None),
    ("microsoft/phi-2", 32 * 2 * 32 * 80, 0, None),
    ("Qwen/Qwen3-30B-A3B", 48 * 2 * 4 * 128, 0, None),
    ("deepseek-ai/DeepSeek-V3", 61 * (512 + 64), 0, None),
    ("moonshotai/Kimi-K2-Instruct", 61 * (512 + 64), 0, None),
    ("moonshotai/Kimi-K3", 24 * (512 + 64), 0, None),
    ("mistralai/Mixtral-8x7B-v0.1", 32 * 2 * 8 * 128, 0, None),
    ("mistralai/Mistral-7B-v0.3", 32 * 2 * 8 * 128, 0, None),
    ("mistralai/Mistral-7B-v0.1", 0, 32 * 2 * 8 * 128, 4096),
    ("microsoft/Phi-3-mini-4k-instruct", 0, 32 * 2 * 32 * 96, 2047),
    ("microsoft/Phi-4-mini-instruct", 32 * 2 * 8 * 128, 0, None),  # its window is longer than its context
    ("google/gemma-2-27b", 23 * 2 * 16 * 128, 23 * 2 * 16 * 128, 4096),
    ("google/gemma-3-27b-it", 10 * 2 * 16 * 128, 52 * 2 * 16 * 128, 1024),
    ("nvidia/Gemma-4-31B-IT-NVFP4", 10 * 2 * 4 * 512, 50 * 2 * 16 * 256, 1024),
    ("openai/gpt-oss-120b", 18 * 2 * 8 * 64, 18 * 2 * 8 * 64, 128),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 12 * 2 * 8 * 128, 36 * 2 * 8 * 128, 8192),
    ("XiaomiMiMo/MiMo-V2-Flash", 9 * 4 * (192 + 128), 39 * 8 * (192 + 128), 128),
    ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", 49 * 2 * 8 * 128, 0, None),
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 6 * 2 * 2 * 128, 0, None),
    ("nvidia/Nemotron-H-56B-Base-8K", 10 * 2 * 8 * 128, 0, None),
    ("Qwen/Qwen3.5-27B", 16 * 2 * 4 * 256, 0, None),
]


@pytest.mark.parametrize(("name", "whole", "local", "window"), CACHES, ids=[case[0] for case in CACHES])
def test_cache_elements_per_token_are_those_of_the_published_architecture(
    name: str, whole: int, local: int, window: int | None
) -> None:
    model, _ = read_model(name)
    assert cache_elements(model) == (whole, local)
    assert (model.window.size if model.window else None) == window


@pytest.mark.parametrize("stem", STEMS)
def test_every_profile_is_described_and_known(stem: str) -> None:
    facts = profile("models", stem)
    model, sources = read_model(facts["id"])
    assert model.name == facts["id"]
    assert model.known
    assert model.params is not None and sum(n for part, n in model.params_by_part.items() if part != "mtp") == model.params
    assert 0 < (model.active_params or 0) <= model.params
    assert model.attention_layers > 0 and model.mlp_layers > 0
    assert facts["source"]
    assert set(sources.values()) == {f"profiles/models/{stem}.yaml"}
    assert all(name.split(".")[1] in Model.model_fields for name in sources)
    assert {"model.layers", "model.kv_heads", "model.tied_embeddings", "model.mtp_layers", "model.params"} <= set(sources)
    assert all(draft.source for draft in model.drafts)


@pytest.mark.parametrize("stem", [stem for stem in STEMS if "published" in profile("models", stem)])
def test_parameters_by_arithmetic_agree_with_the_published_count(stem: str) -> None:
    facts = profile("models", stem)
    model, _ = read_model(facts["id"])
    assert model.params == pytest.approx(facts["published"]["params"], rel=0.002)
    assert model.active_params == pytest.approx(facts["published"]["active_params"], rel=0.002)


# names, in the words of their publishers, of models whose facts carry no computed count
NAMED_SIZES = [
    ("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 30e9, 3.5e9),
    ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", 120e9, 12e9),
    ("nvidia/NVIDIA-Nemotron-3-Ultra-550B-A55B-BF16", 550e9, 55e9),
    ("nvidia/Nemotron-H-56B-Base-8K", 56e9, 56e9),
    ("nvidia/Llama-3_3-Nemotron-Super-49B-v1", 49e9, 49e9),
    ("Qwen/Qwen3.5-397B-A17B", 397e9, 17e9),
    ("Qwen/Qwen3.5-122B-A10B", 122e9, 10e9),
    ("Qwen/Qwen3.5-35B-A3B", 35e9, 3.4e9),
    ("google/gemma-4-26B-A4B", 26e9, 3.9e9),
    ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 109e9, 17e9),
    ("XiaomiMiMo/MiMo-V2-Flash", 309e9, 15e9),
]


@pytest.mark.parametrize(("name", "params", "active"), NAMED_SIZES)
def test_parameters_fit_the_name_where_nothing_else_is_published(name: str, params: float, active: float) -> None:
    model, _ = read_model(name)
    assert model.params == pytest.approx(params, rel=0.06)
    assert model.active_params == pytest.approx(active, rel=0.07)


def test_recurrent_states_of_hybrids() -> None:
    qwen = read_model("Qwen/Qwen3.5-27B")[0].recurrent
    assert qwen is not None
    assert (qwen.kind, qwen.layers, qwen.state_elements) == ("gated delta net", 48, 48 * 128 * 128)
    assert qwen.conv_elements == (2 * 16 * 128 + 48 * 128) * 3
    nemotron = read_model("nvidia/Nemotron-H-56B-Base-8K")[0]
    assert nemotron.recurrent is not None
    assert (nemotron.recurrent.kind, nemotron.recurrent.layers) == ("Mamba 2", 54)
    assert nemotron.recurrent.state_elements == 256 * 64 * 256
    assert nemotron.recurrent.conv_elements == (256 * 64 + 2 * 8 * 256) * 3
    assert (nemotron.attention_layers, nemotron.mlp_layers, nemotron.gated_mlp) == (10, 54, False)


def test_mixtures_of_experts() -> None:
    deepseek = read_model("deepseek-ai/DeepSeek-V3")[0]
    assert deepseek.moe is not None
    assert (deepseek.moe.experts, deepseek.moe.active, deepseek.moe.layers) == (256, 8, 58)
    assert (deepseek.moe.intermediate, deepseek.moe.shared_intermediate, deepseek.intermediate) == (2048, 2048, 18432)
    assert deepseek.mtp_layers == 1
    maverick = read_model("llama-4-maverick")[0]
    assert maverick.moe is not None
    assert (maverick.moe.layers, maverick.mlp_layers, maverick.intermediate) == (24, 48, 16384)
    latent = read_model("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4")[0].moe
    assert latent is not None and (latent.hidden, latent.shared_intermediate) == (1024, 5376)
    gemma = read_model("google/gemma-4-26B-A4B")[0].moe
    assert gemma is not None and gemma.shared_intermediate == 2112


def test_local_layers_state_their_cache_where_the_global_ones_differ_from_the_heads() -> None:
    model = read_model("nvidia/Gemma-4-31B-IT-NVFP4")[0]
    assert (model.kv_heads, model.head_dim) == (16, 256)
    assert model.kv_elements == 2 * 4 * 512
    assert model.window == Window(size=1024, layers=50, kv_elements=2.0 * 16 * 256)


def test_a_sparse_attention_indexer_is_counted_beside_the_latent() -> None:
    model = read_model("deepseek-ai/DeepSeek-V3.2")[0]
    assert (model.attention, model.kv_elements, model.indexer_bytes) == ("mla", None, 128 + 4)
    assert read_model("deepseek-ai/DeepSeek-V3")[0].indexer_bytes == 0


def test_compressed_attention_grows_by_a_fraction_of_an_entry_per_token() -> None:
    model = read_model("deepseek-ai/DeepSeek-V4-Flash")[0]
    by_hand = (21 * (512 + 128) / 4 + 20 * 512 / 128) / 41
    assert model.kv_elements == pytest.approx(by_hand)
    assert model.window == Window(size=128, layers=2, kv_elements=512.0)


QUANTIZED = [
    ("deepseek-ai/DeepSeek-R1", "fp8_block", None),
    ("openai/gpt-oss-20b", "mxfp4", None),
    ("moonshotai/Kimi-K2.5", "int4_gptq", None),
    ("Qwen/Qwen3-235B-A22B-FP8", "fp8_block", None),
    ("nvidia/Llama-3.1-8B-Instruct-FP8", "fp8", None),
    ("nvidia/Llama-3.3-70B-Instruct-NVFP4", "nvfp4", None),
    ("nvidia/Gemma-4-31B-IT-NVFP4", "nvfp4", "fp8"),
    ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-FP8", "fp8", "fp8"),
    ("nvidia/Qwen3.6-27B-NVFP4", "nvfp4", "fp8"),
    ("deepseek-ai/DeepSeek-V4-Flash", "mxfp4", None),
]


@pytest.mark.parametrize(("name", "weights", "kv_cache"), QUANTIZED)
def test_models_published_quantized_are_recognised(name: str, weights: str, kv_cache: str | None) -> None:
    quantized = read_model(name)[0].quantized
    assert quantized is not None
    assert (quantized.weights, quantized.kv_cache) == (weights, kv_cache)


def test_no_other_known_model_is_taken_for_quantized() -> None:
    records = {s for s in STEMS if {"hf_quant_config", "quantization_config"} & {*profile("models", s), *_config(s)}}
    found = {stem for stem in STEMS if read_model(profile("models", stem)["id"])[0].quantized is not None}
    assert found == records


def _config(stem: str) -> dict[str, object]:
    config: dict[str, object] = profile("models", stem).get("config", {})
    return config


SPELLINGS = [
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ("META-LLAMA/llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
    ("llama3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
    ("Llama-3.3-70B", "meta-llama/Llama-3.3-70B-Instruct"),
    ("llama 3.3 70b instruct", "meta-llama/Llama-3.3-70B-Instruct"),
    ("Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B"),
    ("mixtral-8x7b", "mistralai/Mixtral-8x7B-v0.1"),
    ("deepseek-r1", "deepseek-ai/DeepSeek-R1"),
    ("gpt-oss-120b", "openai/gpt-oss-120b"),
    ("qwen2.5_7b", "Qwen/Qwen2.5-7B"),
    ("gpt-j-6b", "EleutherAI/gpt-j-6b"),
    ("  falcon-40b ", "tiiuae/falcon-40b"),
]


@pytest.mark.parametrize(("spelling", "name"), SPELLINGS)
def test_usual_spellings_find_the_model(spelling: str, name: str) -> None:
    assert read_model(spelling)[0].name == name


def test_an_instruction_tuned_variant_is_read_from_its_base_and_says_so() -> None:
    model, sources = read_model("Qwen/Qwen2.5-7B-Instruct")
    assert (model.name, model.layers) == ("Qwen/Qwen2.5-7B-Instruct", 28)
    assert any("Qwen/Qwen2.5-7B" in note and "base model" in note for note in model.notes)
    assert sources["model.layers"] == "profiles/models/Qwen--Qwen2.5-7B.yaml"


def test_a_typo_offers_the_nearest_names() -> None:
    with pytest.raises(UnknownName) as caught:
        read_model("lama-3.1-8b")
    assert "llama-3.1-8b" in caught.value.near
    assert "llama-3.1-8b" in str(caught.value)


def test_every_name_of_the_index_leads_to_a_file_and_every_file_has_its_id_there() -> None:
    names = known_names()
    assert set(names.values()) == set(STEMS)
    assert all(name == name.lower() for name in names)
    for stem in STEMS:
        assert find_known(profile("models", stem)["id"]) == stem
        assert stem == profile("models", stem)["id"].replace("/", "--")


def test_siblings_are_smaller_known_models_with_the_same_vocabulary_largest_first() -> None:
    with_siblings = 0
    for stem in STEMS:
        model, _ = read_model(profile("models", stem)["id"])
        siblings = [read_model(name)[0] for name in model.siblings]
        with_siblings += bool(siblings)
        sizes = [sibling.params or 0 for sibling in siblings]
        assert sizes == sorted(sizes, reverse=True)
        assert all(2 * size <= (model.params or 0) for size in sizes)
        assert {sibling.vocab for sibling in siblings} <= {model.vocab}
    assert with_siblings > 30
    assert "meta-llama/Llama-3.1-8B-Instruct" in read_model("llama-3.3-70b")[0].siblings


def test_published_drafts_and_checkpoints() -> None:
    llama = read_model("meta-llama/Llama-3.3-70B-Instruct")[0]
    assert [(draft.method, draft.id) for draft in llama.drafts] == [("eagle3", "nvidia/Llama-3.3-70B-Instruct-Eagle3")]
    assert llama.checkpoints == {"nvfp4": "nvidia/Llama-3.3-70B-Instruct-NVFP4"}
    glm = {draft.draft_len: draft.acceptance_length for draft in read_model("zai-org/GLM-5.2")[0].drafts}
    assert glm[3] == 2.99
    assert {draft.method for draft in read_model("MiniMaxAI/MiniMax-M3")[0].drafts} == {"eagle3"}
    for stem in STEMS:
        for weights, checkpoint in read_model(profile("models", stem)["id"])[0].checkpoints.items():
            quantized = read_model(checkpoint)[0].quantized
            assert quantized is not None and quantized.weights == weights


@pytest.mark.skipif(not SHARED.is_dir(), reason="the collected facts are not here")
def test_every_collected_model_has_a_profile_with_the_same_sizes() -> None:
    import json

    for path in sorted(SHARED.glob("*.json")):
        facts = json.loads(path.read_text())
        model, _ = read_model(facts["hf_id"])
        assert model.layers == facts["num_hidden_layers"], facts["hf_id"]
        assert model.hidden == facts["hidden_size"]
        assert model.vocab == facts["vocab_size"]
        assert model.heads == facts["num_attention_heads"]
        if facts.get("head_dim") and "kv_lora_rank" not in facts:
            assert model.head_dim == facts["head_dim"]
        if facts.get("num_key_value_heads") and model.mla is None:
            assert model.kv_heads == facts["num_key_value_heads"]
        if facts.get("tie_word_embeddings") is not None:
            assert model.tied_embeddings == facts["tie_word_embeddings"]
        assert (model.quantized is not None) >= ("native_quantization" in facts)
