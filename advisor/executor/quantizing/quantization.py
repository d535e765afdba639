"""ModelOpt, imported nowhere else: schemes to its configurations, calibration, the search for sensitive layers, export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advisor.errors import NotPossible
from advisor.types import KvFormat, LayerSensitivity, WeightFormat

PRESETS: dict[str, str] = {
    "fp8": "FP8_DEFAULT_CFG", "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG", "fp8_block": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG", "int8_wo": "INT8_WEIGHT_ONLY_CFG", "int4_awq": "INT4_AWQ_CFG",
    "int4_gptq": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG", "w4a8_awq": "W4A8_AWQ_BETA_CFG", "nvfp4": "NVFP4_DEFAULT_CFG",
}  # fmt: skip
"""weight format -> ModelOpt 0.47's preset. Static per-tensor INT8 (INT8_DEFAULT_CFG) is left out: it doubles the perplexity"""
GROUPED = ("int4_awq", "int4_gptq", "w4a8_awq")
GROUP_SIZES = (128, 64, 32)
BITS = dict.fromkeys(PRESETS, 8) | dict.fromkeys(("int4_awq", "int4_gptq", "w4a8_awq", "nvfp4"), 4)
ALWAYS_WIDE = ("*lm_head*", "*embed_tokens*")
"""a tied final projection would be untied by its export, and the file would grow"""
Batches = Sequence[tuple[int, ...]]
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized."""

    weights: WeightFormat
    kv_cache: KvFormat = "bf16"
    wide: tuple[str, ...] = ()
    """modules, or patterns of them, that stay at 16 bits, beside ALWAYS_WIDE"""
    wide_fp8: tuple[str, ...] = ()
    """those that stay at 8 bits in a 4-bit scheme"""
    alpha: float | None = None
    """SmoothQuant's strength"""
    group: int | None = None

    def plain(self) -> dict[str, Any]:
        """As plain data, for hashes and the journal."""
        return {
            "weights": self.weights, "kv_cache": self.kv_cache, "wide": sorted(self.wide),
            "wide_fp8": sorted(self.wide_fp8), "alpha": self.alpha, "group": self.group,
        }  # fmt: skip

    @property
    def name(self) -> str:
        """In words."""
        parts = [self.weights, *([f"kv {self.kv_cache}"] if self.kv_cache != "bf16" else [])]
        parts += [f"{len(self.wide)} modules in bf16"] if self.wide else []
        parts += [f"{len(self.wide_fp8)} modules in fp8"] if self.wide_fp8 else []
        parts += [f"alpha {self.alpha:g}"] if self.alpha is not None else []
        parts += [f"groups of {self.group}"] if self.group else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Sensitivities:
    """What the search over the layers found."""

    layers: tuple[LayerSensitivity, ...]
    """one for each group of layers that share a decision, in the model's order; score in the narrow format"""
    share: float
    """of the total score that the most sensitive tenth of the groups holds"""
    wide: tuple[str, ...]
    """modules that the search keeps at 16 bits"""
    wide_fp8: tuple[str, ...]
    """modules that it keeps in FP8"""
    bits: float
    """effective bits reached"""
    left: float
    """of the total score that remains when these stay wide"""


def refuse_impossible(weights: str, kv_cache: str, *, cuda: bool) -> None:
    """Raise NotPossible for what ModelOpt can't make, can't run here or can't export, before any work is done."""
    if kv_cache == "int8":
        raise NotPossible(
            "ModelOpt cannot export an INT8 KV cache",
            where="kv_cache int8",
            hint="its export takes FP8 and NVFP4 caches: take fp8",
        )
    if weights not in PRESETS and weights != "bf16":
        raise NotPossible(
            f"no {weights} checkpoint is made here",
            where=f"weights {weights}",
            hint=f"one of {', '.join(PRESETS)}, or a published one",
        )
    if "nvfp4" in (weights, kv_cache) and not cuda:
        raise NotPossible(
            "NVFP4 cannot be calibrated or measured on this machine: ModelOpt runs it on CUDA only",
            where="nvfp4 without a GPU",
            hint="run this on a machine with a GPU, or plan for fp8",
        )


def linear_inputs(model: Any) -> dict[str, int]:
    """Name -> input width of every linear layer that a scheme quantizes."""
    import torch

    found = {name: module.in_features for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: width for name, width in found.items() if "lm_head" not in name}


