"""config.json to Model: architectures old and new, those nobody has heard of, and those that do not decode.

The configurations are written from general knowledge of the published ones; the sizes beside them are their publishers'.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from advisor.errors import ModelProblem
from advisor.library import profile, profile_names
from advisor.profiler.architecture import describe
from advisor.types import Model

FIXTURES = Path(__file__).parent / "fixtures" / "models"
TOTALS = json.loads((FIXTURES / "transformers_totals.json").read_text())["totals"]


def model_of(config: dict[str, Any]) -> Model:
    return describe(config, name="test", where="config.json")


def transformer(model_type: str, hidden: int, layers: int, heads: int, vocab: int, **more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab}
    return {"model_type": model_type, "tie_word_embeddings": False, **sizes, **more}


PUBLISHED = yaml.safe_load((FIXTURES / "published.yaml").read_text())


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_of_the_publisher(name: str) -> None:
    facts = PUBLISHED[name]
    model = model_of(facts["config"])
    assert model.known
    assert model.params == pytest.approx(facts["billions"] * 1e9, rel=0.01)
    if "active_billions" in facts:
        assert model.active_params == pytest.approx(facts["active_billions"] * 1e9, rel=0.05)


CACHED = {
    # name: (attention, KV heads, head size, layers with a cache, local layers, recurrent layers)
    "gpt2": ("mha", 12, 64, 12, 0, 0),
    "falcon-7b": ("mqa", 1, 64, 32, 0, 0),
    "falcon-40b": ("gqa", 8, 64, 60, 0, 0),
    "chatglm3-6b": ("gqa", 2, 128, 28, 0, 0),
    "dbrx": ("gqa", 8, 128, 40, 0, 0),
    "deepseek-v2-lite": ("mla", 16, 192, 27, 0, 0),
    "longcat-flash": ("mla", 64, 192, 56, 0, 0),
    "jamba": ("gqa", 8, 128, 4, 0, 28),
    "granite-4.0-h-small": ("gqa", 8, 128, 4, 0, 36),
    "falcon-h1-7b": ("gqa", 2, 128, 44, 0, 44),
    "zamba2-7b": ("mha", 32, 224, 13, 0, 81),
    "minimax-text-01": ("gqa", 8, 128, 10, 0, 70),
    "qwen3-next-80b": ("gqa", 2, 256, 12, 0, 36),
    "lfm2-8b-a1b": ("gqa", 8, 64, 6, 0, 18),
    "mamba-2.8b": ("mha", 1, 1, 0, 0, 64),
    "gemma-3-4b": ("gqa", 4, 256, 34, 29, 0),
    "qwen2-vl-7b": ("gqa", 4, 128, 28, 0, 0),
}


@pytest.mark.parametrize("name", CACHED)
def test_caches_of_published_architectures(name: str) -> None:
    model = model_of(PUBLISHED[name]["config"])
    local = model.window.layers if model.window else 0
    states = model.recurrent.layers if model.recurrent else 0
    assert (model.attention, model.kv_heads, model.head_dim, model.attention_layers, local, states) == CACHED[name]


@pytest.mark.parametrize("model_type", sorted(TOTALS))
def test_architectures_add_up_to_the_reference_implementation(model_type: str) -> None:
    model = model_of({"text_config": {"model_type": model_type}})
    assert model.params == pytest.approx(TOTALS[model_type], rel=0.005)


@pytest.mark.parametrize("name", profile_names("architectures"))
def test_every_architecture_profile_is_well_formed(name: str) -> None:
    facts = profile("architectures", name)
    assert set(facts) <= {"kind", "gated", "implied", "defaults", "note", "missing", "same_as", "source"}
    assert facts["source"]
    assert name == name.lower()
    if "same_as" in facts:
        assert profile("architectures", facts["same_as"])["kind"] == "decoder"
    else:
        assert facts["kind"] in ("decoder", "encoder", "encoder-decoder", "other")
        assert ("gated" in facts) == (facts["kind"] == "decoder")


UNHEARD = transformer("quokka9", 2048, 24, 16, 50000, num_key_value_heads=4, intermediate_size=8192, hidden_act="silu")


def test_an_architecture_nobody_has_heard_of_still_gets_a_model_and_says_so() -> None:
    model = model_of({**UNHEARD, "architectures": ["Quokka9ForCausalLM"], "auto_map": {"AutoModel": "modeling_quokka.Q"}})
    assert (model.known, model.architecture, model.layers, model.kv_heads) == (False, "Quokka9ForCausalLM", 24, 4)
    assert any("quokka9" in note for note in model.notes)
    assert any("never run" in note for note in model.notes)


def test_odd_names_for_sizes_are_understood() -> None:
    model = model_of(
        {"n_layers": 4, "dim": 256, "n_heads": 8, "n_kv_heads": 2, "n_vocab": 1000, "ffn_dim": 512, "max_seq_len": 4096}
    )
    assert (model.layers, model.hidden, model.heads, model.kv_heads, model.intermediate) == (4, 256, 8, 2, 512)
    assert (model.known, model.architecture, model.max_context) == (False, "unknown", 4096)


def test_a_class_name_tells_the_architecture_when_the_type_does_not() -> None:
    sizes = {key: value for key, value in UNHEARD.items() if key != "model_type"}
    assert model_of({**sizes, "architectures": ["Qwen2ForCausalLM"]}).known
    assert model_of({**sizes, "model_type": "my-finetune", "architectures": ["DeepseekV3ForCausalLM"]}).known
    assert not model_of({**sizes, "architectures": ["../../etc/passwd"], "model_type": "../../etc/passwd"}).known


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_size_that_is_missing_is_named_with_the_keys_looked_for(missing: str) -> None:
    config = {key: value for key, value in UNHEARD.items() if key != missing}
    with pytest.raises(ModelProblem) as caught:
        model_of(config)
    assert missing in caught.value.what
    assert "looked for" in caught.value.what


def test_sizes_of_a_known_architecture_are_not_made_up_either() -> None:
    with pytest.raises(ModelProblem, match="number of layers"):
        model_of({"model_type": "llama", "architectures": ["LlamaForCausalLM"]})


REFUSED = [
    ({"model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 768, "num_hidden_layers": 12}, "an encoder"),
    ({"model_type": "modernbert", "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12}, "an encoder"),
    ({"architectures": ["RobertaForSequenceClassification"], "hidden_size": 768, "num_hidden_layers": 12}, "an encoder"),
    ({"model_type": "t5", "d_model": 512, "num_layers": 6, "num_heads": 8, "is_encoder_decoder": True}, "encoder-decoder"),
    ({"model_type": "whisper", "d_model": 512, "encoder_layers": 6}, "encoder-decoder"),
    ({"model_type": "bart", "d_model": 1024, "encoder_layers": 12}, "encoder-decoder"),
    ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"], "hidden_size": 4096}, "classifies"),
    ({"model_type": "llada", "hidden_size": 4096, "num_hidden_layers": 32}, "token by token"),
]


@pytest.mark.parametrize(("config", "reason"), REFUSED, ids=[str(case[0].get("model_type")) for case in REFUSED])
def test_models_that_do_not_decode_are_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelProblem) as caught:
        model_of(config)
    assert reason in caught.value.what


def test_head_size_is_taken_as_given_and_only_derived_when_it_is_not() -> None:
    assert model_of({**UNHEARD, "head_dim": 256}).head_dim == 256
    assert model_of(UNHEARD).head_dim == 128
    with pytest.raises(ModelProblem, match="multiple"):
        model_of({**UNHEARD, "num_attention_heads": 15, "num_key_value_heads": 5})


WINDOWS = [
    ({"sliding_window": 1024}, (1024, 24)),
    ({"sliding_window": None}, None),
    ({"sliding_window": 0}, None),
    ({"sliding_window": 1024, "use_sliding_window": False}, None),
    ({"sliding_window": 1024, "use_sliding_window": True, "max_window_layers": 20}, (1024, 4)),
    ({"sliding_window": 1024, "max_position_embeddings": 1024}, None),
    ({"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 12}, (1024, 12)),
    ({"sliding_window": 1024, "sliding_window_pattern": 6}, (1024, 20)),
    ({"sliding_window": 1024, "sliding_window_pattern": "LLLG"}, (1024, 18)),
    ({"attention_chunk_size": 8192, "no_rope_layers": [1, 1, 1, 0] * 6}, (8192, 18)),
    ({"layer_types": ["sliding_attention", "full_attention"] * 12}, None),
]


@pytest.mark.parametrize(("keys", "expected"), WINDOWS)
def test_windows(keys: dict[str, Any], expected: tuple[int, int] | None) -> None:
    window = model_of({**UNHEARD, **keys}).window
    assert (None if window is None else (window.size, window.layers)) == expected


MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1024}
EXPERT_LAYERS = [
    ({}, 24),
    ({"first_k_dense_replace": 3}, 21),
    ({"mlp_only_layers": [0, 5]}, 22),
    ({"decoder_sparse_step": 2}, 12),
    ({"moe_layer_freq": [0, *[1] * 23]}, 23),
    ({"interleave_moe_layer_step": 2}, 12),
    ({"expert_layer_period": 4, "expert_layer_offset": 1}, 6),
    ({"mlp_layer_types": ["dense"] * 4 + ["sparse"] * 20}, 20),
    ({"moe_layers_enum": "4,5,6,7"}, 4),
    ({"moe_layers": [1, 3, 5]}, 3),
    ({"moe_layer_start_index": 2, "moe_layer_end_index": 10}, 9),
]


@pytest.mark.parametrize(("keys", "layers"), EXPERT_LAYERS)
def test_which_layers_have_experts(keys: dict[str, Any], layers: int) -> None:
    model = model_of({**UNHEARD, **MOE, **keys})
    assert model.moe is not None
    assert (model.moe.layers, model.mlp_layers) == (layers, 24)
    dense = 3 * 2048 * 8192 * (24 - layers)
    assert model.params_by_part.get("mlp", 0) == dense
    assert model.params_by_part["experts"] == layers * 8 * 3 * 2048 * 1024


def test_layers_that_differ_one_by_one() -> None:
    config = {
        **UNHEARD,
        "per_layer_config": {"00": {"num_key_value_heads": 8}, "03": {"skip": ["attention"]}, "23": {"skip": ["mlp"]}},
    }
    model = model_of(config)
    assert (model.attention_layers, model.mlp_layers) == (23, 23)
    assert model.kv_elements == pytest.approx((2 * 8 * 128 + 22 * 2 * 4 * 128) / 23)


def test_layers_that_share_a_cache_are_counted_once() -> None:
    assert model_of({**UNHEARD, "num_kv_shared_layers": 10}).attention_layers == 14
    assert model_of({**UNHEARD, "use_cla": True, "cla_share_factor": 2}).attention_layers == 12


def test_multi_token_prediction_layers_under_each_of_their_names() -> None:
    for key in ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"):
        assert model_of({**UNHEARD, key: 2}).mtp_layers == 2


def test_a_mixer_word_that_is_not_known_is_counted_as_full_attention_and_named() -> None:
    model = model_of({**UNHEARD, "layer_types": ["full_attention", "holographic"] * 12})
    assert model.attention_layers == 24
    assert any("holographic" in note for note in model.notes)
