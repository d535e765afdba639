"""How a checkpoint is already quantized: hf_quant_config.json (ModelOpt) or config.json's quantization_config.

The mapping of ModelOpt's words is TensorRT-LLM's own (its model_config.py), see profiles/support for what runs where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from advisor.errors import ModelProblem
from advisor.profiler.configuration import Configuration, language_model
from advisor.types import KvFormat, Quantized, WeightFormat

MODELOPT: dict[str, WeightFormat] = {
    "FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8_rowwise", "FP8_BLOCK_SCALES": "fp8_block", "FP8_PB_WO": "fp8_block",
    "W4A16_AWQ": "int4_awq", "W4A16_GPTQ": "int4_gptq", "W4A16": "int4_gptq", "W4A8_AWQ": "w4a8_awq", "W4A8_GPTQ": "w4a8_awq",
    "INT4_AWQ": "int4_awq", "NVFP4": "nvfp4", "NVFP4_AWQ": "nvfp4", "NVFP4_SVD": "nvfp4", "W4A16_NVFP4": "nvfp4",
    "W8A8_SQ_PER_CHANNEL": "int8_sq", "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN": "int8_sq",
    "W8A16": "int8_wo", "INT8_WO": "int8_wo",
    "W4A16_MXFP4": "mxfp4", "W4A8_MXFP4_FP8": "mxfp4", "W4A8_MXFP4_MXFP8": "mxfp4", "MXFP4": "mxfp4",
}  # fmt: skip
"""quant_algo -> weight format; the words ModelOpt writes and TensorRT-LLM reads (support_matrix, section 4)"""
GROUP_SIZES = {"nvfp4": 16, "mxfp4": 32}
"""fixed by the format"""
KV_CACHE: dict[str, KvFormat] = {
    "FP8": "fp8", "FP8_E4M3": "fp8", "FP8_AFFINE": "fp8", "INT8": "int8", "NVFP4": "nvfp4", "NVFP4_AFFINE": "nvfp4",
}  # fmt: skip
LONGEST_LIST = 64
"""entries of an exclusion list that are kept"""
MLP_WEIGHT = 4
"""how much larger an MLP's matrices are taken to be than the others, to say which format most weights have"""
PATTERN_WEIGHT = 32
"""experts that a pattern over all of them is taken to stand for"""
METHODS_WITHOUT_BITS = "weights are counted at the size the safetensors headers give, or at 16 bits without headers"


def read_quantized(
    config: Mapping[str, Any], hf_quant_config: Mapping[str, Any] | None, *, where: str
) -> tuple[Quantized | None, list[str]]:
    """The checkpoint's quantization (None for 16 bits) and what could not be told. Raises ModelProblem for nonsense."""
    if hf_quant_config is not None:
        record = hf_quant_config.get("quantization", hf_quant_config)
        if not isinstance(record, Mapping):
            raise ModelProblem("hf_quant_config.json: quantization is not an object", where=where, hint="export it again")
        return _modelopt(Configuration(record, where=where))
    inner = language_model(config)[0]
    record = config.get("quantization_config") or inner.get("quantization_config") or inner.get("quantization")
    if not record:
        return None, []
    if not isinstance(record, Mapping):
        raise ModelProblem("quantization_config is not an object", where=where, hint="fetch config.json again")
    read = Configuration(record, where=where)
    method = (read.text("quant_method") or "unknown").lower()
    if "quant_algo" in record:
        return _modelopt(read)
    if method == "unknown" and "quantization" in inner and read.has("bits") and read.has("group_size"):
        method = "mlx"
    reader = next((reader for prefix, reader in _READERS.items() if method.startswith(prefix)), None)
    if reader is None:
        return _other(read, method)
    return _with_fp4_experts(reader(read)) if method == "fp8" and config.get("expert_dtype") == "fp4" else reader(read)


Reading = tuple["Quantized | None", list[str]]


def _modelopt(record: Configuration) -> Reading:
    inner = record.find("quantization")[1]
    if isinstance(inner, Mapping):
        record = Configuration(inner, where=record.where)
    if record.text("quant_algo") is None and record.find("config_groups")[0]:
        found, said = _compressed(record)
        return (found.model_copy(update={"method": "modelopt"}) if found else None), said
    algorithm = (record.text("quant_algo") or "").upper()
    notes: list[str] = []
    group = _group_size(record)
    if algorithm == "MIXED_PRECISION":
        algorithm, group, notes = _most_used(record, group)
    weights = MODELOPT.get(algorithm)
    kv_cache = _kv_cache(record, notes)
    if not algorithm:
        if record.find("quant_algo", "kv_cache_quant_algo")[0] == "" and record.text("quant_method"):
            notes.append(f"The ModelOpt record names no algorithm; {METHODS_WITHOUT_BITS}.")
        elif kv_cache is None:
            return None, []
        else:
            weights = "bf16"
    elif weights is None:
        notes.append(f"ModelOpt's {algorithm[:40]} is not known here; {METHODS_WITHOUT_BITS}.")
    group = group or GROUP_SIZES.get(weights or "")
    return Quantized(weights=weights, method="modelopt", kv_cache=kv_cache, group_size=group, excluded=_excluded(record)), notes


