"""Compressed attention (DeepSeek-V4): every layer keeps a short window whole and older tokens compressed.

A layer of ratio r adds one entry of head_dim elements per r tokens (keys and values are the same entry); at ratio 4 an
indexer adds its own keys. Ratio 0 keeps the window alone. Sizes follow transformers' deepseek_v4 reference code.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.profiler.configuration import Configuration

RATIOS = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128, "sliding_attention": 0}
INDEXED_RATIO = 4


class Compressed(NamedTuple):
    """One layer: tokens per cache entry (0: only a window), elements per token, parameters."""

    ratio: int
    cache: float
    params: int


def read_compressed(config: Configuration, layers: int, hidden: int, heads: int, key_dim: int) -> list[Compressed] | None:
    """One entry per layer, None for a model without compressed attention. Raises ModelProblem."""
    given = config.items("compress_ratios", length=layers)
    if given is not None:
        ratios = [config.checked("compress_ratios", ratio, low=0) for ratio in given]
    else:
        kinds = config.items("layer_types", length=layers)
        if kinds is None or not any(kind in ("compressed_sparse_attention", "heavily_compressed_attention") for kind in kinds):
            return None
        ratios = [RATIOS.get(kind, 0) if isinstance(kind, str) else 0 for kind in kinds]
    return [_layer(config, ratio, hidden, heads, key_dim) for ratio in ratios]


def _layer(config: Configuration, ratio: int, hidden: int, heads: int, key_dim: int) -> Compressed:
    query_rank = config.number("q_lora_rank") or hidden
    groups, out_rank = config.number("o_groups"), config.number("o_lora_rank")
    output = heads * key_dim * hidden
    if groups and out_rank:
        output = heads * key_dim * out_rank + groups * out_rank * hidden
    params = query_rank * (hidden + heads * key_dim) + hidden * key_dim + output
    if not ratio:
        return Compressed(0, float(key_dim), params)
    overlap = 2 if ratio == INDEXED_RATIO else 1
    params += 2 * hidden * key_dim * overlap + ratio * key_dim * overlap
    cache = key_dim / ratio
    if ratio == INDEXED_RATIO:
        index_heads, width = config.number("index_n_heads") or 0, config.number("index_head_dim") or 0
        params += 4 * hidden * width + index_heads * (query_rank * width + hidden)
        cache += width / ratio
    return Compressed(ratio, cache, params)
