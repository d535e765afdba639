"""Writes safetensors files by the format's own description, for tests: nothing of the program under test is used."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I8": 1, "I32": 4, "I64": 8}
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100,
    "tie_word_embeddings": False, "max_position_embeddings": 4096, "torch_dtype": "bfloat16",
}  # fmt: skip


def llama_tensors(dtype: str = "BF16", *, head: bool = True, layers: int = 2) -> dict[str, tuple[str, list[int]]]:
    """Names, types and shapes of the checkpoint that belongs to LLAMA."""
    found = {"model.embed_tokens.weight": (dtype, [100, 64])}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        attention = {"q_proj": [64, 64], "k_proj": [32, 64], "v_proj": [32, 64], "o_proj": [64, 64]}
        mlp = {"gate_proj": [128, 64], "up_proj": [128, 64], "down_proj": [64, 128]}
        found |= {f"{prefix}self_attn.{name}.weight": (dtype, shape) for name, shape in attention.items()}
        found |= {f"{prefix}mlp.{name}.weight": (dtype, shape) for name, shape in mlp.items()}
        found |= {f"{prefix}{name}.weight": (dtype, [64]) for name in ("input_layernorm", "post_attention_layernorm")}
    found["model.norm.weight"] = (dtype, [64])
    if head:
        found["lm_head.weight"] = (dtype, [100, 64])
    return found


def header_of(tensors: dict[str, tuple[str, list[int]]]) -> tuple[dict[str, Any], int]:
    """The header's object and the bytes of data it describes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = math.prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def write_safetensors(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    """A whole, valid file of zeros."""
    header, size = header_of(tensors)
    write_raw(path, json.dumps(header).encode(), size)


def write_raw(path: Path, header: bytes, size: int, length: int | None = None) -> None:
    """A file with this header and this many bytes of data; `length` lies about the header's."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + bytes(size))


def write_model(
    folder: Path, config: dict[str, Any] | None = None, tensors: dict[str, tuple[str, list[int]]] | None = None
) -> Path:
    """A folder with config.json and, when tensors are given, model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA if config is None else config))
    if tensors is not None:
        write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_shards(folder: Path, tensors: dict[str, tuple[str, list[int]]], count: int) -> list[str]:
    """The tensors over `count` files with their index; returns the files' names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    placed = {tensor: names[number % count] for number, tensor in enumerate(tensors)}
    for name in names:
        write_safetensors(folder / name, {tensor: tensors[tensor] for tensor in tensors if placed[tensor] == name})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": placed}))
    return names