def _most_used(record: Configuration, group: int | None) -> tuple[str, int | None, list[str]]:
    """MIXED_PRECISION: the algorithm of most weights, and a note with the others."""
    layers = record.find("quantized_layers")[1]
    entries = [entry for entry in layers.values() if isinstance(entry, Mapping)] if isinstance(layers, Mapping) else []
    if not entries:
        return "MIXED_PRECISION", group, []
    counts = Counter(str(entry.get("quant_algo", "")).upper() for entry in entries)
    weighed: Counter[str] = Counter()
    for name, entry in layers.items():
        if isinstance(entry, Mapping):
            weighed[str(entry.get("quant_algo", "")).upper()] += _weight(name)
    algorithm = weighed.most_common(1)[0][0]
    first = next(entry for entry in entries if str(entry.get("quant_algo", "")).upper() == algorithm)
    listed = ", ".join(f"{name} in {count} modules" for name, count in counts.most_common())
    return algorithm, _group_size(Configuration(first, where=record.where)) or group, [f"Mixed precision: {listed}."]


def _weight(module: str) -> int:
    """How many times an attention projection's weights a module (or a pattern with * for many) is taken to have."""
    if re.search(r"experts\.\*", module):
        return MLP_WEIGHT * PATTERN_WEIGHT
    return MLP_WEIGHT if re.search("mlp|ffn|expert|moe", module) else 1


def _fp8(record: Configuration) -> Reading:
    block = record.items("weight_block_size")
    weights: WeightFormat | None = "fp8"
    notes: list[str] = []
    if block is not None:
        sizes = [record.checked("weight_block_size", size) for size in block]
        weights = "fp8_block" if sizes == [128, 128] else None
        if weights is None:
            notes.append(f"FP8 with blocks of {sizes} is not known here; {METHODS_WITHOUT_BITS}.")
    return Quantized(weights=weights, method="fp8", kv_cache=_kv_cache(record, notes), excluded=_excluded(record)), notes


def _with_fp4_experts(found: Reading) -> Reading:
    """DeepSeek-V4 names its experts' format apart (expert_dtype): they are most of the weights."""
    quantized, notes = found
    if quantized is None:
        return found
    note = "The experts are in FP4 with a scale per 32 weights, the other linear layers in FP8; counted as MXFP4."
    return quantized.model_copy(update={"weights": "mxfp4", "group_size": 32}), [*notes, note]


def _fbgemm(record: Configuration) -> Reading:
    return Quantized(weights="fp8_rowwise", method="fbgemm_fp8", excluded=_excluded(record)), []


def _awq(record: Configuration) -> Reading:
    return _integer(record, "awq", "int4_awq")


def _gptq(record: Configuration) -> Reading:
    return _integer(record, "gptq", "int4_gptq")


def _auto_round(record: Configuration) -> Reading:
    return _integer(record, "auto-round", "int4_awq" if "awq" in (record.text("packing_format") or "") else "int4_gptq")


def _integer(record: Configuration, method: str, four: WeightFormat) -> Reading:
    """Weight-only integers: 4 bits under the method's own name, 8 bits as plain INT8."""
    bits = record.number("bits", "w_bit", "wbits")
    weights: WeightFormat | None = four if (bits or 4) == 4 else "int8_wo" if bits == 8 else None
    notes = [] if weights else [f"{method} with {bits} bits is not known here; {METHODS_WITHOUT_BITS}."]
    found = Quantized(weights=weights, method=method, group_size=_group_size(record), excluded=_excluded(record))
    return found, notes


def _mxfp4(record: Configuration) -> Reading:
    return Quantized(weights="mxfp4", method="mxfp4", group_size=32, excluded=_excluded(record)), []


