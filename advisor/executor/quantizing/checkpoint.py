"""The exported checkpoint: read back tensor by tensor into the model it will be, and held against what an engine accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from advisor.errors import FileProblem, ModelProblem
from advisor.executor.quantizing.formats import decode_weight, quantize_input, round_fp8
from advisor.library import PROFILES, read_text

SCALES = ("weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale")
CACHE_SCALES = ("k_scale", "v_scale")
# vllm-project/vllm docs/features/quantization/modelopt.md @ 0024350b: the ModelOpt formats that it lists.
VLLM_ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "MXFP8")
CACHE_ALGORITHMS = {"tensorrt-llm": ("FP8", "INT8", "NVFP4"), "vllm": ("FP8",)}
TIED_FAULT = (0, 24)
"""vLLM that ends with NotImplementedError where a checkpoint of ModelOpt's has tied embeddings (seen with 0.24.0;
vllm-project/vllm issue 45543, mended by pull 45544)"""
RENAMED = {"FP8_PB_WO": "FP8_BLOCK_SCALES"}
"""what TensorRT-LLM's loader makes of a word of ModelOpt's (its model_config.py)"""


def quantization_record(folder: Path) -> dict[str, Any]:
    """The `quantization` object of hf_quant_config.json. Raises FileProblem, ModelProblem."""
    path = folder / "hf_quant_config.json"
    try:
        found = json.loads(read_text(path, what="quantization record")).get("quantization")
    except (ValueError, AttributeError):
        found = None
    if not isinstance(found, dict):
        raise ModelProblem("hf_quant_config.json has no quantization object", where=str(path), hint="export it again")
    return found


def load_exported(model: Any, folder: Path) -> Any:
    """Put the exported files into a model of the same architecture, as the engine would compute with them.

    Every parameter is overwritten: it is made NaN first, so none of the model's own weights can stand in for one that the
    files lack. Weights are decoded, inputs and cache rounded as their scales say.
    Raises FileProblem: a damaged file; ModelProblem: a tensor that is missing, unknown or does not fit.
    """
    import torch

    record = quantization_record(folder)
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.fill_(float("nan"))
        left = set(parameters)
        cache: dict[str, dict[str, float]] = {}
        for name, tensors in read_modules(folder):
            cache_scales = {key: float(tensors.pop(key)) for key in CACHE_SCALES if key in tensors}
            if cache_scales:
                cache.setdefault(name.rpartition(".")[0], {}).update(cache_scales)
            for leaf, value in _decoded(name, tensors, record).items():
                full = f"{name}.{leaf}" if name else leaf
                if full not in parameters:
                    raise ModelProblem(
                        "the exported files have a tensor that the model has not", where=full, hint="export it again"
                    )
                if parameters[full].shape != value.shape:
                    raise ModelProblem(
                        f"a decoded tensor is {tuple(value.shape)}, the model's {tuple(parameters[full].shape)}",
                        where=full,
                        hint="export it again",
                    )
                parameters[full].copy_(value)
                left.discard(full)
            change = quantize_input(_algorithm(name, record), tensors) if "weight_scale" in tensors else None
            if change is not None:
                modules[name].register_forward_pre_hook(lambda _module, given, change=change: (change(given[0]), *given[1:]))
    missing = sorted(name for name in left if bool(parameters[name].isnan().any()))
    if missing:
        raise ModelProblem(
            f"{len(missing)} tensors of the model are not in the exported files", where=missing[0], hint="export it again"
        )
    if cache:
        from advisor.executor.quantizing.causal_model import round_cache

        round_cache(model, {name: (pair["k_scale"], pair["v_scale"]) for name, pair in cache.items()}, round_fp8)
    return model


def read_modules(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(module, its tensors by their last name) of all safetensors files. Raises FileProblem, with the file at fault."""
    from safetensors import safe_open

    places = tensor_places(folder)
    by_module: dict[str, list[str]] = {}
    for key in places:
        by_module.setdefault(key.rpartition(".")[0], []).append(key)
    opened: dict[Path, Any] = {}
    for module, keys in sorted(by_module.items()):
        with file_faults(folder):
            for key in keys:
                path = places[key]
                if path not in opened:
                    opened[path] = safe_open(str(path), framework="pt").__enter__()
            tensors = {key.rpartition(".")[2]: opened[places[key]].get_tensor(key) for key in keys}
        yield module, tensors


