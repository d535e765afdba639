"""ModelOpt on random-weight Llamas: what each scheme costs in seconds and memory (accuracy is for trained.py)."""

from __future__ import annotations

import copy
import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rates import Row, attempt
from timing import CUDA, DEVICE, wait

CONFIGS = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
           "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 512},
}  # fmt: skip


def random_llama(size: str) -> Any:
    """A LlamaForCausalLM in bf16 with random weights, on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**CONFIGS[size], max_position_embeddings=8192, tie_word_embeddings=False)
    config.architectures = ["LlamaForCausalLM"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(DEVICE):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def schemes() -> dict[str, dict[str, Any]]:
    """Name -> ModelOpt configuration (deep copies: the presets are shared)."""
    import modelopt.torch.quantization as mtq

    presets = {
        "fp8": mtq.FP8_DEFAULT_CFG,
        "int8_sq": mtq.INT8_SMOOTHQUANT_CFG,
        "int4_awq": mtq.INT4_AWQ_CFG,
        "w4a8_awq": mtq.W4A8_AWQ_BETA_CFG,
        "nvfp4": mtq.NVFP4_DEFAULT_CFG,
        "nvfp4_awq": mtq.NVFP4_AWQ_LITE_CFG,
    }
    made = {name: copy.deepcopy(preset) for name, preset in presets.items()}
    made["fp8+fp8_kv"] = mtq.update_quant_cfg_with_kv_cache_quant(
        copy.deepcopy(mtq.FP8_DEFAULT_CFG), mtq.FP8_KV_CFG["quant_cfg"]
    )
    made["int4_rtn"] = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    return made


def measured(work: Callable[[], Any]) -> tuple[Any, Row]:
    """What `work` returns, its seconds and the peak of allocated device memory."""
    held = 0.0
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated() / 2**30
    wait()
    start = time.perf_counter()
    result = work()
    wait()
    row: Row = {"seconds": round(time.perf_counter() - start, 2)}
    if CUDA:
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        row["held_before_gib"] = round(held, 2)
    return result, row


def folder_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


def exported(model: Any) -> Row:
    """Seconds and megabytes of the unified checkpoint."""
    from modelopt.torch.export import export_hf_checkpoint

    folder = Path(tempfile.mkdtemp(prefix="export"))
    try:
        with torch.inference_mode():
            _, row = measured(lambda: export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder))
        return {"export_seconds": row["seconds"], "export_mb": folder_mb(folder)}
    finally:
        shutil.rmtree(folder)


def auto_quantize(model: Any, batches: list[torch.Tensor], bits: float, formats: list[Any], score: int) -> tuple[Any, Row]:
    """ModelOpt's gradient AutoQuantize; the achieved bits and how many layers took which format."""
    import modelopt.torch.quantization as mtq

    def search() -> Any:
        return mtq.auto_quantize(
            model,
            constraints={
                "effective_bits": bits,
                "cost_model": "weight",
                "cost": {"excluded_module_name_patterns": ["*lm_head*"]},
            },
            quantization_formats=formats,
            data_loader=[{"input_ids": batch, "labels": batch} for batch in batches],
            forward_step=lambda m, batch: m(**batch),
            loss_func=lambda output, batch: output.loss,
            num_calib_steps=len(batches),
            num_score_steps=score,
            disabled_layers=["*lm_head*"],
        )

    (model, state), row = measured(search)
    best = state["best"]
    counts: dict[str, int] = {}
    for recipe in best["recipe"].values():
        counts[str(recipe).split("(")[0][:40]] = counts.get(str(recipe).split("(")[0][:40], 0) + 1
    row["effective_bits"] = float(best["constraints"]["effective_bits"])
    row["choice"] = counts
    return model, row


def costs(tiny: bool) -> list[Row]:
    """Seconds and peak memory of each scheme on random Llamas, in units of one calibration pass too."""
    import modelopt.torch.quantization as mtq

    rows: list[Row] = []
    first = random_llama("tiny")

    def first_use() -> Row:
        batch = torch.randint(0, 512, (1, 64), device=DEVICE)
        _, row = measured(lambda: mtq.quantize(first, schemes()["fp8"], lambda m: m(batch)))
        return row

    attempt(rows, {"what": "first use of FP8, builds ModelOpt's CUDA extension"}, first_use)
    for size in ("tiny",) if tiny else ("1b", "8b"):
        base = random_llama(size)
        vocabulary = CONFIGS[size]["vocab_size"]
        shape = (2, 64) if tiny else (8, 512)
        batches = [torch.randint(0, vocabulary, shape, device=DEVICE) for _ in range(2 if tiny else 8)]

        def loop(model: Any, batches: list[torch.Tensor] = batches) -> None:
            with torch.no_grad():
                for batch in batches:
                    model(batch)

        loop(base)
        _, plain = measured(lambda base=base, loop=loop: loop(base))
        tokens = len(batches) * batches[0].numel()
        rows.append({"model": size, "scheme": "none, one pass", "calibration_tokens": tokens, **plain})
        for name, config in schemes().items():
            if size == "8b" and name in ("w4a8_awq", "nvfp4_awq", "int4_rtn"):
                continue

            def quantize(name: str = name, config: dict[str, Any] = config, size: str = size, base: Any = base,
                         loop: Callable[[Any], None] = loop) -> Row:  # fmt: skip
                model = copy.deepcopy(base)
                _, row = measured(lambda: mtq.quantize(model, config, loop))
                if size != "8b" or name in ("fp8", "int4_awq"):
                    row.update(exported(model))
                return row

            attempt(rows, {"model": size, "scheme": name, "calibration_tokens": tokens}, quantize)
            if CUDA:
                torch.cuda.empty_cache()

        def search(size: str = size, base: Any = base, batches: list[torch.Tensor] = batches) -> Row:
            formats = [mtq.INT4_AWQ_CFG if tiny else mtq.NVFP4_DEFAULT_CFG, mtq.FP8_DEFAULT_CFG]
            return auto_quantize(copy.deepcopy(base), batches, 6.0, formats, len(batches))[1]

        attempt(rows, {"model": size, "scheme": "auto_quantize nvfp4+fp8, 6 bits", "calibration_tokens": tokens}, search)
        del base
        if CUDA:
            torch.cuda.empty_cache()
    return rows
