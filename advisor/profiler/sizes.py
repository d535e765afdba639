"""The sizes of a model and of each of its layers, and the parameters they add up to.

Parameters are matrices by arithmetic; norms are counted as two vectors a layer and a last one, biases are left out.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.profiler.attention import HEAD_KEYS, Heads, read_global_heads, read_heads, read_local_heads, read_mla
from advisor.profiler.blocks import Overrides, SharedBlock, read_overrides, read_shared_block
from advisor.profiler.compressed import Compressed, read_compressed
from advisor.profiler.configuration import HIDDEN_KEYS, Configuration
from advisor.profiler.feed_forward import Experts, expert_layer_params, is_gated, mlp_params, read_experts, read_width
from advisor.profiler.layers import (
    CONTEXT_KEYS,
    WINDOW_KEYS,
    Feed,
    Kinds,
    Mixer,
    is_chunked,
    layer_count,
    layer_kinds,
    window_size,
)
from advisor.profiler.recurrent import read_recurrent
from advisor.types import Mla, Recurrent

VOCAB_KEYS = ("vocab_size", "padded_vocab_size", "n_vocab", "embedding_size", "num_embeddings")
NO_HEADS = Heads(0, 0, 0, 0, 0, 0.0)


class Layer(NamedTuple):
    """One layer as it is served."""

    mixer: Mixer
    feed: Feed
    attention: Heads | None
    attention_params: int
    width: int
    """of the dense MLP; 0 without one"""
    mlp_params: int
    cached: bool = True
    """keeps a cache of its own (False: it reads another layer's)"""


class Sizes(NamedTuple):
    """What the whole model shares."""

    layers: int
    hidden: int
    vocab: int
    gated: bool
    tied: bool
    heads: Heads
    mla: Mla | None
    window: int | None
    chunked: bool
    """whether the window is a chunk that tokens are divided into"""
    experts: Experts | None
    recurrent: Recurrent | None
    width: int
    """of a dense MLP layer"""


def read_sizes(config: Configuration, *, gated: bool | None, notes: list[str]) -> Sizes:
    """The sizes that the whole model shares. Raises ModelProblem for what is missing or makes no sense."""
    layers = layer_count(config)
    hidden = config.needed("hidden size", *HIDDEN_KEYS, kind="hidden")
    vocab = config.needed("vocabulary size", *VOCAB_KEYS, kind="vocab")
    gated = gated if gated is not None else is_gated(config)
    if gated is None:
        gated = True
        notes.append("config.json names no activation; the MLP is taken to have a gate (three matrices).")
    tied = config.flag("tie_word_embeddings", "tie_embeddings", "share_embeddings")
    if tied is None:
        tied = False
        notes.append("config.json does not say whether the output head shares the embedding's weights; counted as separate.")
    mla = read_mla(config)
    if config.trait("no_attention") and not config.has(*HEAD_KEYS):
        heads = NO_HEADS
    else:
        heads = read_heads(config, hidden, mla)
    experts = read_experts(config, hidden)
    width = 0 if config.trait("no_mlp") else read_width(config, hidden)
    if width is None and experts is None:
        width = 4 * hidden
        notes.append(
            "config.json gives no MLP width; taken as four times the hidden size, as the architectures without the key have it."
        )
    recurrent = read_recurrent(config, hidden, heads.heads, heads.key_dim)
    window, chunked = window_size(config), is_chunked(config)
    return Sizes(layers, hidden, vocab, gated, tied, heads, mla, window, chunked, experts, recurrent, width or 0)


def read_layers(config: Configuration, sizes: Sizes, notes: list[str]) -> list[Layer]:
    """Every layer of the model, the embedding's side first. Raises ModelProblem."""
    kinds = layer_kinds(config, sizes.layers, has_experts=sizes.experts is not None)
    notes += kinds.notes
    overrides = read_overrides(config, sizes.layers, sizes.hidden, sizes.heads.heads)
    compressed = read_compressed(config, sizes.layers, sizes.hidden, sizes.heads.heads, sizes.heads.key_dim)
    shared = read_shared_block(config, sizes.hidden, sizes.heads.heads, sizes.heads.key_dim, sizes.width)
    if compressed is not None:
        kept = sum(entry.ratio > 0 for entry in compressed) * (config.number(*WINDOW_KEYS) or 0) * sizes.heads.key_dim
        notes.append(f"Its compressed layers also keep a window of whole tokens, {kept:,} elements a sequence; not counted.")
    borrowing = _without_own_cache(config, sizes, notes)
    usual = {mixer: _heads(config, sizes, mixer) for mixer in ("full", "local")}
    found = []
    for index, (mixer, feed) in enumerate(zip(kinds.mixers, kinds.feeds, strict=True)):
        own = overrides.get(index)
        if own is not None:
            layer = _different(config.overridden(own.values), sizes, own, mixer, feed)
        elif shared is not None:
            layer = _sharing(sizes, kinds, shared, index)
        else:
            layer = _ordinary(config, sizes, usual, mixer, feed, cached=index not in borrowing)
        found.append(layer if compressed is None else _compressing(layer, sizes, compressed[index]))
    return found


def _without_own_cache(config: Configuration, sizes: Sizes, notes: list[str]) -> set[int]:
    """Layers that read an earlier layer's keys and values (Gemma 3n, Hunyuan) or an image's (Llama 3.2 Vision)."""
    crossing = config.items("cross_attention_layers") or []
    if crossing:
        notes.append(f"{len(crossing)} cross-attention layers keep only the image's keys and values; those are not counted.")
    found = {config.checked("cross_attention_layers", index, low=0) for index in crossing}
    found |= set(range(max(0, sizes.layers - (config.number("num_kv_shared_layers", low=0) or 0)), sizes.layers))
    factor = (config.number("cla_share_factor") or 1) if config.flag("use_cla") else 1
    return found | {index for index in range(sizes.layers) if index % factor}


def _heads(config: Configuration, sizes: Sizes, mixer: Mixer) -> Heads:
    if sizes.mla is not None:
        return sizes.heads
    read = read_local_heads if mixer == "local" else read_global_heads
    return read(config, sizes.hidden, sizes.heads)


def _ordinary(config: Configuration, sizes: Sizes, usual: dict[str, Heads], mixer: Mixer, feed: Feed, *, cached: bool) -> Layer:
    if mixer == "local" and sizes.window is None:
        mixer = "full"
    heads = usual["local"] if mixer == "local" else usual["full"] if mixer in ("full", "parallel") else None
    params = heads.params * (config.trait("attentions_per_layer") or 1) if heads else 0
    width = sizes.width if feed == "dense" else 0
    if heads and not cached:
        params -= sizes.hidden * heads.kv_heads * (heads.key_dim + heads.value_dim)
        width *= 2 if config.flag("use_double_wide_mlp") else 1
    return Layer(mixer, feed, heads, params, width, mlp_params(sizes.hidden, width, gated=sizes.gated), cached)


def _different(config: Configuration, sizes: Sizes, own: Overrides, mixer: Mixer, feed: Feed) -> Layer:
    """A layer with values of its own."""
    mla = read_mla(config)
    heads = _heads(config, sizes._replace(mla=mla, heads=read_heads(config, sizes.hidden, mla)), mixer)
    window = window_size(config)
    if mixer == "full" and "sliding_window" in own.values and window:
        mixer = "local"
    elif mixer == "local" and not window:
        mixer = "full"
    attention: Heads | None = heads if mixer in ("full", "local", "parallel") else None
    params = heads.params if attention else 0
    if own.no_attention or own.attention_stand_in:
        mixer, attention, params = "none", None, sizes.hidden**2 if own.attention_stand_in else 0
    width = read_width(config, sizes.hidden) or sizes.width if feed == "dense" else 0
    mlp = mlp_params(sizes.hidden, width, gated=sizes.gated)
    if own.no_mlp or own.mlp_stand_in:
        feed, width, mlp = ("dense" if own.mlp_stand_in else "none"), 0, sizes.hidden**2 if own.mlp_stand_in else 0
    return Layer(mixer, feed, attention, params, width, mlp)


def _sharing(sizes: Sizes, kinds: Kinds, shared: SharedBlock, index: int) -> Layer:
    """A layer of Zamba: most are recurrent alone; the others also run the shared block, whose weights are counted once."""
    mixer = kinds.mixers[index]
    if mixer != "parallel":
        return Layer(mixer, "none", None, 0, 0, 0)
    counted = kinds.mixers[:index].count("parallel") < shared.copies
    attention = shared.each + (shared.attention if counted else 0)
    return Layer(mixer, "dense", sizes.heads, attention, sizes.width, shared.mlp if counted else 0)


def _compressing(layer: Layer, sizes: Sizes, compressed: Compressed) -> Layer:
    heads = sizes.heads._replace(cache=compressed.cache, params=compressed.params)
    return layer._replace(mixer="full" if compressed.ratio else "local", attention=heads, attention_params=compressed.params)


def parameter_parts(config: Configuration, sizes: Sizes, layers: list[Layer]) -> dict[str, int]:
    """Parameters by part, see Model.params_by_part."""
    moe_layers = sum(layer.feed == "moe" for layer in layers)
    each = expert_layer_params(sizes.hidden, sizes.experts, gated=sizes.gated) if sizes.experts else {}
    states = sum(layer.mixer in ("recurrent", "parallel") for layer in layers)
    per_layer = config.number("hidden_size_per_layer_input", low=0) or 0
    vocab = config.number("vocab_size_per_layer_input", kind="vocab") or sizes.vocab
    positions = (config.number(*CONTEXT_KEYS, kind="context") or 0) if config.trait("learned_positions") else 0
    return {
        "embedding": sizes.vocab * sizes.hidden + vocab * sizes.layers * per_layer,
        "lm_head": 0 if sizes.tied else sizes.vocab * sizes.hidden,
        "attention": sum(layer.attention_params for layer in layers),
        "recurrent": states * (sizes.recurrent.params_per_layer if sizes.recurrent else 0),
        "mlp": sum(layer.mlp_params for layer in layers),
        "experts": moe_layers * each.get("experts", 0),
        "shared_experts": moe_layers * each.get("shared_experts", 0),
        "router": moe_layers * each.get("router", 0),
        "norms": (2 * sizes.layers + 1) * sizes.hidden,
        "other": positions * sizes.hidden + 3 * sizes.layers * sizes.hidden * per_layer,
    }


def active_params(parts: dict[str, int], sizes: Sizes, layers: list[Layer]) -> int:
    """Parameters that one token uses: all but the routed experts it is not sent to."""
    if sizes.experts is None:
        return sum(parts.values())
    each = expert_layer_params(sizes.hidden, sizes.experts, gated=sizes.gated)
    routed = each["active"] - each["shared_experts"] - each["router"]
    return sum(parts.values()) - parts["experts"] + routed * sum(layer.feed == "moe" for layer in layers)
