"""Checkpoints that are already quantized, by the records their makers write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors_files import LLAMA, write_model

from advisor.errors import ModelProblem
from advisor.profiler.model import read_model
from advisor.types import Quantized


def quantized_by(folder: Path, record: dict[str, Any]) -> tuple[Quantized | None, str]:
    model, _ = read_model(str(write_model(folder, {**LLAMA, "quantization_config": record})))
    return model.quantized, " ".join(model.notes)


def modelopt(folder: Path, record: object) -> tuple[Quantized | None, dict[str, str], str]:
    write_model(folder)
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": record}))
    model, sources = read_model(str(folder))
    return model.quantized, sources, " ".join(model.notes)


MODELOPT = [
    ("FP8", "fp8"), ("FP8_PER_CHANNEL_PER_TOKEN", "fp8_rowwise"), ("fp8_pb_wo", "fp8_block"), ("FP8_BLOCK_SCALES", "fp8_block"),
    ("W4A16_AWQ", "int4_awq"), ("W4A16_GPTQ", "int4_gptq"), ("W4A8_AWQ", "w4a8_awq"), ("NVFP4", "nvfp4"),
    ("NVFP4_AWQ", "nvfp4"),    ("W8A8_SQ_PER_CHANNEL", "int8_sq"), ("W8A16", "int8_wo"), ("W4A8_MXFP4_FP8", "mxfp4"),
]  # fmt: skip


@pytest.mark.parametrize(("algorithm", "weights"), MODELOPT)
def test_modelopt_algorithms(tmp_path: Path, algorithm: str, weights: str) -> None:
    found, sources, _ = modelopt(
        tmp_path, {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    )
    assert found is not None
    assert (found.weights, found.method, found.kv_cache, found.excluded) == (weights, "modelopt", "fp8", ("lm_head",))
    assert sources["model.quantized"] == "hf_quant_config.json"


@pytest.mark.parametrize(
    ("name", "kv_cache"), [("FP8", "fp8"), ("NVFP4", "nvfp4"), ("INT8", "int8"), (None, None), ("none", None), ("", None)]
)
def test_modelopt_cache_formats(tmp_path: Path, name: str | None, kv_cache: str | None) -> None:
    found, _, _ = modelopt(tmp_path, {"quant_algo": "FP8", "kv_cache_quant_algo": name})
    assert found is not None and found.kv_cache == kv_cache


def test_a_cache_format_alone_leaves_the_weights_at_16_bits(tmp_path: Path) -> None:
    found, _, _ = modelopt(tmp_path, {"quant_algo": None, "kv_cache_quant_algo": "FP8"})
    assert found is not None and (found.weights, found.kv_cache) == ("bf16", "fp8")
    assert modelopt(tmp_path, {"quant_algo": None, "kv_cache_quant_algo": None})[0] is None


def test_group_sizes_are_the_records_or_the_formats(tmp_path: Path) -> None:
    assert modelopt(tmp_path, {"quant_algo": "W4A16_AWQ", "group_size": 128})[0] == Quantized(
        weights="int4_awq", method="modelopt", group_size=128
    )
    found = modelopt(tmp_path, {"quant_algo": "NVFP4"})[0]
    assert found is not None and found.group_size == 16


def test_mixed_precision_is_named_by_most_of_its_weights(tmp_path: Path) -> None:
    layers = {f"model.layers.{layer}.self_attn.{name}_proj": {"quant_algo": "FP8"} for layer in range(9) for name in "qkvo"}
    layers |= {
        f"model.layers.{layer}.mlp.{name}_proj": {"quant_algo": "W4A16_NVFP4", "group_size": 16}
        for layer in range(9)
        for name in ("gate", "up", "down")
    }
    found, _, notes = modelopt(
        tmp_path, {"quant_algo": "MIXED_PRECISION", "kv_cache_quant_algo": "FP8", "quantized_layers": layers}
    )
    assert found is not None and (found.weights, found.group_size, found.kv_cache) == ("nvfp4", 16, "fp8")
    assert "FP8 in 36 modules" in notes and "W4A16_NVFP4 in 27 modules" in notes


def test_an_algorithm_nobody_knows_is_named(tmp_path: Path) -> None:
    found, _, notes = modelopt(tmp_path, {"quant_algo": "W2A2_MAGIC"})
    assert found is not None and (found.weights, found.method) == (None, "modelopt")
    assert "W2A2_MAGIC" in notes


def tensors(bits: int, kind: str, strategy: str, group: int | None = None, symmetric: bool = True) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "group_size": group, "symmetric": symmetric}


FP8_INPUTS, INT8_INPUTS = tensors(8, "float", "token"), tensors(8, "int", "token")
COMPRESSED = [
    (tensors(8, "float", "tensor"), tensors(8, "float", "tensor"), "fp8", None),
    (tensors(8, "float", "channel"), FP8_INPUTS, "fp8_rowwise", None),
    (tensors(8, "float", "block"), FP8_INPUTS, "fp8_block", None),
    (tensors(8, "int", "channel"), INT8_INPUTS, "int8_sq", None),
    (tensors(8, "int", "channel"), None, "int8_wo", None),
    (tensors(4, "int", "group", 128), None, "int4_gptq", 128),
    (tensors(4, "int", "group", 128, symmetric=False), None, "int4_awq", 128),
    (tensors(4, "int", "group", 128), FP8_INPUTS, "w4a8_awq", 128),
    (tensors(4, "float", "tensor_group", 16), tensors(4, "float", "tensor_group", 16), "nvfp4", 16),
    (tensors(4, "float", "group", 32), None, "mxfp4", 32),
    (tensors(2, "int", "group", 64), None, None, 64),
]


@pytest.mark.parametrize(("weights", "inputs", "expected", "group"), COMPRESSED)
def test_compressed_tensors(
    tmp_path: Path, weights: dict[str, Any], inputs: dict[str, Any] | None, expected: str | None, group: int | None
) -> None:
    record = {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
    }
    found, notes = quantized_by(tmp_path, record)
    assert found == Quantized(
        weights=expected, method="compressed-tensors", kv_cache="fp8", group_size=group, excluded=("lm_head",)
    )  # type: ignore[arg-type]
    assert (expected is None) == ("not known" in notes)


OTHERS = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, "fp8_block", "fp8"),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "fp8", "fp8"),
    ({"quant_method": "fp8", "weight_block_size": [1, 32]}, None, "fp8"),
    ({"quant_method": "fbgemm_fp8"}, "fp8_rowwise", "fbgemm_fp8"),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}, "int4_awq", "awq"),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}, "int4_gptq", "gptq"),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "int8_wo", "gptq"),
    ({"quant_method": "gptq", "bits": 3}, None, "gptq"),
    ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, "mxfp4", "mxfp4"),
    ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}, "int4_gptq", "auto-round"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, None, "bitsandbytes"),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "bitsandbytes"),
    ({"quant_method": "hqq"}, None, "hqq"),
    ({"quant_method": "torchao"}, None, "torchao"),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, "fp8", "modelopt"),
    ({"quant_algo": "FP8", "kv_cache_scheme": "FP8", "producer": {"name": "modelopt"}}, "fp8", "modelopt"),
    ({"quant_method": "modelopt"}, None, "modelopt"),
    ({"bits": 4}, None, "unknown"),
]


@pytest.mark.parametrize(("record", "weights", "method"), OTHERS)
def test_other_records(tmp_path: Path, record: dict[str, Any], weights: str | None, method: str) -> None:
    found, notes = quantized_by(tmp_path, record)
    assert found is not None
    assert (found.weights, found.method) == (weights, method)
    assert (weights is None) == bool(notes.count("headers give"))


def test_a_record_inside_a_wrappers_text_config_counts(tmp_path: Path) -> None:
    config = {"model_type": "kimi_k25", "text_config": {**LLAMA, "quantization_config": {"quant_method": "mxfp4"}}}
    model, _ = read_model(str(write_model(tmp_path, config)))
    assert model.quantized is not None and model.quantized.weights == "mxfp4"


@pytest.mark.parametrize(
    ("name", "record", "weights"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128, "desc_act": False}, "int4_gptq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}, "int4_awq"),
    ],
)
def test_records_in_files_of_their_own(tmp_path: Path, name: str, record: dict[str, Any], weights: str) -> None:
    write_model(tmp_path)
    (tmp_path / name).write_text(json.dumps(record))
    found = read_model(str(tmp_path))[0].quantized
    assert found is not None and (found.weights, found.group_size) == (weights, 128)


def test_tensorrt_llm_checkpoints_and_engines(tmp_path: Path) -> None:
    sizes = {key: value for key, value in LLAMA.items() if key not in ("architectures", "model_type")}
    record = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    checkpoint = {**sizes, "architecture": "LlamaForCausalLM", "quantization": record}
    for number, config in enumerate([checkpoint, {"version": "1.2.1", "pretrained_config": checkpoint, "build_config": {}}]):
        model, _ = read_model(str(write_model(tmp_path / str(number), config)))
        assert (model.architecture, model.known, model.layers) == ("LlamaForCausalLM", True, 2)
        assert model.quantized == Quantized(weights="fp8", method="modelopt", kv_cache="fp8", excluded=("lm_head",))
    plain = {**checkpoint, "quantization": {"quant_algo": None, "kv_cache_quant_algo": None}}
    assert read_model(str(write_model(tmp_path / "plain", plain)))[0].quantized is None


def test_mlx_is_named(tmp_path: Path) -> None:
    model, _ = read_model(str(write_model(tmp_path, {**LLAMA, "quantization": {"bits": 4, "group_size": 64}})))
    assert model.quantized is not None and (model.quantized.weights, model.quantized.method) == (None, "mlx")


def test_fp4_experts_beside_fp8(tmp_path: Path) -> None:
    config = {**LLAMA, "expert_dtype": "fp4", "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    model, _ = read_model(str(write_model(tmp_path, config)))
    assert model.quantized is not None and (model.quantized.weights, model.quantized.group_size) == ("mxfp4", 32)
    assert any("FP8" in note and "MXFP4" in note for note in model.notes)


def test_long_lists_of_exclusions_become_patterns(tmp_path: Path) -> None:
    listed = [f"model.layers.{layer}.{name}" for layer in range(100) for name in ("self_attn", "mlp.gate")] + ["lm_head"]
    found, _, _ = modelopt(tmp_path, {"quant_algo": "NVFP4", "exclude_modules": listed})
    assert found is not None
    assert found.excluded == ("model.layers.*.self_attn", "model.layers.*.mlp.gate", "lm_head")


@pytest.mark.parametrize("record", ["fp8", 8, [], True])
def test_a_record_that_is_no_object_is_one_clear_error(tmp_path: Path, record: object) -> None:
    config = {**LLAMA, "quantization_config": record}
    if record:
        with pytest.raises(ModelProblem, match="quantization_config"):
            read_model(str(write_model(tmp_path, config)))
        with pytest.raises(ModelProblem, match=r"hf_quant_config\.json"):
            modelopt(tmp_path / "m", record)
    else:
        assert read_model(str(write_model(tmp_path, config)))[0].quantized is None
