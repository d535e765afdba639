"""config.json of garbage: whatever it holds, the answer is a Model or one clear error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors_files import LLAMA, write_model

from advisor.errors import AdvisorError, FileProblem, ModelProblem, UnknownName
from advisor.library import profile, profile_names
from advisor.profiler.architecture import describe
from advisor.profiler.folder import combine
from advisor.profiler.model import read_model
from advisor.types import Model

SIZES = ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "intermediate_size"]
NONSENSE: list[Any] = [0, -1, 10**9, 10**400, 0.5, float("nan"), float("inf"), "32", "", True, [], {}, [32], {"a": 1}]


@pytest.mark.parametrize("key", SIZES)
@pytest.mark.parametrize("value", NONSENSE, ids=[str(value)[:12] for value in NONSENSE])
def test_a_size_that_makes_no_sense_is_named(key: str, value: Any) -> None:
    if key in ("vocab_size", "intermediate_size", "hidden_size") and value in ([32],):
        value = ["32"]
    with pytest.raises(ModelProblem) as caught:
        describe({**LLAMA, key: value}, name="x", where="config.json")
    assert caught.value.where == "config.json" and caught.value.hint
    assert key in caught.value.what or "heads" in caught.value.what or "hidden size" in caught.value.what
    assert "\n" not in caught.value.what and len(caught.value.what) < 300


FILES: dict[str, bytes] = {
    "empty": b"",
    "not JSON": b"layers: 32",
    "cut off": b'{"model_type": "llama", "hidden_',
    "a list": b"[1, 2, 3]",
    "a number": b"42",
    "null": b"null",
    "NUL bytes": b'{"model_type"\x00: "llama"}',
    "binary": bytes(range(256)) * 8,
    "UTF-16": json.dumps(LLAMA).encode("utf-16"),
    "deep": b'{"a":' * 100_000,
    "digits": b'{"hidden_size": ' + b"9" * 5000 + b"}",
    "only braces": b"{}",
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_a_configuration(tmp_path: Path, case: str) -> None:
    (tmp_path / "config.json").write_bytes(FILES[case])
    with pytest.raises((FileProblem, ModelProblem)) as caught:
        read_model(str(tmp_path))
    assert "config.json" in caught.value.where and caught.value.hint


def test_a_directory_a_pipe_and_a_giant_named_config_json(tmp_path: Path) -> None:
    (tmp_path / "a" / "config.json").mkdir(parents=True)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "config.json")
    (tmp_path / "c").mkdir()
    with (tmp_path / "c" / "config.json").open("wb") as file:
        file.truncate(4 * 2**30)
    for folder, what in (("a", "regular file"), ("b", "regular file"), ("c", "4,096 MiB")):
        with pytest.raises(FileProblem, match=what):
            read_model(str(tmp_path / folder))


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert read_model(str(tmp_path))[0].layers == 2


def test_numbers_written_as_whole_floats_are_read() -> None:
    assert describe({**LLAMA, "num_hidden_layers": 2.0}, name="x", where="x").layers == 2


LISTS: list[dict[str, Any]] = [
    {"layer_types": ["full_attention"]},
    {"layer_types": [1, 2]},
    {"hybrid_override_pattern": "M"},
    {"block_configs": [1, 2]},
    {"block_configs": [{"attention": {"n_heads_in_group": "x"}}, {}]},
    {"block_configs": [{"attention": 1, "ffn": 2}, {"ffn": {"ffn_mult": -1}}]},
    {"per_layer_config": {"7": {}}},
    {"per_layer_config": {"x": {}}},
    {"per_layer_config": {"0": 1}},
    {"moe_layer_freq": ["x", "y"], "num_experts": 4, "num_experts_per_tok": 2},
    {"num_experts": 4, "num_experts_per_tok": 8},
    {"num_experts": 4},
    {"num_key_value_heads": 8},
    {"sliding_window": "wide"},
    {"kv_lora_rank": -5},
    {"kv_lora_rank": 512, "head_dim": 16},
    {"quantization_config": {"quant_method": "awq", "bits": "four"}},
    {"quantization_config": {"quant_method": "fp8", "weight_block_size": ["a"]}},
    {"tie_word_embeddings": "yes"},
]


@pytest.mark.parametrize("keys", LISTS, ids=[json.dumps(keys)[:40] for keys in LISTS])
def test_lists_and_records_that_make_no_sense_are_refused_or_harmless(keys: dict[str, Any]) -> None:
    try:
        model, _ = combine({**LLAMA, **keys}, None, lambda: None, name="x", where="config.json")
    except AdvisorError as error:
        assert error.where and error.hint
    else:
        assert model.layers == 2 and (model.params or 0) > 0


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~nobody/model", "nowhere/", "a/b/c", "x.gguf", "..\\model"])
def test_what_looks_like_a_path_and_is_not_there_is_not_looked_up_elsewhere(name: str) -> None:
    with pytest.raises(FileProblem, match="no such folder"):
        read_model(name)


@pytest.mark.parametrize("name", ["", "   ", "a\0b", "x" * 5000, "größer", "no spaces here!", "a" * 300])
def test_names_that_are_no_names(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        read_model(name)
    assert len(str(caught.value)) < 600


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(NONSENSE),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=8,
)


def known_keys() -> list[str]:
    keys: set[str] = set()
    for name in profile_names("architectures"):
        facts = profile("architectures", name)
        keys |= {*facts.get("defaults", {}), *facts.get("implied", {})}
    for name in profile_names("models"):
        keys |= {*profile("models", name).get("config", {})}
    return sorted({*keys, "text_config", "quantization_config", "per_layer_config", "block_configs", "architectures"})


KEYS = known_keys()
TYPES = [name for name in profile_names("architectures") if profile("architectures", name).get("kind") == "decoder"]


def check(config: dict[str, Any], record: object = None) -> None:
    """A Model whose numbers make sense, or an error of this program."""
    try:
        hf_quant = record if isinstance(record, dict) else None
        model, sources = combine(config, hf_quant, lambda: None, name="fuzz", where="config.json")
    except AdvisorError as error:
        assert error.what and error.hint and "\n" not in error.what
        return
    assert Model.model_validate_json(model.model_dump_json()) == model
    assert model.heads >= model.kv_heads >= 1 and model.head_dim >= 1
    assert 0 <= model.attention_layers <= 2 * model.layers
    assert model.window is None or 0 < model.window.layers <= model.attention_layers
    assert model.params == sum(model.params_by_part.values()) and model.params > 0
    assert 0 < (model.active_params or 0) <= model.params
    assert sources["model.layers"] == "config.json"


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.dictionaries(st.sampled_from(KEYS), JUNK, max_size=8), st.sampled_from(TYPES), st.booleans())
def test_any_values_under_known_keys(changes: dict[str, Any], model_type: str, nested: bool) -> None:
    base = {**LLAMA, "model_type": model_type}
    check({"text_config": {**base, **changes}} if nested else {**base, **changes})


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(max_size=16) | st.sampled_from(KEYS), JUNK, max_size=12))
def test_any_object_at_all(config: dict[str, Any]) -> None:
    check(config)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [profile("models", name)["config"] for name in profile_names("models") if "config" in profile("models", name)]
    ),
    st.data(),
)
def test_real_configurations_with_a_value_replaced(config: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(config)))
    number = st.integers(-(2**40), 2**40) | st.integers(0, 300)
    check({**config, key: data.draw(number | JUNK)})


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["quant_method", "quant_algo", "bits", "group_size", "config_groups", "kv_cache_scheme", "ignore",
                         "weight_block_size", "quantized_layers", "kv_cache_quant_algo", "exclude_modules", "quantization"]),
        JUNK | st.sampled_from(["fp8", "awq", "gptq", "modelopt", "compressed-tensors", "MIXED_PRECISION", "NVFP4"]),
    )
)  # fmt: skip
def test_any_quantization_record(record: dict[str, Any]) -> None:
    check({**LLAMA, "quantization_config": record})
    check(LLAMA, record)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200))
def test_any_bytes_as_files(tmp_path: Path, data: bytes) -> None:
    write_model(tmp_path)
    for name in ("model.safetensors", "model.safetensors.index.json", "hf_quant_config.json", "config.json"):
        (tmp_path / name).write_bytes(data)
        try:
            read_model(str(tmp_path))
        except AdvisorError as error:
            assert error.what and error.hint
        (tmp_path / name).unlink()
        write_model(tmp_path)
