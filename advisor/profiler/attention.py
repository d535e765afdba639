"""Attention: heads, head sizes, what a token adds to the KV cache, and the parameters of one layer.

Cache elements count keys and values of one token in one layer, before any quantization.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.errors import ModelProblem
from advisor.profiler.configuration import LAYER_KEYS, Configuration
from advisor.types import Mla

HEAD_KEYS = (
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "attn_config.num_heads",
    "attention_heads",
    "num_query_heads",
)
KV_HEAD_KEYS = (
    "num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_head_kv", "attn_config.kv_n_heads", "multi_query_group_num",
    "num_attention_groups", "num_query_groups", "kv_heads", "n_kv_head",
)  # fmt: skip
HEAD_DIM_KEYS = ("head_dim", "attention_head_dim", "kv_channels", "head_size", "qkv_head_dim", "d_head", "d_kv")
INDEXER_SCALE_BYTES = 4
"""per token beside the indexer's FP8 key, an FP32 scale (vLLM's and TensorRT-LLM's indexer caches: head_dim + 4 bytes)"""


class Heads(NamedTuple):
    """The shape of attention in one kind of layer."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    params: int
    """of one layer, projections only"""
    cache: float
    """elements per token and layer"""


def read_heads(config: Configuration, hidden: int, mla: Mla | None) -> Heads:
    """Heads of the model's (global) attention. Raises ModelProblem."""
    heads = _count(config, "number of attention heads", HEAD_KEYS)
    if mla is not None:
        return mla_heads(config, hidden, heads, mla)
    kv_heads = _kv_heads(config, heads)
    key_dim = config.number(*HEAD_DIM_KEYS, kind="head_dim")
    if key_dim is None:
        if hidden % heads:
            raise ModelProblem(
                f"hidden size {hidden} is not a multiple of {heads} heads and there is no head_dim",
                where=config.where,
                hint="fetch config.json again",
            )
        key_dim = hidden // heads
    return heads_of(config, hidden, heads, kv_heads, key_dim, config.number("v_head_dim", kind="head_dim") or key_dim)


def heads_of(config: Configuration, hidden: int, heads: int, kv_heads: int, key_dim: int, value_dim: int) -> Heads:
    """Q, K, V and output projections (with an output gate as wide as Q where the architecture has one). Raises ModelProblem."""
    if kv_heads > heads:
        raise ModelProblem(
            f"{kv_heads} key/value heads for {heads} attention heads", where=config.where, hint="fetch config.json again"
        )
    gate = heads * value_dim if config.flag("attn_output_gate", "attention_output_gate", "output_gate") else 0
    wide = heads * key_dim + kv_heads * (key_dim + value_dim) + heads * value_dim + gate
    return Heads(heads, kv_heads, key_dim, value_dim, hidden * wide, float(kv_heads * (key_dim + value_dim)))


def _count(config: Configuration, what: str, names: tuple[str, ...]) -> int:
    name, value = config.find(*names)
    if isinstance(value, list) and len(value) == config.number(*LAYER_KEYS, kind="layers"):
        return max(config.checked(name, entry, kind="heads") for entry in value)
    return config.needed(what, *names, kind="heads")


def _kv_heads(config: Configuration, heads: int) -> int:
    if config.has("multi_query_attention") and config.flag("multi_query_attention") is False:
        return heads
    multi_query = config.flag("multi_query") if isinstance(config.find("multi_query")[1], bool) else None
    new_falcon = config.find("new_decoder_architecture")[1] is True
    if multi_query and not new_falcon:
        return 1
    if multi_query is False and not config.has("num_key_value_heads") and not new_falcon:
        return heads
    name, value = config.find(*KV_HEAD_KEYS)
    if isinstance(value, list) and value:
        counts = [config.checked(name, entry, kind="heads") for entry in value if entry]
        return max(1, round(sum(counts) / max(1, len(counts))))
    return config.number(*KV_HEAD_KEYS, kind="heads") or heads


