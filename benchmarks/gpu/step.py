"""Whole steps of a Llama, put together from the measured kernels and timed as CUDA graphs.

A decode step runs all layers (qkv, attention over a paged cache, o, gate and up, down, norms), the final norm, the
lm_head and the argmax. Few distinct layers are reused in turn: one layer's weights are many times the L2 cache, so every
pass reads device memory, and formats that would not fit can be timed too. Left out: RoPE, the write of the new token into
the cache, sampling beyond argmax, the host. Rows are tokens; `drafted` query tokens of one sequence share its cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import own_kernels
import torch
import torch.nn.functional as functional
from rates import Int4, Pool, Row, attempt, normal
from timing import CUDA, DEVICE, graph_us, plain_us

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Shape:
    """A Llama: hidden and MLP width, query and kv heads of 128, layers, vocabulary."""

    hidden: int
    wide: int
    heads: int
    kv_heads: int
    layers: int
    vocabulary: int
    distinct: int
    """layers whose weights are made"""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(K, N) of a layer's four GEMMs."""
        return {
            "qkv": (self.hidden, (self.heads + 2 * self.kv_heads) * 128),
            "o": (self.heads * 128, self.hidden),
            "gate_up": (self.hidden, 2 * self.wide),
            "down": (self.wide, self.hidden),
        }


SHAPES = {
    "8b": Shape(4096, 14336, 32, 8, 32, 128256, 4),
    "70b": Shape(8192, 28672, 64, 8, 80, 128256, 2),
    "tiny": Shape(256, 512, 4, 2, 2, 512, 2),
}


