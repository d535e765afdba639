"""A local model folder: config.json, hf_quant_config.json and the headers of its safetensors files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem
from advisor.profiler.architecture import describe
from advisor.profiler.checkpoint import read_quantized
from advisor.profiler.configuration import read_config
from advisor.profiler.known_models import relatives, sources_of
from advisor.profiler.safetensors import Tensor, read_tensors
from advisor.profiler.weights import quantized_by_dtype, take_census, with_weights
from advisor.types import Model

NEVER_OPENED = {
    ".bin": "pickled PyTorch files", ".pt": "pickled PyTorch files", ".pth": "pickled PyTorch files", ".gguf": "GGUF files",
    ".h5": "TensorFlow files", ".msgpack": "Flax files", ".onnx": "ONNX files", ".ckpt": "pickled checkpoints",
}  # fmt: skip


def read_folder(path: Path) -> tuple[Model, dict[str, str]]:
    """The model in a folder, or beside a config.json. Raises FileProblem, ModelProblem."""
    if not path.is_dir() and path.suffix.lower() != ".json":
        raise FileProblem(
            "a single file cannot be read as a model", where=str(path), hint="give the folder that holds config.json"
        )
    folder = path if path.is_dir() else path.parent
    config_path = folder / "config.json" if path.is_dir() else path
    if not config_path.exists():
        raise _no_config(folder)
    config = read_config(config_path)
    quant_path = folder / "hf_quant_config.json"
    hf_quant = read_config(quant_path) if quant_path.is_file() else None
    config = _with_older_record(config, folder)
    name = folder.resolve().name or str(folder)
    model, sources = combine(config, hf_quant, lambda: read_tensors(folder), name=name, where=str(config_path))
    notes = [] if model.weight_bytes is not None else [_without_headers(folder)]
    model = model.model_copy(update={"folder": str(folder), "notes": (*model.notes, *notes)})
    return model, sources | {"model.folder": "flag"}


def _with_older_record(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """AutoGPTQ and AutoAWQ once wrote their record into a file of its own instead of config.json. Raises FileProblem."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        path = folder / name
        if "quantization_config" not in config and path.is_file():
            return {**config, "quantization_config": {"quant_method": method, **read_config(path)}}
    return config


def combine(
    config: Mapping[str, Any],
    hf_quant_config: Mapping[str, Any] | None,
    tensors: Callable[[], Iterable[Tensor] | None],
    *,
    name: str,
    where: str,
    source: str = "config.json",
) -> tuple[Model, dict[str, str]]:
    """The model of a configuration, its quantization record and its tensors (None: no headers to be had).

    The sources of its facts are `source`, "hf_quant_config.json", "safetensors" and profiles/models.
    """
    model = describe(config, name=name, where=where)
    quantized, notes = read_quantized(config, hf_quant_config, where=where)
    model = model.model_copy(update={"quantized": quantized, "notes": (*model.notes, *notes)})
    found = tensors()
    changed: set[str] = set()
    if found is not None:
        census = take_census(found, model)
        if not census.has_head and not model.tied_embeddings:
            tied = describe({**config, "tie_word_embeddings": True}, name=name, where=where)
            note = "The checkpoint has no output head of its own (lm_head.weight): it shares the embedding's weights."
            model = tied.model_copy(update={"quantized": quantized, "notes": (*tied.notes, *notes, note)})
            changed.add("tied_embeddings")
        if quantized is None and (shown := quantized_by_dtype(census)) is not None:
            model = model.model_copy(update={"quantized": shown})
            changed.add("quantized")
        model, counted = with_weights(model, census)
        changed |= counted
    sources = sources_of(model, source) | {f"model.{field}": "safetensors" for field in changed}
    if quantized is not None and hf_quant_config is not None:
        sources["model.quantized"] = "hf_quant_config.json"
    return relatives(model, sources)


def _no_config(folder: Path) -> FileProblem:
    if (folder / "adapter_config.json").exists():
        return FileProblem(
            "this folder holds an adapter (LoRA), not a model",
            where=str(folder),
            hint="merge it into its base model, or give that one",
        )
    if (folder / "model_index.json").exists():
        return FileProblem(
            "this folder holds a diffusion pipeline, not a language model", where=str(folder), hint="give a language model"
        )
    if any(folder.glob("*.gguf")):
        return FileProblem(
            "this folder has GGUF files and no config.json; GGUF is not read",
            where=str(folder),
            hint="give the original model's folder",
        )
    if (folder / "params.json").exists():
        return FileProblem(
            "this folder has params.json and no config.json (the original format)",
            where=str(folder),
            hint="give the Hugging Face format",
        )
    return FileProblem(
        "there is no config.json in this folder", where=str(folder), hint="give the folder that holds config.json"
    )


def _without_headers(folder: Path) -> str:
    kinds = sorted({NEVER_OPENED[path.suffix] for path in folder.glob("*") if path.suffix in NEVER_OPENED})
    if kinds:
        return f"The weights are {' and '.join(kinds)}, which are never opened; sizes are computed from config.json."
    return "There are no safetensors files; sizes are computed from config.json."
