"""Time of attention: decode reads the cache, prefill multiplies.

    decode  t = t0 + t1 S/(S + S1) + (bytes^p + flops^p)^(1/p)       S the context, at least smin
    prefill t = t0 + 4 pairs heads (D + d0)/(P ec) (1 + s0/S) + q bytes/BW     D the head's width; d0: the softmax beside it

t0, t1 in microseconds; efficiencies fitted per GPU and cache format (profiles/constants). A vector named for an engine is that
of the kernel which this engine runs, and is not scaled.
"""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.estimator.memory import KV_BYTES
from advisor.types import KvFormat, Model

SPARSE_ROWS, WIDE_ROWS = 64, 128
"""heads that a sparse prefill kernel computes at least: FlashMLA's flash_mla_sparse_fwd takes multiples of 64, on Blackwell of
128 (required_padding in SGLang's nsa_backend.py), where only FP8 caches have other kernels"""


@dataclass(frozen=True)
class Attention:
    """One layer's attention on one GPU: coefficients."""

    t0: float
    t1: float
    s1: float
    smin: float
    power: float
    inverse: float
    byte_time: float
    """seconds per sequence and token of context"""
    flop_time: float
    prefill_t0: float
    prefill_s0: float
    prefill_pair: float
    """seconds per query-key pair at full efficiency"""
    prefill_token: float
    window: float

    def decode(self, sequences: float, context: float) -> float:
        """Seconds of one decode step of one layer: `sequences` queries, each over `context` tokens."""
        if sequences <= 0:
            return 0.0
        s = context if context < self.window else self.window
        s = s if s > self.smin else self.smin
        work = sequences * s
        busy: float = ((work * self.byte_time) ** self.power + (work * self.flop_time) ** self.power) ** self.inverse
        return self.t0 + self.t1 * s / (s + self.s1) + busy

    def prefill(self, tokens: float, length: float) -> float:
        """Seconds of one layer for `tokens` prompt tokens that belong to prompts of `length` tokens."""
        if tokens <= 0:
            return 0.0
        reach = length if length <= self.window else self.window
        pairs = tokens * (reach - reach * reach / (2 * length))
        return self.prefill_t0 + pairs * self.prefill_pair * (1 + self.prefill_s0 / length) + tokens * self.prefill_token


def attention(constants: Constants, host: Runtime, model: Model, kv_cache: KvFormat, parts: int, window: float) -> Attention:
    """The coefficients with the heads divided over `parts` ranks (K and V heads copied when there are fewer)."""
    peak = constants.peaks["bf16"]
    assert peak is not None
    bandwidth = constants.bandwidth
    kv = "bf16" if kv_cache == "bf16" else "fp8"
    heads = -(-model.heads // parts)
    if model.mla is not None:
        vector = _pick(constants, "mla_decode", kv)
        context = _pick(constants, "mla_prefill", kv)
        width = model.mla.kv_lora_rank + model.mla.qk_rope_head_dim
        query = model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim
        bytes_token, flops_token = width * KV_BYTES[kv_cache], 2.0 * heads * (width + model.mla.kv_lora_rank)
        pair = 2.0 * heads * query
        if model.indexer_bytes:  # each query has keys of its own: it multiplies in latent space, its heads the rows of a tile
            wide = kv == "bf16" and (constants.peaks.get("fp4") or 0.0) > 0
            pair = 2.0 * max(heads, WIDE_ROWS if wide else SPARSE_ROWS) * (width + model.mla.kv_lora_rank)
        stored = 2.0 * heads * (query + model.mla.qk_nope_head_dim + model.mla.qk_rope_head_dim + model.mla.v_head_dim)
        smin = 64.0
    else:
        vector = _pick(constants, "attention_decode", kv, host.name)
        context = _pick(constants, "attention_prefill", "fp8_fp8" if host.fmha8 and kv == "fp8" else f"bf16_{kv}", host.name)
        kv_heads = -(-model.kv_heads // parts)
        bytes_token = 2.0 * kv_heads * model.head_dim * KV_BYTES[kv_cache]
        flops_token = 4.0 * heads * model.head_dim
        pair = 4.0 * heads * (model.head_dim + context["d0"])
        stored = 4.0 * (heads + kv_heads) * model.head_dim
        smin = vector["smin"]
    decoding = 1.0 if vector.get("own") else host.decode
    prefilling = 1.0 if context.get("own") else host.prefill
    return Attention(
        t0=decoding * vector["t0_us"] * 1e-6,
        t1=decoding * vector["t1_us"] * 1e-6,
        s1=vector["s1"],
        smin=smin,
        power=vector["p"],
        inverse=1 / vector["p"],
        byte_time=decoding * bytes_token / (bandwidth * vector["eb"]),
        flop_time=decoding * flops_token / (peak * vector["ec"]),
        prefill_t0=prefilling * context["t0_us"] * 1e-6,
        prefill_s0=context["s0"],
        prefill_pair=prefilling * pair / (peak * context["ec"]),
        prefill_token=prefilling * context["q"] * stored / bandwidth,
        window=window,
    )


def _pick(constants: Constants, op: str, form: str, engine: str = "") -> dict[str, float]:
    table = constants.ops[op]
    if own := table.get(f"{engine}_{form}"):
        return dict(own)
    first = next(iter(table))
    plain = form.replace("fp8", "bf16")
    return dict(table.get(form) or table.get(plain) or table[first])
