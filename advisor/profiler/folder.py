"""A local model folder: config.json, hf_quant_config.json and the headers of its safetensors files."""

from __future__ import annotations

from pathlib import Path

from advisor.errors import FileProblem
from advisor.profiler.architecture import describe
from advisor.profiler.checkpoint import read_quantized
from advisor.profiler.configuration import read_config
from advisor.profiler.known_models import sources_of
from advisor.types import Model


def read_folder(path: Path) -> tuple[Model, dict[str, str]]:
    """The model in a folder, or beside a config.json. Raises FileProblem, ModelProblem."""
    if path.is_file() and path.suffix != ".json":
        raise FileProblem(
            "a single file cannot be read as a model", where=str(path), hint="give the folder that holds config.json"
        )
    config_path = path / "config.json" if path.is_dir() else path
    folder = config_path.parent
    config = read_config(config_path)
    model = describe(config, name=folder.resolve().name or str(folder), where=str(config_path))
    quant_path = folder / "hf_quant_config.json"
    hf_quant = read_config(quant_path) if quant_path.is_file() else None
    quantized, notes = read_quantized(config, hf_quant, where=str(config_path))
    model = model.model_copy(update={"quantized": quantized, "folder": str(folder), "notes": (*model.notes, *notes)})
    return model, sources_of(model, "config.json")