def read_local_heads(config: Configuration, hidden: int, whole: Heads) -> Heads:
    """Heads of the local layers where they differ (MiMo-V2's swa_ keys; in Gemma 4 the global layers are the odd ones)."""
    if not config.has("swa_num_key_value_heads", "swa_head_dim", "swa_num_attention_heads"):
        return whole
    heads = config.number("swa_num_attention_heads", kind="heads") or whole.heads
    kv_heads = config.number("swa_num_key_value_heads", kind="heads") or whole.kv_heads
    key_dim = config.number("swa_head_dim", kind="head_dim") or whole.key_dim
    value_dim = config.number("swa_v_head_dim", kind="head_dim") or whole.value_dim
    return heads_of(config, hidden, heads, kv_heads, key_dim, value_dim)


def read_global_heads(config: Configuration, hidden: int, local: Heads) -> Heads:
    """Heads of the global layers where the configuration names them apart (Gemma 4: global_head_dim)."""
    if not config.has("global_head_dim", "num_global_key_value_heads"):
        return local
    kv_heads = config.number("num_global_key_value_heads", kind="heads") or local.kv_heads
    key_dim = config.number("global_head_dim", kind="head_dim") or local.key_dim
    found = heads_of(config, hidden, local.heads, kv_heads, key_dim, key_dim)
    if config.flag("attention_k_eq_v"):
        found = found._replace(params=found.params - hidden * kv_heads * key_dim)
    return found


def read_mla(config: Configuration) -> Mla | None:
    """Multi-head latent attention, None when the model has none. Raises ModelProblem."""
    rank = config.number("kv_lora_rank")
    if rank is None:
        return None
    rope = config.number("qk_rope_head_dim", "rope_head_dim", low=0)
    rope = 64 if rope is None else rope
    nope = config.number("qk_nope_head_dim", low=0)
    if nope is None:
        whole = config.number("qk_head_dim", "head_dim", kind="head_dim")
        if whole is None or whole <= rope:
            raise ModelProblem(
                "latent attention (kv_lora_rank) without qk_nope_head_dim", where=config.where, hint="fetch config.json again"
            )
        nope = whole - rope
    value = config.number("v_head_dim", kind="head_dim") or nope
    return Mla(
        q_lora_rank=config.number("q_lora_rank"),
        kv_lora_rank=rank,
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=value,
    )


def mla_heads(config: Configuration, hidden: int, heads: int, mla: Mla) -> Heads:
    """Latent attention of one layer; the cache holds the latent and the rotary key once for all heads."""
    query = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    low = mla.q_lora_rank
    q = hidden * heads * query if low is None else low * (hidden + heads * query + 1)
    down = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim) + mla.kv_lora_rank
    up = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
    out = heads * mla.v_head_dim * hidden
    gate = out if config.flag("mla_use_output_gate", "attn_output_gate") else 0
    params = round(q + down + up + out + gate + indexer_share(config) * indexer_params(config, hidden, low))
    return Heads(heads, heads, query, mla.v_head_dim, params, float(mla.kv_lora_rank + mla.qk_rope_head_dim))


def indexer_params(config: Configuration, hidden: int, q_lora_rank: int | None) -> int:
    """The sparse-attention indexer of one layer (DeepSeek-V3.2): query and key projections and the head weights."""
    heads, width = config.number("index_n_heads"), config.number("index_head_dim")
    if heads is None or width is None:
        return 0
    return (q_lora_rank or hidden) * heads * width + hidden * width + hidden * heads + 2 * width


def indexer_share(config: Configuration) -> float:
    """Share of the layers that have an indexer of their own; the others reuse its choice (indexer_types)."""
    kinds = config.items("indexer_types")
    return sum(kind == "full" for kind in kinds) / len(kinds) if kinds else 1.0


def indexer_bytes(config: Configuration) -> float:
    """Cache bytes per token and attention layer of a sparse-attention indexer's FP8 keys, mean; 0 without one."""
    width = config.number("index_head_dim")
    if width is None or not config.has("kv_lora_rank"):
        return 0.0
    return (width + INDEXER_SCALE_BYTES) * indexer_share(config)
