"""Rates of single operations: memory, GEMM by format, decode and prefill attention, launches.

Shapes are the linear layers of Llama-3 8B and 70B, (K, N); M is the number of tokens of a step.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import own_kernels
import torch
import torch.nn.functional as functional
from layers import LAYERS
from timing import CUDA, DEVICE, Call, graph_us, plain_us

TINY = {"tiny": {"qkv": (256, 384), "down": (512, 256)}}
PAST_L2 = 512 * 2**20
"""Bytes over which inputs rotate, several times the L2 cache."""
Row = dict[str, Any]


def attempt(rows: list[Row], row: Row, measure: Callable[[], Row]) -> None:
    """Adds the row with what was measured, or with the reason why it could not be."""
    try:
        rows.append({**row, **measure()})
    except Exception as error:
        rows.append({**row, "error": f"{type(error).__name__}: {error}"[:300]})
        if CUDA:
            torch.cuda.empty_cache()
    if partial := os.environ.get("MEASURE_PARTIAL"):
        Path(partial).write_text(json.dumps(rows))  # what there is if the section is stopped


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Random data on the device; 8-bit types through bfloat16."""
    x = torch.empty(shape, device=DEVICE, dtype=torch.bfloat16).normal_()
    return x if dtype == torch.bfloat16 else x.to(dtype)


