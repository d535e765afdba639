"""Time of attention: decode reads the cache, prefill multiplies.

    decode  t = t0 + t1 W/(W + w1) + max(n u (S^p + smin^p)^(1/p), chain S)      n sequences with S tokens of context each
            u = bytes/(BW eb) + flops/(P ec) of one token; W = n S bytes
    prefill t = t0 + 4 pairs heads D/(P ec) (1 + s0/S) + q bytes/BW              D the head's width

t0, t1 in microseconds, w1 in MB; efficiencies fitted per GPU and cache format (profiles/constants). smin: what a sequence with
next to no context costs; chain S: how long one block of threads takes over one sequence where a kernel does not divide it.
Kernels for heads that share no K and V (`_mha`), and of 64 or 256 elements, are others than those for 128 and have vectors of
their own. A vector named for an engine is that of the kernel which this engine runs, and is not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.estimator.memory import KV_BYTES
from advisor.types import KvFormat, Model

SPARSE_ROWS, WIDE_ROWS = 64, 128
"""heads that a sparse prefill kernel computes at least: FlashMLA's flash_mla_sparse_fwd takes multiples of 64, on Blackwell of
128 (required_padding in SGLang's nsa_backend.py), where only FP8 caches have other kernels"""

WIDTHS, USUAL = (64, 128, 256), 128
"""head widths with kernels of their own in the tables; those of the usual one have no suffix"""


@dataclass(frozen=True)
class Attention:
    """One layer's attention on one GPU: coefficients."""

    t0: float
    t1: float
    half: float
    """tokens of all sequences' context at which half of t1 is there"""
    shortest: float
    """smin to the power of `power`"""
    power: float
    inverse: float
    byte_time: float
    """seconds per sequence and token of context"""
    flop_time: float
    chain: float
    """seconds per token of context that no other sequence's hide"""
    prefill_t0: float
    prefill_s0: float
    prefill_pair: float
    """seconds per query-key pair at full efficiency"""
    prefill_token: float
    window: float
    chunked: bool = False

    def decode(self, sequences: float, context: float) -> float:
        """Seconds of one decode step of one layer: `sequences` queries, each over `context` tokens."""
        if sequences <= 0:
            return 0.0
        s = context if context < self.window else self.window
        if self.chunked:
            s = _into_chunk(2 * context, self.window)
        work = sequences * s
        busy: float = sequences * (self.byte_time + self.flop_time) * (s**self.power + self.shortest) ** self.inverse
        alone = self.chain * s
        return self.t0 + self.t1 * work / (work + self.half) + (busy if busy > alone else alone)

    def prefill(self, tokens: float, length: float) -> float:
        """Seconds of one layer for `tokens` prompt tokens that belong to prompts of `length` tokens."""
        if tokens <= 0:
            return 0.0
        reach = length if length <= self.window else self.window
        pairs = tokens * (_into_chunk(length, self.window) if self.chunked else reach - reach * reach / (2 * length))
        return self.prefill_t0 + pairs * self.prefill_pair * (1 + self.prefill_s0 / length) + tokens * self.prefill_token


def _into_chunk(length: float, chunk: float) -> float:
    """How far into its chunk a token of a sequence of `length` tokens is on average.

    A sequence that is answered is taken to have twice its present context, as lengths that differ would have on average.
    """
    whole = length // chunk
    rest = length - whole * chunk
    return (whole * chunk * chunk + rest * rest) / (2 * length)


def attention(
    constants: Constants, host: Runtime, model: Model, kv_cache: KvFormat, parts: int, window: float, chunked: bool = False
) -> Attention:
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
    else:
        kv_heads = -(-model.kv_heads // parts)
        size = next((size for size in WIDTHS if model.head_dim <= size), WIDTHS[-1])
        kind = "" if size == USUAL else f"_{size}"
        form = "fp8_fp8" if host.fmha8 and kv == "fp8" else f"bf16_{kv}"
        vector = _pick(constants, "attention_decode", kv, "_mha" if heads == kv_heads else kind, host.name)
        context = _pick(constants, "attention_prefill", form, kind, host.name)
        bytes_token = 2.0 * kv_heads * model.head_dim * KV_BYTES[kv_cache]
        flops_token = 4.0 * heads * model.head_dim
        pair = 4.0 * heads * model.head_dim
        stored = 4.0 * (heads + kv_heads) * model.head_dim
    decoding = 1.0 if vector.get("own") else host.decode
    prefilling = 1.0 if context.get("own") else host.prefill
    return Attention(
        t0=decoding * vector["t0_us"] * 1e-6,
        t1=decoding * vector["t1_us"] * 1e-6,
        half=vector["w1_mb"] * 1e6 / bytes_token,
        shortest=vector["smin"] ** vector["p"],
        power=vector["p"],
        inverse=1 / vector["p"],
        byte_time=decoding * bytes_token / (bandwidth * vector["eb"]),
        flop_time=decoding * flops_token / (peak * vector["ec"]),
        chain=decoding * vector["chain_ns"] * 1e-9,
        prefill_t0=prefilling * context["t0_us"] * 1e-6,
        prefill_s0=context["s0"],
        prefill_pair=prefilling * pair / (peak * context["ec"]),
        prefill_token=prefilling * context["q"] * stored / bandwidth,
        window=window,
        chunked=chunked,
    )


def _pick(constants: Constants, op: str, form: str, kind: str = "", engine: str = "") -> Mapping[str, float]:
    """The vector of the engine's own kernel, of this kind of heads, of the usual ones; the 16-bit one where there is no FP8."""
    table: Mapping[str, Mapping[str, float]] = constants.ops[op]
    plain = form.replace("fp8", "bf16")
    named = (f"{engine}_{form}", f"{form}{kind}", form, f"{plain}{kind}", plain)
    return next((table[key] for key in named if key in table), next(iter(table.values())))