def group_size(inputs: dict[str, int], accepted: tuple[int, ...] | None = None) -> int:
    """The largest group of weights with one scale that divides every layer's input and that the engine has a kernel for.

    accepted: the engine's sizes, largest first; None: not known. Raises NotPossible when none does.
    """
    sizes = accepted or GROUP_SIZES
    for size in sizes:
        if inputs and all(width % size == 0 for width in inputs.values()):
            return size
    odd = {name: width for name, width in inputs.items() if width % sizes[-1]}
    first = next(iter(odd.items()), ("no linear layer", 0))
    raise NotPossible(
        f"no group size of {', '.join(map(str, sizes))} divides every layer's input"
        + (", and the engine has kernels for no other" if accepted else ""),
        where=f"{first[0]}: {first[1]} inputs",
        hint="ModelOpt's INT4 export has no partial groups: plan for an 8-bit format",
    )


def quantize(model: Any, scheme: Scheme, batches: Batches, progress: Progress = lambda done: None) -> None:
    """Calibrate and quantize a fresh 16-bit model in place (simulated: weights keep their width until they are exported)."""
    import modelopt.torch.quantization as mtq

    with _quiet():
        config = _config(scheme, {name for name, _ in model.named_modules()})
        mtq.quantize(model, config, _forward_loop(batches, progress))


def align(model: Any) -> None:
    """Give layers that read one input the scales that they share once exported (ModelOpt averages AWQ's, takes the largest of
    others, and rounds again): a training on other grids would be undone by it."""
    import torch
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    with _quiet(), torch.no_grad():
        requantize_resmooth_fused_llm_layers(model)


def settle(model: Any) -> None:
    """Give the weights of a quantized model the values that they round to, so that a cast to 16 bits moves none of them across
    a rounding: what a training moved in 32 bits would be lost by the cast otherwise. At most 127 steps of a grid fit: a step is
    then twice 16 bits' own error."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            quantizer = getattr(module, "weight_quantizer", None)
            if quantizer is None or not quantizer.is_enabled:
                continue
            first = quantizer[0] if isinstance(quantizer, torch.nn.Sequential) else quantizer
            module.weight.copy_(first(module.weight))


def search_layers(
    model: Any,
    scheme: Scheme,
    batches: Batches,
    *,
    bits: float,
    with_fp8: bool,
    checkpoint: Path,
    progress: Progress = lambda done: None,
) -> Sensitivities:
    """Score every group of layers by ModelOpt's AutoQuantize (gradients: the loss's second order) and choose who stays wide.

    bits: effective bits to stay under, over the layers that can be quantized. with_fp8: FP8 is on the menu beside 16 bits.
    The model is spent afterwards. The scores are
    kept in `checkpoint`, so that another budget costs no second scoring.
    """
    import modelopt.torch.quantization as mtq

    formats = [_config(Scheme(scheme.weights, alpha=scheme.alpha, group=scheme.group), set())]
    if with_fp8:
        formats.append(_config(Scheme("fp8"), set()))
    cost = {"cost_model": "weight", "cost": {"excluded_module_name_patterns": list(ALWAYS_WIDE)}}
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    inputs = _tensors(model, batches)
    done = 0

    def step(module: Any, batch: Any) -> Any:
        nonlocal done
        done += 1
        progress(done)
        return module(input_ids=batch, labels=batch)

    with _quiet():
        _, state = mtq.auto_quantize(
            model,
            constraints={"effective_bits": bits, **cost},
            quantization_formats=formats,
            data_loader=inputs,
            forward_step=step,
            loss_func=lambda output, batch: output.loss,
            disabled_layers=list(ALWAYS_WIDE),
            num_calib_steps=len(inputs),
            num_score_steps=len(inputs),
            checkpoint=str(checkpoint),
        )
    return _read_search(state, scheme.weights)


def export(model: Any, folder: Path) -> None:
    """Write a quantized model as a unified Hugging Face checkpoint. The model is spent: its weights are packed in place."""
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    with _quiet(), torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=str(folder))


def _config(scheme: Scheme, modules: set[str]) -> dict[str, Any]:
    """ModelOpt's configuration: the preset, deny-all first, group size, algorithm, wide modules, cache."""
    import modelopt.torch.quantization as mtq

    deny = {"quantizer_name": "*", "enable": False}
    if scheme.weights == "bf16":
        config: dict[str, Any] = {"quant_cfg": [deny], "algorithm": "max"}
    else:
        config = copy.deepcopy(dict(getattr(mtq, PRESETS[scheme.weights])))
        config["quant_cfg"] = [deny, *config["quant_cfg"]]
    if scheme.weights in GROUPED and scheme.group:
        for entry in config["quant_cfg"]:
            parts = entry.get("cfg")
            for part in parts if isinstance(parts, list) else [parts]:
                if isinstance(part, dict) and "block_sizes" in part:
                    part["block_sizes"][-1] = scheme.group
    if scheme.weights == "int8_sq" and scheme.alpha is not None:
        config["algorithm"] = {"method": "smoothquant", "alpha": scheme.alpha}
    elif scheme.weights == "int4_gptq":
        config["algorithm"] = {"method": "gptq", "block_size": scheme.group}
    elif scheme.weights in ("int4_awq", "w4a8_awq"):
        config["algorithm"] = {"method": "awq_lite", "alpha_step": 0.1}
    config["quant_cfg"] += _wide_entries(scheme, modules)
    if scheme.kv_cache != "bf16":
        cache = mtq.FP8_KV_CFG if scheme.kv_cache == "fp8" else mtq.NVFP4_KV_CFG
        config = mtq.update_quant_cfg_with_kv_cache_quant(config, copy.deepcopy(cache["quant_cfg"]))
    return config