def bandwidth(tiny: bool) -> list[Row]:
    """Device memory by copy, read and write; host link by pinned copies. GB/s, bytes read plus written."""
    rows: list[Row] = []
    for mib in (1, 4) if tiny else (64, 256, 1024, 4096, 16384):
        elements = mib * 2**20 // 2
        source, target = normal(elements), torch.empty(elements, device=DEVICE, dtype=torch.bfloat16)
        sums = torch.empty(max(1, elements // 65536), device=DEVICE)
        operations: dict[str, tuple[Call, int]] = {
            "copy": (lambda s=source, t=target: t.copy_(s), 2),
            "write": (lambda t=target: t.fill_(1.0), 1),
            "read (Triton sum)": (lambda s=source, o=sums: own_kernels.read_all(s, o), 1),
        }
        for name, (call, passes) in operations.items():

            def measure(call: Call = call, passes: int = passes, size: int = mib) -> Row:
                us = graph_us([call], target_ms=30)
                return {"us": us, "gb_s": size * 2**20 * passes / us / 1e3}

            attempt(rows, {"operation": name, "mib": mib}, measure)
    if CUDA:
        host = torch.empty(2**29, dtype=torch.bfloat16, pin_memory=True)
        device = torch.empty(2**29, device=DEVICE, dtype=torch.bfloat16)
        for name, call in (
            ("host to device", lambda: device.copy_(host, non_blocking=True)),
            ("device to host", lambda: host.copy_(device, non_blocking=True)),
        ):

            def measure(call: Call = call) -> Row:
                us = plain_us([call])
                return {"us": us, "gb_s": 2**30 / us / 1e3}

            attempt(rows, {"operation": name, "mib": 1024}, measure)
    return rows


def dense_calls(form: str, m: int, k: int, n: int, sets: int) -> list[Call]:
    """GEMM calls over `sets` weight matrices: bf16 (torch.mm), fp8 (torch._scaled_mm, scales of one tensor)."""
    if form == "bf16":
        a = normal(m, k)
        weights = [normal(n, k).t() for _ in range(sets)]
        return [lambda a=a, w=w: torch.mm(a, w) for w in weights]
    a = normal(m, k, dtype=torch.float8_e4m3fn)
    one = torch.ones((), device=DEVICE)
    weights = [normal(n, k, dtype=torch.float8_e4m3fn).t() for _ in range(sets)]
    return [
        lambda a=a, w=w: torch._scaled_mm(a, w, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
        for w in weights
    ]


class Int4:
    """W4A16 calls over weights of one shape, with the best tiling per number of rows found once."""

    def __init__(self, k: int, n: int, sets: int) -> None:
        self.k, self.n = k, n
        self.weights = [
            (
                torch.randint(0, 256, (k // own_kernels.GROUP, n, 64), device=DEVICE, dtype=torch.uint8),
                ((torch.rand(k // own_kernels.GROUP, n, device=DEVICE) + 0.5) * k**-0.5 / 4.6).to(own_kernels.HALF),
            )
            for _ in range(sets)
        ]
        self.tilings: dict[int, own_kernels.Tiling] = {}

    def tiling(self, m: int) -> own_kernels.Tiling:
        """The fastest tiling, tried once per step of m (16, 32, 64, 128, 256, 1024)."""
        bucket = next((step for step in (16, 32, 64, 128, 256, 1024) if m <= step), 1024)
        if bucket not in self.tilings:
            a = normal(bucket, self.k).to(own_kernels.HALF)
            times = {}
            for tiling in own_kernels.int4_tilings(bucket):
                if self.n % tiling[0] or tiling[2] > self.k // own_kernels.GROUP:
                    continue
                try:
                    calls = [lambda a=a, w=w, t=tiling: own_kernels.int4_gemm(a, *w, t) for w in self.weights]
                    times[tiling] = graph_us(calls, target_ms=2, repeats=3)
                except Exception:
                    continue
            self.tilings[bucket] = min(times, key=lambda tiling: times[tiling])
        return self.tilings[bucket]

    def calls(self, m: int) -> list[Call]:
        a = normal(m, self.k).to(own_kernels.HALF)
        tiling = self.tiling(m)
        return [lambda a=a, w=w: own_kernels.int4_gemm(a, *w, tiling) for w in self.weights]


def tinygemm_calls(m: int, k: int, n: int, sets: int) -> list[Call]:
    """PyTorch's own W4A16 kernel (tinygemm), groups of 128."""
    a = normal(m, k)
    weights = []
    for _ in range(sets):
        raw = torch.randint(0, 256, (n, k // 2), device=DEVICE, dtype=torch.uint8)
        packed = torch.ops.aten._convert_weight_to_int4pack(raw, 8)
        weights.append((packed, (torch.rand(k // 128, n, 2, device=DEVICE) * 0.01).bfloat16()))
    return [lambda a=a, w=w: torch.ops.aten._weight_int4pack_mm(a, w[0], 128, w[1]) for w in weights]


def gemm(tiny: bool) -> list[Row]:
    """Microseconds of each layer's GEMM over M, by format."""
    rows: list[Row] = []
    tokens = (1, 4) if tiny else tuple(2**e for e in range(14))
    for model, layers in (TINY if tiny else LAYERS).items():
        for layer, (k, n) in layers.items():

            def add(form: str, m: int, calls: Callable[[], list[Call]], model: str = model, layer: str = layer,
                    k: int = k, n: int = n) -> None:  # fmt: skip
                def measure() -> Row:
                    us = graph_us(calls(), repeats=5)
                    return {"us": round(us, 3), "tflops": round(2 * m * k * n / us / 1e6, 2)}

                attempt(rows, {"model": model, "layer": layer, "m": m, "format": form}, measure)

            for form, bits in (("bf16", 16), ("fp8", 8)):
                sets = 2 if tiny else max(2, math.ceil(PAST_L2 / (k * n * bits / 8)))
                for m in tokens:
                    add(form, m, lambda form=form, m=m, k=k, n=n, sets=sets: dense_calls(form, m, k, n, sets))
            sets = 2 if tiny else max(2, math.ceil(PAST_L2 / (k * n / 2)))
            int4 = Int4(k, n, sets)
            for m in tokens:
                add("int4 triton", m, lambda m=m, int4=int4: int4.calls(m))
            rows.append({"model": model, "layer": layer, "tilings": {str(m): list(t) for m, t in int4.tilings.items()}})
            for m in tokens:
                if m <= 256:
                    add("int4 tinygemm", m, lambda m=m, k=k, n=n, sets=sets: tinygemm_calls(m, k, n, sets))
            if CUDA:
                torch.cuda.empty_cache()
    return rows


class Pool:
    """A paged KV cache of random data, and page tables that rotate through it."""

    def __init__(self, tokens: int, kv_heads: int, dtype: torch.dtype) -> None:
        self.pages = tokens // own_kernels.PAGE
        self.kv_heads = kv_heads
        shape = (self.pages, kv_heads, own_kernels.PAGE, 128)
        self.keys, self.values = (torch.empty(shape, device=DEVICE, dtype=dtype) for _ in range(2))
        for cache in (self.keys, self.values):
            for start in range(0, self.pages, 4096):
                cache[start : start + 4096] = torch.randn(cache[start : start + 4096].shape, device=DEVICE).to(dtype)

    def tables(self, batch: int, context: int, at_most: int = 256) -> list[torch.Tensor]:
        """Disjoint page tables [batch, pages of the context], as many as the pool holds."""
        per = batch * context // own_kernels.PAGE
        order = torch.randperm(self.pages, device=DEVICE).int()
        number = max(1, min(at_most, self.pages // per))
        return [order[i * per : (i + 1) * per].view(batch, -1).contiguous() for i in range(number)]


def query(batch: int, kv_heads: int, rows: int, cache: torch.dtype) -> torch.Tensor:
    """Random queries in the type that the cache is computed in."""
    kind = torch.float16 if cache == torch.float8_e4m3fn else own_kernels.HALF
    return torch.randn(batch, kv_heads, rows, 128, device=DEVICE).to(kind)


def attention(tiny: bool) -> list[Row]:
    """Decode attention of one layer over batch and context: our paged kernel (bf16 and fp8 cache), PyTorch's SDPA."""
    rows: list[Row] = []
    batches: Iterable[int] = (1, 2) if tiny else (1, 2, 4, 8, 16, 32, 64, 128, 256)
    contexts = (256,) if tiny else (512, 1024, 2048, 4096, 8192, 16384, 32768)
    for cache in (own_kernels.HALF, torch.float8_e4m3fn):
        pool = Pool(4096 if tiny else 256 * 32768, 8, cache)
        for heads in (32, 64):
            for batch in batches:
                for context in contexts:
                    if heads == 64 and not tiny and (batch not in (1, 16, 128) or context not in (1024, 8192)):
                        continue

                    def measure(batch: int = batch, context: int = context, heads: int = heads, pool: Pool = pool,
                                cache: torch.dtype = cache) -> Row:  # fmt: skip
                        tables = pool.tables(batch, context)
                        q = query(batch, 8, heads // 8, cache)
                        best: tuple[float, int] | None = None
                        guess = own_kernels.splits_for(batch, 8, context // own_kernels.PAGE)
                        for splits in sorted({guess, max(1, guess // 2), min(guess * 2, context // own_kernels.PAGE)}):
                            calls = [
                                lambda t=t, splits=splits: own_kernels.decode_attention(
                                    q, pool.keys, pool.values, t, splits=splits
                                )
                                for t in tables
                            ]
                            us = graph_us(calls, target_ms=6, repeats=5)
                            best = min(best, (us, splits)) if best else (us, splits)
                        us, splits = best or (math.nan, 0)
                        size = batch * context * 8 * 128 * 2 * pool.keys.element_size()
                        return {"us": round(us, 2), "splits": splits, "gb_s": round(size / us / 1e3, 1)}

                    row = {"kernel": "triton paged split", "cache": str(cache)[6:], "heads": heads, "kv_heads": 8}
                    attempt(rows, {**row, "batch": batch, "context": context}, measure)
        del pool
        if CUDA:
            torch.cuda.empty_cache()
    for batch in batches:
        for context in contexts:
            if batch * context > 64 * 8192:
                continue

            def library(batch: int = batch, context: int = context) -> Row:
                sets = max(1, min(16, PAST_L2 // (batch * context * 4096)))
                caches = [[normal(batch, 8, context, 128) for _ in range(2)] for _ in range(sets)]
                q = normal(batch, 32, 1, 128)
                us = graph_us(
                    [lambda c=c: functional.scaled_dot_product_attention(q, *c, enable_gqa=True) for c in caches], target_ms=6
                )
                return {"us": round(us, 2), "gb_s": round(batch * context * 4096 / us / 1e3, 1)}

            row = {"kernel": "torch sdpa", "cache": "bfloat16", "heads": 32, "kv_heads": 8}
            attempt(rows, {**row, "batch": batch, "context": context}, library)
    return rows


def prefill_attention(tiny: bool) -> list[Row]:
    """Causal attention over one whole prompt, PyTorch's SDPA in bf16."""
    rows: list[Row] = []
    for heads in (32, 64):
        for length in (64,) if tiny else (512, 1024, 2048, 4096, 8192, 16384, 32768):

            def measure(heads: int = heads, length: int = length) -> Row:
                q, k, v = normal(1, heads, length, 128), normal(1, 8, length, 128), normal(1, 8, length, 128)
                us = graph_us(
                    [lambda: functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)], target_ms=8
                )
                return {"us": round(us, 2), "tflops": round(4 * heads * 128 * length**2 / 2 / us / 1e6, 1)}

            attempt(rows, {"heads": heads, "kv_heads": 8, "length": length, "kernel": "torch sdpa"}, measure)
    return rows


def elementwise(tiny: bool) -> list[Row]:
    """The fused kernels of a step (residual and norm, silu and product), with bf16 and fp8 output."""
    rows: list[Row] = []
    for width, wide in ((256, 512),) if tiny else ((4096, 14336), (8192, 28672)):
        for m in (1, 4) if tiny else (1, 16, 128, 1024, 8192):
            for fp8 in (False, True):

                def norm(m: int = m, width: int = width, fp8: bool = fp8) -> Row:
                    x, residual, gain = normal(m, width), normal(m, width), normal(width)
                    return {"us": round(graph_us([lambda: own_kernels.add_norm(x, residual, gain, fp8=fp8)]), 2)}

                def silu(m: int = m, wide: int = wide, fp8: bool = fp8) -> Row:
                    x = normal(m, 2 * wide)
                    return {"us": round(graph_us([lambda: own_kernels.silu_mul(x, fp8=fp8)]), 2)}

                attempt(rows, {"kernel": "add_norm", "m": m, "width": width, "fp8_out": fp8}, norm)
                attempt(rows, {"kernel": "silu_mul", "m": m, "width": wide, "fp8_out": fp8}, silu)
    return rows


def launches(tiny: bool) -> list[Row]:
    """A chain of tiny kernels: microseconds each, from the host one by one and as a CUDA graph."""
    rows: list[Row] = []
    x = torch.zeros(1024, device=DEVICE)
    number = 20 if tiny else 1000
    y, gain = normal(1, 256), normal(256)

    def chain() -> None:
        for _ in range(number):
            x.add_(1.0)

    def triton_chain() -> None:
        for _ in range(number):
            own_kernels.add_norm(y, y, gain, fp8=False)

    for name, call in (("torch add_ of 1024", chain), ("triton add_norm of 256", triton_chain)):
        call()
        rows.append({"what": name, "how": "from the host", "us": plain_us([call], repeats=7) / number})
    if CUDA:
        for name, call in (("torch add_ of 1024", chain), ("triton add_norm of 256", triton_chain)):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            graph.replay()
            rows.append({"what": name, "how": "CUDA graph", "us": plain_us([graph.replay], repeats=7) / number})
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            x.add_(1.0)
        rows.append({"what": "replay of a graph of one kernel", "how": "CUDA graph", "us": plain_us([graph.replay] * 200)})
    return rows