class Llama:
    """Random weights of one format, and the steps that run on them."""

    def __init__(self, shape: Shape, form: str) -> None:
        self.shape, self.form = shape, form
        self.gain = normal(shape.hidden)
        self.head = normal(shape.vocabulary, shape.hidden).t()
        self.one = torch.ones((), device=DEVICE)
        self.scales = {name: torch.full((), k**-0.5, device=DEVICE) for name, (k, _) in shape.linears.items()}
        self.int4: dict[str, Int4] = {}
        self.dense: dict[str, list[torch.Tensor]] = {}
        for name, (k, n) in shape.linears.items():
            if form == "int4":
                self.int4[name] = Int4(k, n, shape.distinct)
            else:
                made = [normal(n, k) for _ in range(shape.distinct)]
                self.dense[name] = [w.to(FP8).t() if form == "fp8" else w.mul_(k**-0.5).t() for w in made]

    def linear(self, name: str, layer: int, x: torch.Tensor) -> torch.Tensor:
        which = layer % self.shape.distinct
        if self.form == "int4":
            int4 = self.int4[name]
            return own_kernels.int4_gemm(x.to(own_kernels.HALF), *int4.weights[which], int4.tiling(x.shape[0])).bfloat16()
        if self.form == "fp8":
            weight, scale = self.dense[name][which], self.scales[name]
            return torch._scaled_mm(x, weight, scale_a=self.one, scale_b=scale, out_dtype=torch.bfloat16, use_fast_accum=True)
        return torch.mm(x, self.dense[name][which])

    def tune(self, rows: int) -> None:
        """Finds the W4A16 tilings before anything is captured."""
        for int4 in self.int4.values():
            int4.tiling(rows)

    def mlp_and_norms(self, layer: int, attended: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        fp8 = self.form == "fp8"
        x = own_kernels.add_norm(self.linear("o", layer, attended), residual, self.gain, fp8=fp8)
        x = self.linear("down", layer, own_kernels.silu_mul(self.linear("gate_up", layer, x), fp8=fp8))
        return own_kernels.add_norm(x, residual, self.gain, fp8=fp8)

    def finish(self, residual: torch.Tensor) -> torch.Tensor:
        normed = own_kernels.add_norm(residual, torch.zeros_like(residual), self.gain, fp8=False)
        return torch.mm(normed, self.head).argmax(-1)

    def start(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        residual = normal(rows, self.shape.hidden)
        return residual, own_kernels.add_norm(torch.zeros_like(residual), residual, self.gain, fp8=self.form == "fp8")

    def decode(self, pool: Pool, tables: list[torch.Tensor], batch: int, drafted: int, splits: int) -> torch.Tensor:
        """One step of `batch` sequences with `drafted` tokens each."""
        shape = self.shape
        rows = batch * drafted
        residual, x = self.start(rows)
        group = shape.heads // shape.kv_heads
        kind = torch.float16 if pool.keys.dtype == FP8 else torch.bfloat16
        for layer in range(shape.layers):
            qkv = self.linear("qkv", layer, x)
            q = qkv[:, : shape.heads * 128].reshape(batch, drafted, shape.kv_heads, group, 128)
            q = q.transpose(1, 2).reshape(batch, shape.kv_heads, drafted * group, 128).to(kind)
            out = own_kernels.decode_attention(
                q, pool.keys, pool.values, tables[layer % len(tables)], splits=splits, fp8_out=self.form == "fp8"
            )
            out = out.view(batch, shape.kv_heads, drafted, group, 128).transpose(1, 2).reshape(rows, shape.heads * 128)
            x = self.mlp_and_norms(layer, out, residual)
        return self.finish(residual)

    def prefill(self, tokens: int) -> torch.Tensor:
        """One prompt, causal attention by SDPA in bf16; the logits of its last token."""
        shape = self.shape
        residual, x = self.start(tokens)
        for layer in range(shape.layers):
            qkv = self.linear("qkv", layer, x)
            q, k, v = qkv.split([shape.heads * 128, shape.kv_heads * 128, shape.kv_heads * 128], 1)
            q, k, v = (part.reshape(1, tokens, -1, 128).transpose(1, 2) for part in (q, k, v))
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            out = out.transpose(1, 2).reshape(tokens, -1)
            x = self.mlp_and_norms(layer, out.to(FP8) if self.form == "fp8" else out, residual)
        return self.finish(residual[-1:])


def _measure(llama: Llama, pool: Pool, batch: int, context: int, drafted: int) -> Row:
    llama.tune(batch * drafted)
    tables = pool.tables(batch, context, at_most=32)
    splits = own_kernels.splits_for(batch, llama.shape.kv_heads, context // own_kernels.PAGE)
    with torch.no_grad():
        us = graph_us([lambda: llama.decode(pool, tables, batch, drafted, splits)], target_ms=30, repeats=5, at_most=4)
    return {"ms": round(us / 1000, 4)}


def decode(tiny: bool) -> list[Row]:
    """Decode steps over batch by weight and cache format; context 1024 and, for some, 8192."""
    rows: list[Row] = []
    for model in ("tiny",) if tiny else ("8b", "70b"):
        shape = SHAPES[model]
        pools = {"bf16": Pool(4096 if tiny else 3 * 2**20, shape.kv_heads, torch.bfloat16)}
        pools["fp8"] = Pool(4096 if tiny else 3 * 2**20, shape.kv_heads, FP8)
        for form in ("bf16", "fp8", "int4"):
            llama = Llama(shape, form)
            for batch in (1, 2) if tiny else (1, 2, 4, 8, 16, 32, 64, 128, 256):
                for context in (256,) if tiny else (1024, 8192):
                    for cache, pool in pools.items():
                        if not tiny and (
                            (context == 8192 and batch not in (1, 16, 64, 256))
                            or (model == "70b" and cache == "bf16" and context == 1024 and batch in (2, 8, 32))
                        ):
                            continue
                        row = {"model": model, "weights": form, "kv_cache": cache, "batch": batch, "context": context}
                        attempt(rows, row, lambda it=llama, p=pool, b=batch, c=context: _measure(it, p, b, c, 1))
            if not tiny and model == "8b" and form != "int4":
                for batch in (1, 32):

                    def eager(llama: Llama = llama, batch: int = batch, pool: Pool = pools["bf16"]) -> Row:
                        tables = pool.tables(batch, 1024, at_most=32)
                        with torch.no_grad():
                            us = plain_us([lambda: llama.decode(pool, tables, batch, 1, 8)], repeats=7)
                        return {"ms": round(us / 1000, 4), "how": "no CUDA graph"}

                    row = {"model": model, "weights": form, "kv_cache": "bf16", "batch": batch, "context": 1024}
                    attempt(rows, row, eager)
            del llama
        del pools
        if CUDA:
            torch.cuda.empty_cache()
    return rows


def verify(tiny: bool) -> list[Row]:
    """Steps that verify several tokens a sequence: what speculation costs the target. FP8 weights and cache."""
    rows: list[Row] = []
    for model in ("tiny",) if tiny else ("8b", "70b"):
        shape = SHAPES[model]
        pool = Pool(4096 if tiny else 2**19, shape.kv_heads, FP8)
        llama = Llama(shape, "bf16" if tiny else "fp8")
        for drafted in (1, 2) if tiny else (1, 2, 3, 4, 6, 8):
            for batch in (1, 2) if tiny else (1, 4, 16, 64, 128, 256):
                row = {"model": model, "batch": batch, "tokens_per_sequence": drafted, "context": 256 if tiny else 1024}
                attempt(rows, row, lambda it=llama, p=pool, b=batch, c=row["context"], d=drafted: _measure(it, p, b, c, d))
        del llama, pool
        if CUDA:
            torch.cuda.empty_cache()
    return rows


def prefill(tiny: bool) -> list[Row]:
    """One prompt, by weight format and length."""
    rows: list[Row] = []
    for model in ("tiny",) if tiny else ("8b", "70b"):
        for form in ("bf16", "fp8", "int4"):
            llama = Llama(SHAPES[model], form)
            for length in (64,) if tiny else (512, 2048) if model == "70b" else (512, 2048, 8192):

                def measure(llama: Llama = llama, length: int = length) -> Row:
                    llama.tune(length)
                    with torch.no_grad():
                        us = graph_us([lambda: llama.prefill(length)], target_ms=30, repeats=5, at_most=2)
                    return {"ms": round(us / 1000, 3)}

                attempt(rows, {"model": model, "weights": form, "length": length}, measure)
            del llama
            if CUDA:
                torch.cuda.empty_cache()
    return rows