def _wide_entries(scheme: Scheme, modules: set[str]) -> list[dict[str, Any]]:
    import modelopt.torch.quantization as mtq

    entries: list[dict[str, Any]] = []
    if scheme.wide_fp8:
        preset = copy.deepcopy(mtq.FP8_DEFAULT_CFG["quant_cfg"])
        cfg = next(one["cfg"] for one in preset if one["quantizer_name"] == "*weight_quantizer")
        for pattern in scheme.wide_fp8:
            stem = f"{pattern}." if pattern in modules else f"{pattern.rstrip('*')}*"
            entries += [
                {"quantizer_name": f"{stem}{kind}_quantizer", "cfg": copy.deepcopy(cfg)} for kind in ("weight", "input")
            ]
    return entries + [
        {"quantizer_name": _quantizers(pattern, modules), "enable": False} for pattern in (*ALWAYS_WIDE, *scheme.wide)
    ]


def _quantizers(pattern: str, modules: set[str]) -> str:
    """The pattern of a module's quantizers: its linear layers only, so that a cache's quantizers are left alone."""
    if pattern in modules:
        return f"{pattern}.*"
    return pattern if pattern.endswith("*") else f"{pattern}*"


def _forward_loop(batches: Batches, progress: Progress) -> Callable[[Any], None]:
    def loop(model: Any) -> None:
        import torch

        with torch.no_grad():
            for done, batch in enumerate(_tensors(model, batches), 1):
                model(input_ids=batch)
                progress(done)

    return loop


def _tensors(model: Any, batches: Batches) -> list[Any]:
    """One sequence each: no padding that the statistics would count."""
    import torch

    device = next(model.parameters()).device
    return [torch.tensor([batch], device=device) for batch in batches]


def _read_search(state: dict[str, Any], narrow: WeightFormat) -> Sensitivities:
    layers, remaining = [], 0.0
    wide: dict[bool, list[str]] = {True: [], False: []}
    for name, stats in state["candidate_stats"].items():
        modules = list(stats.get("module_names") or [])
        if not modules or any("lm_head" in module for module in modules):
            continue
        cheapest, widest = (pick(range(len(stats["costs"])), key=lambda index: stats["costs"][index]) for pick in (min, max))
        formats = [str(each) for each in stats["formats"]]
        chosen = str(state["best"]["recipe"][name])
        kept = chosen != formats[cheapest]
        remaining += float(stats["scores"][formats.index(chosen)])
        if kept:
            wide[chosen == formats[widest]] += modules
        others = ", ".join(module.rpartition(".")[2] for module in modules[1:])
        label = f"{modules[0]} (with {others})" if others else modules[0]
        layers.append(LayerSensitivity(layer=label, format=narrow, score=float(stats["scores"][cheapest]), kept=kept))
    scores = sorted((layer.score for layer in layers), reverse=True)
    total = sum(scores)
    return Sensitivities(
        layers=tuple(layers),
        share=sum(scores[: max(1, len(scores) // 10)]) / total if total else 0.0,
        wide=tuple(wide[True]),
        wide_fp8=tuple(wide[False]),
        bits=float(state["best"]["constraints"]["effective_bits"]),
        left=remaining / total if total else 0.0,
    )


class _quiet:  # noqa: N801 (reads as a function)
    """ModelOpt prints tables and progress bars to stdout, which is for data: send them away while it works."""

    def __enter__(self) -> None:
        import contextlib
        import io

        self._stack = contextlib.ExitStack()
        self._stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self._stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self._stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        logging.getLogger("modelopt").setLevel(logging.ERROR)

    def __exit__(self, *error: Any) -> None:
        self._stack.close()