def _compressed(record: Configuration) -> Reading:
    groups = record.find("config_groups")[1]
    notes: list[str] = []
    formats: list[tuple[WeightFormat | None, int | None, str]] = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        if isinstance(group, Mapping):
            formats.append(_scheme(Configuration(group, where=record.where)))
    if record.find("sparsity_config.format")[1] not in (None, "dense"):
        notes.append("The checkpoint is also sparse; sparsity is not modelled.")
    weights, size, label = formats[0] if formats else (None, None, "no groups")
    size = size or GROUP_SIZES.get(weights or "")
    if len({entry[0] for entry in formats}) > 1:
        notes.append(f"Mixed precision: {', '.join(entry[2] for entry in formats)}; counted as the first.")
    if weights is None:
        notes.append(f"compressed-tensors with {label} is not known here; {METHODS_WITHOUT_BITS}.")
    found = Quantized(
        weights=weights,
        method="compressed-tensors",
        kv_cache=_kv_cache(record, notes),
        group_size=size,
        excluded=_excluded(record),
    )
    return found, notes


def _scheme(group: Configuration) -> tuple[WeightFormat | None, int | None, str]:
    """One group of compressed-tensors: bits, type and granularity of weights and of their inputs."""
    bits, kind = group.number("weights.num_bits"), group.text("weights.type") or "int"
    strategy, size = group.text("weights.strategy") or "tensor", group.number("weights.group_size", low=-1)
    inputs, inputs_kind = group.number("input_activations.num_bits"), group.text("input_activations.type")
    label = f"{kind}{bits} weights per {strategy}, " + (f"{inputs_kind}{inputs} inputs" if inputs else "16-bit inputs")
    found: WeightFormat | None = None
    if kind == "float" and bits == 8:
        found = {"tensor": "fp8", "channel": "fp8_rowwise", "block": "fp8_block"}.get(strategy)  # type: ignore[assignment]
    elif kind == "float" and bits == 4:
        found = "nvfp4" if size == 16 else "mxfp4" if size == 32 else None
    elif kind == "int" and bits == 8:
        found = "int8_sq" if inputs == 8 else "int8_wo"
    elif kind == "int" and bits == 4:
        symmetric = group.find("weights.symmetric")[1] is not False
        found = "w4a8_awq" if inputs == 8 else "int4_gptq" if symmetric else "int4_awq"
    return found, size if size and size > 0 else None, label


def _other(record: Configuration, method: str) -> Reading:
    """A method without a format of ours: named, its weights unknown."""
    if method == "bitsandbytes":
        bits = "4 bits" if record.find("load_in_4bit", "_load_in_4bit")[1] is True else "8 bits"
        note = f"bitsandbytes ({bits}) is not a format planned for here; {METHODS_WITHOUT_BITS}."
    else:
        note = f"The checkpoint is quantized with {method[:40]}, which is not known here; {METHODS_WITHOUT_BITS}."
    return Quantized(weights=None, method=method[:40], excluded=_excluded(record)), [note]


def _kv_cache(record: Configuration, notes: list[str]) -> KvFormat | None:
    """The cache format a record asks for; None leaves the cache at 16 bits."""
    name = record.text("kv_cache_quant_algo", "kv_cache_quant_method", "kv_cache_scheme")
    if name is not None and name.lower() not in ("", "none", "null"):
        found = KV_CACHE.get(name.upper())
        if found is None:
            notes.append(f"The KV-cache format {name[:40]} is not known here; taken as 16 bits.")
        return found
    bits, kind = record.number("kv_cache_scheme.num_bits"), record.text("kv_cache_scheme.type")
    if bits == 8:
        return "int8" if kind == "int" else "fp8"
    return "nvfp4" if bits == 4 and kind == "float" else None


def _group_size(record: Configuration) -> int | None:
    size = record.number("group_size", "q_group_size", low=-1)
    return size if size and size > 0 else None


def _excluded(record: Configuration) -> tuple[str, ...]:
    """Module patterns left alone; lists that spell out many layers are shortened to one pattern each."""
    listed = (
        record.items("exclude_modules", "ignore", "modules_to_not_convert", "ignored_layers", "modules_to_not_quantize") or []
    )
    names = [entry for entry in listed if isinstance(entry, str)]
    if len(names) > LONGEST_LIST:
        patterns = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names)
        names = list(patterns)
    return tuple(dict.fromkeys(name[:200] for name in names[:LONGEST_LIST]))


_READERS: dict[str, Callable[[Configuration], Reading]] = {
    "modelopt": _modelopt, "fp8": _fp8, "fbgemm": _fbgemm, "awq": _awq, "gptq": _gptq, "auto-round": _auto_round,
    "auto_round": _auto_round, "compressed": _compressed, "mxfp4": _mxfp4,
}  # fmt: skip
"""by the beginning of quant_method"""
