"""Rates of the kernels that vLLM serves with: CUTLASS FP8, Marlin and Machete INT4 GEMMs, FlashAttention 3 over a paged cache.

Needs vllm (0.24 was used) beside torch. Rows have the form of rates.py's, so that compare.py takes the faster of all kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from layers import LAYERS
from rates import PAST_L2, Row, attempt, normal
from timing import CUDA, DEVICE, Call, graph_us, relative_error

GROUP = 128
PAGE = 16
FP8 = torch.float8_e4m3fn


def _operations() -> Any:
    from vllm import _custom_ops

    return _custom_ops


def marlin_weight(k: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random 4-bit weight of [k, n] in Marlin's order, its group scales, and the bf16 weight that it stands for."""
    from vllm.model_executor.layers.quantization.utils import marlin_utils

    packed, scales, dense = _gptq_weight(k, n)
    empty = torch.empty(0, dtype=torch.int32, device=DEVICE)
    weight = _operations().gptq_marlin_repack(packed, empty, k, n, 4)
    return weight, marlin_utils.marlin_permute_scales(scales, k, n, GROUP), dense


def machete_weight(k: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same for Machete."""
    from vllm.scalar_type import scalar_types

    packed, scales, dense = _gptq_weight(k, n)
    column_major = packed.t().contiguous().t()
    made = _operations().machete_prepack_B(column_major, torch.bfloat16, scalar_types.uint4b8, torch.bfloat16)
    return made, scales, dense


def _gptq_weight(k: int, n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """int32 [k / 8, n] with row 8 i + j in bits 4 j, scales [k / 128, n], and the weight (v - 8) * scale."""
    values = torch.randint(0, 16, (k, n), device=DEVICE, dtype=torch.int32)
    packed = torch.zeros(k // 8, n, device=DEVICE, dtype=torch.int32)
    for j in range(8):
        packed |= values[j::8] << (4 * j)
    scales = ((torch.rand(k // GROUP, n, device=DEVICE) + 0.5) * k**-0.5 / 4.6).bfloat16()
    dense = ((values - 8).to(torch.bfloat16).view(k // GROUP, GROUP, n) * scales[:, None]).view(k, n)
    return packed, scales, dense


class Marlin:
    """Marlin calls over weights of one shape."""

    def __init__(self, k: int, n: int, sets: int) -> None:
        from vllm.model_executor.layers.quantization.utils import marlin_utils
        from vllm.scalar_type import scalar_types

        self.k, self.n, self.form = k, n, scalar_types.uint4b8
        self.workspace = marlin_utils.marlin_make_workspace_new(torch.device(DEVICE))
        self.empty = marlin_utils.marlin_make_empty_g_idx(torch.device(DEVICE))
        weight, scales, self.dense = marlin_weight(k, n)
        self.weights = [(weight, scales)] + [(weight.clone(), scales.clone()) for _ in range(sets - 1)]

    def __call__(self, a: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        from vllm.model_executor.layers.quantization.utils.marlin_utils import apply_gptq_marlin_linear

        made: torch.Tensor = apply_gptq_marlin_linear(
            input=a, weight=weight, weight_scale=scales, weight_zp=self.empty, g_idx=self.empty, g_idx_sort_indices=self.empty,
            workspace=self.workspace, wtype=self.form, output_size_per_partition=self.n, input_size_per_partition=self.k,
            is_k_full=True,
        )  # fmt: skip
        return made


class Machete:
    """Machete calls over weights of one shape."""

    def __init__(self, k: int, n: int, sets: int) -> None:
        from vllm.scalar_type import scalar_types

        self.form = scalar_types.uint4b8
        weight, scales, self.dense = machete_weight(k, n)
        self.weights = [(weight, scales)] + [(_like(weight), scales.clone()) for _ in range(sets - 1)]

    def __call__(self, a: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = _operations().machete_mm(
            a=a, b_q=weight, b_type=self.form, out_type=torch.bfloat16, b_group_scales=scales, b_group_size=GROUP
        )
        return made


def _like(weight: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    return torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device).copy_(weight)


def fp8_calls(m: int, k: int, n: int, sets: int) -> list[Call]:
    """CUTLASS FP8 with static scales of one tensor each."""
    operations = _operations()
    a = normal(m, k, dtype=FP8)
    one = torch.ones(1, device=DEVICE, dtype=torch.float32)
    weights = [normal(n, k, dtype=FP8).t() for _ in range(sets)]
    return [lambda w=w: operations.cutlass_scaled_mm(a, w, one, one, torch.bfloat16) for w in weights]


def library_gemm(tiny: bool) -> list[Row]:
    """Microseconds of each layer's GEMM over M: "fp8 cutlass", "int4 marlin", "int4 machete"; and their errors."""
    del tiny
    rows: list[Row] = []
    for name, kind in (("int4 marlin", Marlin), ("int4 machete", Machete)):

        def error(kind: Any = kind) -> Row:
            made = kind(1024, 512, 1)
            a = normal(33, 1024)
            return {"error_of": relative_error(made(a, *made.weights[0]), a.float() @ made.dense.float())}

        attempt(rows, {"check": name}, error)
    for model, layers in LAYERS.items():
        for layer, (k, n) in layers.items():
            for name, bits, top in (("fp8 cutlass", 8, 13), ("int4 marlin", 4, 13), ("int4 machete", 4, 13)):
                sets = max(2, math.ceil(PAST_L2 / (k * n * bits / 8)))
                kept: list[Any] = []
                for m in (2**e for e in range(top + 1)):

                    def measure(name: str = name, m: int = m, k: int = k, n: int = n, sets: int = sets,
                                kept: list[Any] = kept) -> Row:  # fmt: skip
                        if name == "fp8 cutlass":
                            calls = fp8_calls(m, k, n, sets)
                        else:
                            if not kept:
                                kept.append((Marlin if name == "int4 marlin" else Machete)(k, n, sets))
                            a, made = normal(m, k), kept[0]
                            calls = [lambda w=w: made(a, *w) for w in made.weights]
                        us = graph_us(calls, target_ms=8, repeats=5)
                        return {"us": round(us, 3), "tflops": round(2 * m * k * n / us / 1e6, 2)}

                    attempt(rows, {"model": model, "layer": layer, "m": m, "format": name}, measure)
                del kept
                if CUDA:
                    torch.cuda.empty_cache()
    return rows


def library_attention(tiny: bool) -> list[Row]:
    """FlashAttention 3: decode of one layer over batch and context, bf16 and fp8 cache; prefill of one prompt."""
    del tiny
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    rows: list[Row] = []
    tokens = 256 * 8192
    for cache in (torch.bfloat16, FP8):
        shape = (tokens // PAGE, PAGE, 8, 128)
        keys, values = (torch.empty(shape, device=DEVICE, dtype=cache) for _ in range(2))
        for part in (keys, values):
            for start in range(0, len(part), 8192):
                part[start : start + 8192] = torch.randn(part[start : start + 8192].shape, device=DEVICE).to(cache)
        order = torch.randperm(len(keys), device=DEVICE).int()
        for heads in (32, 64):
            for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256):
                for context in (512, 1024, 2048, 4096, 8192, 32768):
                    if batch * context > tokens or (heads == 64 and (batch not in (1, 16, 128) or context not in (1024, 8192))):
                        continue

                    def measure(batch: int = batch, context: int = context, heads: int = heads, cache: torch.dtype = cache,
                                keys: torch.Tensor = keys, values: torch.Tensor = values,
                                order: torch.Tensor = order) -> Row:  # fmt: skip
                        per = batch * context // PAGE
                        tables = [order[i * per : (i + 1) * per].view(batch, -1) for i in range(min(64, len(order) // per))]
                        q = torch.randn(batch, heads, 128, device=DEVICE).to(cache)
                        starts = torch.arange(batch + 1, device=DEVICE, dtype=torch.int32)
                        used = torch.full((batch,), context, device=DEVICE, dtype=torch.int32)
                        scale = torch.ones(batch, 8, device=DEVICE) if cache == FP8 else None
                        out = torch.empty(batch, heads, 128, device=DEVICE, dtype=torch.bfloat16)
                        calls = [
                            lambda t=t: flash_attn_varlen_func(
                                q=q, k=keys, v=values, max_seqlen_q=1, cu_seqlens_q=starts, max_seqlen_k=context,
                                seqused_k=used, block_table=t, causal=True, out=out, fa_version=3,
                                q_descale=scale, k_descale=scale, v_descale=scale,
                            )
                            for t in tables
                        ]  # fmt: skip
                        us = graph_us(calls, target_ms=6, repeats=5)
                        size = batch * context * 8 * 128 * 2 * keys.element_size()
                        return {"us": round(us, 2), "gb_s": round(size / us / 1e3, 1)}

                    row = {"kernel": "flash attention 3", "cache": str(cache)[6:], "heads": heads, "kv_heads": 8}
                    attempt(rows, {**row, "batch": batch, "context": context}, measure)
        del keys, values
        torch.cuda.empty_cache()
    for heads in (32, 64):
        for length in (512, 1024, 2048, 4096, 8192, 16384, 32768):

            def prefill(heads: int = heads, length: int = length) -> Row:
                q, k, v = (torch.randn(length, each, 128, device=DEVICE).bfloat16() for each in (heads, 8, 8))
                starts = torch.tensor([0, length], device=DEVICE, dtype=torch.int32)
                call = lambda: flash_attn_varlen_func(  # noqa: E731
                    q=q, k=k, v=v, max_seqlen_q=length, cu_seqlens_q=starts, max_seqlen_k=length, cu_seqlens_k=starts,
                    causal=True, fa_version=3,
                )  # fmt: skip
                us = graph_us([call], target_ms=8, repeats=5)
                return {"us": round(us, 2), "tflops": round(4 * heads * 128 * length**2 / 2 / us / 1e6, 1)}

            attempt(rows, {"phase": "prefill", "heads": heads, "kv_heads": 8, "length": length, "kernel": "flash attention 3"},
                    prefill)  # fmt: skip
    return rows