def tensor_places(folder: Path) -> dict[str, Path]:
    """Tensor -> the file it is in; the index, where there is one, must agree with the files. Raises FileProblem."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with file_faults(path), safe_open(str(path), framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    if not found:
        raise FileProblem("there are no safetensors files here", where=str(folder), hint="export it again")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        listed = json.loads(read_text(index, what="index of tensors")).get("weight_map", {})
        lacking = sorted(set(listed) - set(found))
        if lacking:
            raise FileProblem(f"{len(lacking)} tensors of the index are in no file", where=lacking[0], hint="export it again")
    return found


def check_engine(folder: Path, engine: str, version: str) -> str:
    """Why this engine version does not take the checkpoint by its record, or "" when it does, as far as is known.

    Looks at the words of the formats, the sizes of the groups, and whether the modules that the record leaves out are those
    that the files leave at 16 bits.
    """
    record = quantization_record(folder)
    if fault := tied_fault(engine, version, _tied(folder)):
        return fault
    accepted = accepted_algorithms(engine, version)
    named = {str(record.get("quant_algo") or "")}
    if named == {"MIXED_PRECISION"} and engine != "vllm":
        named = {str(layer.get("quant_algo")) for layer in (record.get("quantized_layers") or {}).values()}
    named = {RENAMED.get(name.upper(), name.upper()) if engine == "tensorrt-llm" else name.upper() for name in named if name}
    unknown = sorted(name for name in named if name not in accepted)
    if unknown:
        return f"{engine} {version} does not list the format {', '.join(unknown)} (it lists {', '.join(accepted)})"
    layers = (record.get("quantized_layers") or {}).values() if record.get("quantized_layers") else (record,)
    for layer in layers:
        word, size = str(layer.get("quant_algo") or ""), layer.get("group_size")
        sizes = accepted_groups(engine, version, word)
        if sizes is not None and size is not None and size not in sizes:
            return f"{engine} {version} has no kernel for {word} in groups of {size} (it has {', '.join(map(str, sizes))})"
    cache = str(record.get("kv_cache_quant_algo") or "").upper()
    if cache and cache not in CACHE_ALGORITHMS.get(engine, ()):
        return f"{engine} {version} does not list the cache format {cache}"
    return _misnamed(folder, record) if any(folder.glob("*.safetensors")) else ""


def tied_fault(engine: str, version: str, tied: bool) -> str:
    """Why this engine version cannot load a quantized checkpoint with tied embeddings, or ""."""
    if not tied or engine != "vllm" or tuple(int(part) for part in re.findall(r"\d+", version)[:2]) != TIED_FAULT:
        return ""
    return f"vLLM {version} does not load ModelOpt's checkpoints of models with tied embeddings (vllm-project/vllm issue 45543)"


def _tied(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config.get("tie_word_embeddings"))


def accepted_algorithms(engine: str, version: str) -> tuple[str, ...]:
    """The quant_algo words that an engine version lists; TensorRT-LLM's from profiles/engines."""
    return VLLM_ALGORITHMS if engine == "vllm" else tuple(_engine_profile(engine, version)["quant_algos"])


def accepted_groups(engine: str, version: str, word: str) -> tuple[int, ...] | None:
    """The group sizes that an engine version has kernels for, largest first; None: not known, or the format has none."""
    found = None if engine == "vllm" else _engine_profile(engine, version).get("group_sizes", {}).get(word.upper())
    return None if found is None else tuple(found)


def _engine_profile(engine: str, version: str) -> dict[str, Any]:
    minor = ".".join(version.split(".")[:2])
    paths = [PROFILES / "engines" / f"{engine}-{each}.json" for each in (version, minor)]
    path = next((path for path in paths if path.exists()), PROFILES / "engines" / "tensorrt-llm-1.2.1.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _misnamed(folder: Path, record: dict[str, Any]) -> str:
    """Why an engine would look for scales that are not there, or not look for some that are; "" when the record is right."""
    places = tensor_places(folder)
    modules = {name.rpartition(".")[0] for name in places if name.endswith(".weight") and "norm" not in name}
    scaled = {name.rpartition(".")[0] for name in places if name.endswith(".weight_scale")}
    mixed = str(record.get("quant_algo") or "").upper() in ("MIXED_PRECISION", "")
    named = set(record.get("quantized_layers") or ()) if mixed else {
        name for name in modules if not any(fnmatch(name, pattern) for pattern in record.get("exclude_modules") or ())
    }  # fmt: skip
    wrong = sorted(name for name in modules & (named ^ scaled) if "embed" not in name)
    return f"the record of the formats is wrong about {len(wrong)} modules, for one {wrong[0]}" if wrong else ""


def size_mb(folder: Path) -> float:
    """Size of the files that an engine loads, MB (10**6 bytes)."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6


@contextmanager
def file_faults(path: Path) -> Iterator[None]:
    """Turn the safetensors library's errors, and the system's, into FileProblem."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:
        raise FileProblem(f"a safetensors file is damaged: {error}", where=str(path), hint="export it again") from None


def _decoded(module: str, tensors: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in tensors.items() if key not in SCALES}
    if "weight_scale" in tensors:
        plain["weight"] = decode_weight(_algorithm(module, record), tensors, where=module)
    elif "weight" in plain and plain["weight"].element_size() < 2:
        raise ModelProblem("a packed weight has no scale", where=module, hint="export it again")
    return plain


def _algorithm(module: str, record: dict[str, Any]) -> str:
    whole = str(record.get("quant_algo") or "")
    if whole.upper() != "MIXED_PRECISION":
        return whole
    layer = (record.get("quantized_layers") or {}).get(module)
    if not isinstance(layer, dict):
        raise ModelProblem("a quantized layer is not in the record of the formats", where=module, hint="export it again")
    return str(layer.get("quant_algo"))
