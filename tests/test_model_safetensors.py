"""Local folders: sizes from the headers of real safetensors files, and files that lie about themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors_files import LLAMA, header_of, llama_tensors, write_model, write_raw, write_safetensors, write_shards

from advisor.errors import AdvisorError, FileProblem
from advisor.profiler.model import read_model
from advisor.profiler.safetensors import read_header

PARAMS = 2 * 100 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64) + 64
"""of LLAMA, by hand"""


def test_bytes_parameters_and_dtype_come_from_the_header(tmp_path: Path) -> None:
    model, sources = read_model(str(write_model(tmp_path / "m", tensors=llama_tensors())))
    assert (model.params, model.weight_bytes, model.bytes_by_dtype) == (PARAMS, 2 * PARAMS, {"BF16": 2 * PARAMS})
    assert (model.tied_embeddings, model.dtype, model.folder) == (False, "bfloat16", str(tmp_path / "m"))
    assert sum(model.params_by_part.values()) == PARAMS
    assert sources["model.weight_bytes"] == sources["model.params"] == "safetensors"
    assert sources["model.layers"] == "config.json"
    assert model.notes == ()


def test_shards_add_up_to_the_same(tmp_path: Path) -> None:
    write_shards(write_model(tmp_path), llama_tensors(), 3)
    model, _ = read_model(str(tmp_path))
    assert (model.params, model.weight_bytes) == (PARAMS, 2 * PARAMS)


def test_the_path_of_config_json_is_as_good_as_its_folder(tmp_path: Path) -> None:
    write_model(tmp_path, tensors=llama_tensors())
    assert read_model(str(tmp_path / "config.json"))[0].params == PARAMS


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    names = write_shards(write_model(tmp_path), llama_tensors(), 3)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileProblem) as caught:
        read_model(str(tmp_path))
    assert names[1] in caught.value.what and "1 of 3" in caught.value.what


def test_shards_without_an_index_are_counted_by_their_names(tmp_path: Path) -> None:
    names = write_shards(write_model(tmp_path), llama_tensors(), 3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert read_model(str(tmp_path))[0].params == PARAMS
    (tmp_path / names[2]).unlink()
    with pytest.raises(FileProblem, match=names[2]):
        read_model(str(tmp_path))


def test_an_index_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "secret.safetensors", llama_tensors())
    folder = write_model(tmp_path / "m")
    for name in ("../secret.safetensors", str(tmp_path / "secret.safetensors"), "", ".."):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(FileProblem, match="as a shard"):
            read_model(str(folder))


def test_no_output_head_in_the_checkpoint_means_tied_embeddings(tmp_path: Path) -> None:
    model, sources = read_model(str(write_model(tmp_path, tensors=llama_tensors(head=False))))
    assert model.tied_embeddings
    assert "lm_head" not in model.params_by_part
    assert model.params == PARAMS - 6400
    assert sources["model.tied_embeddings"] == "safetensors"
    assert any("lm_head.weight" in note for note in model.notes)


def test_config_json_alone_gives_sizes_by_arithmetic_and_says_so(tmp_path: Path) -> None:
    model, sources = read_model(str(write_model(tmp_path)))
    assert (model.params, model.weight_bytes, model.bytes_by_dtype) == (PARAMS, None, {})
    assert sources["model.params"] == "config.json"
    assert "There are no safetensors files; sizes are computed from config.json." in model.notes


@pytest.mark.parametrize(("name", "kind"), [("pytorch_model.bin", "pickled"), ("model.pt", "pickled"), ("model.gguf", "GGUF")])
def test_pickled_and_gguf_weights_are_never_opened(tmp_path: Path, name: str, kind: str) -> None:
    folder = write_model(tmp_path)
    (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    (folder / name).chmod(0)
    model, _ = read_model(str(folder))
    assert model.params == PARAMS
    assert any(kind in note and "never opened" in note for note in model.notes)


def test_a_checkpoint_that_disagrees_with_its_config_is_believed_and_noted(tmp_path: Path) -> None:
    tensors = llama_tensors() | {"model.extra.weight": ("BF16", [500, 64])}
    model, _ = read_model(str(write_model(tmp_path, tensors=tensors)))
    assert model.params == PARAMS + 32000
    assert model.params_by_part["other"] == 32000
    assert any("adds up to" in note for note in model.notes)


def test_other_modalities_and_prediction_layers_are_kept_apart(tmp_path: Path) -> None:
    tensors = llama_tensors(layers=3) | {"vision_tower.encoder.weight": ("F16", [10, 10]), "mtp.fc.weight": ("BF16", [8, 8])}
    config = {**LLAMA, "num_nextn_predict_layers": 1}
    model, _ = read_model(str(write_model(tmp_path, config, tensors)))
    assert model.params == PARAMS
    assert model.params_by_part["vision"] == 100
    assert model.params_by_part["mtp"] == 64 + 2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128 + 2 * 64
    assert model.mtp_layers == 1
    everything = PARAMS + model.params_by_part["mtp"] + 100
    assert model.weight_bytes == 2 * everything


def test_prediction_layers_that_the_checkpoint_lacks_are_not_promised(tmp_path: Path) -> None:
    model, sources = read_model(str(write_model(tmp_path, {**LLAMA, "num_mtp_modules": 3}, llama_tensors())))
    assert model.mtp_layers == 0
    assert sources["model.mtp_layers"] == "safetensors"


def test_float32_files_are_seen_whatever_config_json_says(tmp_path: Path) -> None:
    model, sources = read_model(str(write_model(tmp_path, tensors=llama_tensors("F32"))))
    assert (model.dtype, model.weight_bytes, sources["model.dtype"]) == ("float32", 4 * PARAMS, "safetensors")


def fp8(tensors: dict[str, tuple[str, list[int]]], scale: str, shape: list[int]) -> dict[str, tuple[str, list[int]]]:
    found = {}
    for name, (dtype, size) in tensors.items():
        inner = "proj" in name
        found[name] = ("F8_E4M3" if inner else dtype, size)
        if inner:
            found[name.removesuffix("weight") + scale] = ("F32", shape)
    return found


def test_fp8_weights_are_counted_without_their_scales(tmp_path: Path) -> None:
    config = {**LLAMA, "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    model, _ = read_model(str(write_model(tmp_path, config, fp8(llama_tensors(), "weight_scale_inv", [1, 1]))))
    assert model.params == PARAMS
    assert model.quantized is not None and model.quantized.weights == "fp8_block"
    assert model.dtype == "bfloat16"
    assert model.bytes_by_dtype["F32"] == 4 * 14


def test_fp8_without_a_record_is_told_from_the_tensors(tmp_path: Path) -> None:
    tensors = fp8(llama_tensors(), "weight_scale_inv", [1, 1])
    model, sources = read_model(str(write_model(tmp_path, tensors=tensors)))
    assert model.quantized is not None
    assert (model.quantized.weights, model.quantized.method) == ("fp8_block", "safetensors dtypes")
    assert sources["model.quantized"] == "safetensors"


@pytest.mark.parametrize(
    ("record", "weight", "dtype", "columns", "scale"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 64}, "qweight", "I32", 8, "scales"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 64}, "qweight", "I32", 8, "scales"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "weight", "U8", 2, "weight_scale"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 64}, "weight", "U8", 2, "weight_scale"),
        ({"quant_method": "gptq", "bits": 8}, "qweight", "I32", 4, "scales"),
    ],
)
def test_packed_weights_are_counted_unpacked(
    tmp_path: Path, record: dict[str, Any], weight: str, dtype: str, columns: int, scale: str
) -> None:
    tensors = {}
    for name, (plain, shape) in llama_tensors().items():
        if "proj" in name:
            tensors[name.removesuffix("weight") + weight] = (dtype, [shape[0], shape[1] // columns])
            tensors[name.removesuffix("weight") + scale] = ("F16", [shape[0], shape[1] // 64])
        else:
            tensors[name] = (plain, shape)
    model, _ = read_model(str(write_model(tmp_path, {**LLAMA, "quantization_config": record}, tensors)))
    assert model.params == PARAMS
    assert not any("adds up to" in note for note in model.notes)


def entry(**values: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **values}


HOSTILE: dict[str, tuple[bytes, int, int | None]] = {
    "length 2**63": (b"{}", 0, 2**63),
    "length 2**64-1": (b"{}", 0, 2**64 - 1),
    "length beyond the limit": (b"{}", 0, 100_000_001),
    "length beyond the file": (b"{}", 0, 4096),
    "length 0": (b"", 0, 0),
    "not JSON": (b"{not json", 0, None),
    "not UTF-8": (b'{"\xff\xfe": 1}', 0, None),
    "a list": (b"[]", 0, None),
    "deep nesting": (b"[" * 50_000, 0, None),
    "a key twice": (json.dumps({"a": entry()})[:-1].encode() + b', "a": 1}', 8, None),
    "no offsets": (json.dumps({"a": {"dtype": "F32", "shape": [2]}}).encode(), 8, None),
    "entry is a number": (json.dumps({"a": 1}).encode(), 8, None),
    "negative offsets": (json.dumps({"a": entry(data_offsets=[-8, 0])}).encode(), 8, None),
    "offsets reversed": (json.dumps({"a": entry(data_offsets=[8, 0])}).encode(), 8, None),
    "offsets are floats": (json.dumps({"a": entry(data_offsets=[0.0, 8.0])}).encode(), 8, None),
    "offsets are true": (json.dumps({"a": entry(data_offsets=[False, True])}).encode(), 8, None),
    "huge offsets": (json.dumps({"a": entry(data_offsets=[0, 10**30])}).encode(), 8, None),
    "overlap": (json.dumps({"a": entry(), "b": entry(data_offsets=[4, 12])}).encode(), 12, None),
    "a hole": (json.dumps({"a": entry(), "b": entry(data_offsets=[16, 24])}).encode(), 24, None),
    "shape does not fit": (json.dumps({"a": entry(shape=[3])}).encode(), 8, None),
    "negative shape": (json.dumps({"a": entry(shape=[-1, -2])}).encode(), 8, None),
    "shape of strings": (json.dumps({"a": entry(shape=["2"])}).encode(), 8, None),
    "data cut off": (json.dumps({"a": entry()}).encode(), 7, None),
    "data too long": (json.dumps({"a": entry()}).encode(), 9, None),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_lies_about_itself_is_one_clear_error(tmp_path: Path, case: str) -> None:
    header, size, length = HOSTILE[case]
    folder = write_model(tmp_path)
    write_raw(folder / "model.safetensors", header, size, length)
    with pytest.raises(FileProblem) as caught:
        read_model(str(folder))
    assert "model.safetensors" in caught.value.where
    assert caught.value.hint


def test_a_header_may_be_padded_and_hold_metadata_and_types_of_the_future(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F2_NEW", "shape": [4], "data_offsets": [0, 1]},
        "b": entry(data_offsets=[1, 9]),
    }
    write_raw(tmp_path / "x.safetensors", json.dumps(header).encode() + b" " * 17, 9)
    assert [(tensor.name, tensor.size) for tensor in read_header(tmp_path / "x.safetensors")] == [("a", 1), ("b", 8)]


def test_only_the_header_is_read_however_long_the_file(tmp_path: Path) -> None:
    header, _ = header_of({"model.embed_tokens.weight": ("F32", [2**28, 64])})
    text = json.dumps(header).encode()
    path = tmp_path / "huge.safetensors"
    write_raw(path, text, 0)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + 2**36)
    (tensor,) = read_header(path)
    assert tensor.size == 2**36


@pytest.mark.parametrize(
    ("files", "what"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["model_index.json"], "diffusion"),
        (["model.Q4_K_M.gguf"], "GGUF"),
        (["params.json", "consolidated.00.pth"], "params.json"),
        ([], "no config.json"),
    ],
)
def test_folders_without_config_json_say_what_they_are(tmp_path: Path, files: list[str], what: str) -> None:
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileProblem) as caught:
        read_model(str(tmp_path))
    assert what in caught.value.what and caught.value.hint


def test_a_copy_of_a_known_model_keeps_its_drafts_and_siblings(tmp_path: Path) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
        "tie_word_embeddings": False, "max_position_embeddings": 131072,
    }  # fmt: skip
    model, sources = read_model(str(write_model(tmp_path / "Llama-3.3-70B-Instruct", config)))
    assert model.drafts and "meta-llama/Llama-3.1-8B-Instruct" in model.siblings
    assert sources["model.drafts"] == "profiles/models/meta-llama--Llama-3.3-70B-Instruct.yaml"
    other, _ = read_model(str(write_model(tmp_path / "x" / "Llama-3.3-70B-Instruct", {**config, "num_hidden_layers": 40})))
    assert other.drafts == () and other.siblings == ()


def test_a_file_that_is_not_a_configuration_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_safetensors(path, llama_tensors())
    with pytest.raises(AdvisorError, match="single file"):
        read_model(str(path))
