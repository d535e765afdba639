"""From a config.json's values to a Model: sizes, layers, cache and parameters by arithmetic.

Nothing here depends on one model; what architectures do differently is in profiles/architectures and in the readers of
layers, attention, blocks, compressed, feed_forward and recurrent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from advisor.errors import ModelProblem
from advisor.profiler.attention import (
    HEAD_KEYS,
    Heads,
    indexer_bytes,
    mla_heads,
    read_global_heads,
    read_heads,
    read_local_heads,
    read_mla,
)
from advisor.profiler.blocks import read_blocks
from advisor.profiler.compressed import read_compressed
from advisor.profiler.configuration import HIDDEN_KEYS, LAYER_KEYS, Configuration, language_model
from advisor.profiler.family import Family, find_family
from advisor.profiler.feed_forward import Experts, expert_layer_params, is_gated, mlp_params, read_experts, read_width
from advisor.profiler.layers import CONTEXT_KEYS, Feed, Mixer, layer_kinds, window_size
from advisor.profiler.recurrent import read_recurrent
from advisor.types import Mla, Model, Moe, Recurrent, Window

VOCAB_KEYS = ("vocab_size", "padded_vocab_size", "n_vocab", "embedding_size", "num_embeddings")
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", "num_mtp_modules", "num_mtp_layers")
DTYPE_KEYS = ("dtype", "torch_dtype", "params_dtype")

ESSENTIAL = frozenset({*LAYER_KEYS, *HIDDEN_KEYS, *HEAD_KEYS})
"""never taken from an architecture's defaults, except inside a wrapper, where files leave out what equals them"""


class Layer(NamedTuple):
    """One layer as it is served."""

    mixer: Mixer
    feed: Feed
    attention: Heads | None
    mixer_params: int
    width: int
    feed_params: int
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
    experts: Experts | None
    recurrent: Recurrent | None


def describe(config: Mapping[str, Any], *, name: str, where: str) -> Model:
    """The Model of a config.json. Raises ModelProblem naming the key that is missing or makes no sense.

    An architecture that profiles/architectures does not know gets known=False and a note, as long as its layers, width and
    heads stand under any usual key.
    """
    values, wrapped = language_model(config)
    if config.get("is_encoder_decoder") is True or values.get("is_encoder_decoder") is True:
        raise ModelProblem(
            "an encoder-decoder model: its decoder attends to an encoder's output, which is not modelled here",
            where=where,
            hint="this program plans for decoder language models",
        )
    family = find_family(values, config, where=where)
    nested = values is not config
    defaults = family.defaults if nested else {k: v for k, v in family.defaults.items() if k not in ESSENTIAL}
    read = Configuration(values, where=where, defaults=defaults)
    notes: list[str] = []
    sizes = _sizes(read, family, notes)
    layers = _layers(read, sizes, notes)
    if wrapped:
        notes.append("Only the language model is counted; the other modalities' encoders are not.")
    if "auto_map" in config or "auto_map" in values:
        notes.append("config.json names code of its own (auto_map); it is never run here.")
    return _model(read, family, sizes, layers, name=name, architecture=_architecture(config, values), notes=notes)


def _architecture(*configs: Mapping[str, Any]) -> str:
    for config in configs:
        listed = config.get("architectures")
        if isinstance(listed, list) and listed and isinstance(listed[0], str):
            return listed[0][:120]
    return "unknown"


def _sizes(config: Configuration, family: Family, notes: list[str]) -> Sizes:
    layers = config.needed("number of layers", *LAYER_KEYS, kind="layers")
    hidden = config.needed("hidden size", *HIDDEN_KEYS, kind="hidden")
    vocab = config.needed("vocabulary size", *VOCAB_KEYS, kind="vocab")
    gated = family.gated if family.gated is not None else is_gated(config)
    if gated is None:
        gated = True
        notes.append("config.json names no activation; the MLP is taken to have a gate (three matrices).")
    tied = config.flag("tie_word_embeddings", "tie_embeddings", "share_embeddings")
    if tied is None:
        tied = False
        notes.append("config.json does not say whether the output head shares the embedding's weights; counted as separate.")
    heads = read_heads(config, hidden)
    mla = read_mla(config)
    if mla is not None:
        heads = mla_heads(config, hidden, heads.heads, mla)
    return Sizes(
        layers, hidden, vocab, gated, tied, heads, mla, window_size(config), read_experts(config),
        read_recurrent(config, hidden, heads.heads, heads.key_dim),
    )  # fmt: skip


def _layers(config: Configuration, sizes: Sizes, notes: list[str]) -> list[Layer]:
    """Every layer of the model. Raises ModelProblem."""
    whole = sizes.heads
    blocks = read_blocks(config, sizes.layers, sizes.hidden, whole.heads, whole.key_dim)
    if blocks is not None:
        return [
            Layer(b.mixer, b.feed, b.attention, b.mixer_params, b.width,
                  mlp_params(sizes.hidden, b.width, gated=sizes.gated) if b.feed_params is None else b.feed_params)
            for b in blocks
        ]  # fmt: skip
    kinds = layer_kinds(config, sizes.layers, has_experts=sizes.experts is not None)
    notes += kinds.notes
    mixers = [("full" if mixer == "local" and sizes.window is None else mixer) for mixer in kinds.mixers]
    compressed = read_compressed(config, sizes.layers, sizes.hidden, whole.heads, whole.key_dim)
    global_heads = whole if sizes.mla else read_global_heads(config, sizes.hidden, whole)
    local_heads = whole if sizes.mla else read_local_heads(config, sizes.hidden, whole)
    recurrent_params = sizes.recurrent.params_per_layer if sizes.recurrent else 0
    width = _dense_width(config, sizes, kinds.feeds)
    shared_from = sizes.layers - (config.number("num_kv_shared_layers", low=0) or 0)
    found = []
    for index, (mixer, feed) in enumerate(zip(mixers, kinds.feeds, strict=True)):
        heads = local_heads if mixer == "local" else global_heads if mixer in ("full", "parallel") else None
        if compressed is not None:
            entry = compressed[index]
            mixer = "full" if entry.ratio else "local"
            heads = whole._replace(cache=entry.cache, params=entry.params)
        params = (heads.params if heads else 0) + (recurrent_params if mixer in ("recurrent", "parallel") else 0)
        dense = mlp_params(sizes.hidden, width, gated=sizes.gated) if feed == "dense" else 0
        found.append(Layer(mixer, feed, heads, params, width if feed == "dense" else 0, dense, cached=index < shared_from))
    return found


def _dense_width(config: Configuration, sizes: Sizes, feeds: list[Feed]) -> int:
    if "dense" not in feeds:
        return read_width(config, sizes.hidden) or 0
    width = read_width(config, sizes.hidden)
    if width is None:
        width = 4 * sizes.hidden
    return width


def _model(
    config: Configuration, family: Family, sizes: Sizes, layers: list[Layer], *, name: str, architecture: str, notes: list[str]
) -> Model:
    with_cache = [layer for layer in layers if layer.attention is not None and layer.cached]
    whole = [layer.attention for layer in with_cache if layer.mixer != "local" and layer.attention]
    local = [layer.attention for layer in with_cache if layer.mixer == "local" and layer.attention]
    typical = (whole or local or [sizes.heads])[0]
    plain = 2.0 * typical.kv_heads * typical.key_dim
    latent = float(sizes.mla.kv_lora_rank + sizes.mla.qk_rope_head_dim) if sizes.mla else plain
    recurrent_layers = sum(layer.mixer in ("recurrent", "parallel") for layer in layers)
    parts = _parts(config, family, sizes, layers)
    active = sum(parts.values()) - parts.get("experts", 0) + _active_experts(sizes, layers)
    widths = [layer.width for layer in layers if layer.width]
    return Model(
        name=name,
        architecture=architecture,
        known=family.known,
        layers=sizes.layers,
        hidden=sizes.hidden,
        intermediate=round(sum(widths) / len(widths)) if widths else read_width(config, sizes.hidden) or 0,
        gated_mlp=sizes.gated,
        vocab=sizes.vocab,
        tied_embeddings=sizes.tied,
        max_context=config.number(*CONTEXT_KEYS, kind="context"),
        heads=typical.heads,
        kv_heads=typical.kv_heads,
        head_dim=typical.key_dim,
        attention="mla" if sizes.mla else _attention_kind(typical),
        attention_layers=len(with_cache),
        mlp_layers=sum(layer.feed != "none" for layer in layers),
        mla=sizes.mla,
        moe=_moe(sizes, layers),
        window=Window(size=sizes.window, layers=len(local), kv_elements=_differing(local, plain))
        if local and sizes.window
        else None,
        recurrent=sizes.recurrent.model_copy(update={"layers": recurrent_layers})
        if sizes.recurrent and recurrent_layers
        else None,
        kv_elements=_differing(whole, latent),
        indexer_bytes=indexer_bytes(config),
        mtp_layers=config.number(*MTP_KEYS, low=0) or 0,
        params=sum(parts.values()),
        active_params=active,
        params_by_part={part: count for part, count in parts.items() if count},
        dtype=config.text(*DTYPE_KEYS) or "bfloat16",
        notes=(*_unknowns(config, family, sizes, recurrent_layers), *notes),
    )


def _attention_kind(heads: Heads) -> Literal["mha", "gqa", "mqa"]:
    return "mha" if heads.kv_heads == heads.heads else "mqa" if heads.kv_heads == 1 else "gqa"


def _differing(heads: list[Heads], usual: float) -> float | None:
    """The mean cache elements of these layers where it is not the usual number."""
    if not heads:
        return None
    mean = sum(entry.cache for entry in heads) / len(heads)
    return None if mean == usual else mean


def _moe(sizes: Sizes, layers: list[Layer]) -> Moe | None:
    count = sum(layer.feed == "moe" for layer in layers)
    if sizes.experts is None or not count:
        return None
    experts = sizes.experts
    return Moe(
        experts=experts.count, active=experts.active, intermediate=experts.width, layers=count,
        shared_intermediate=experts.shared_width, hidden=experts.latent,
    )  # fmt: skip


def _parts(config: Configuration, family: Family, sizes: Sizes, layers: list[Layer]) -> dict[str, int]:
    """Parameters by part; norms are two vectors a layer and a last one, biases are left out."""
    moe_layers = sum(layer.feed == "moe" for layer in layers)
    each = expert_layer_params(sizes.hidden, sizes.experts, gated=sizes.gated) if sizes.experts else {}
    recurrent = sizes.recurrent.params_per_layer if sizes.recurrent else 0
    states = sum(layer.mixer in ("recurrent", "parallel") for layer in layers)
    positions = config.number(*CONTEXT_KEYS, kind="context") or 0
    return {
        "embedding": sizes.vocab * sizes.hidden,
        "lm_head": 0 if sizes.tied else sizes.vocab * sizes.hidden,
        "attention": sum(layer.mixer_params for layer in layers) - states * recurrent,
        "recurrent": states * recurrent,
        "mlp": sum(layer.feed_params for layer in layers),
        "experts": moe_layers * each.get("experts", 0),
        "shared_experts": moe_layers * each.get("shared_experts", 0),
        "router": moe_layers * each.get("router", 0),
        "norms": (2 * sizes.layers + 1) * sizes.hidden,
        "other": positions * sizes.hidden if family.learned_positions else 0,
    }


def _active_experts(sizes: Sizes, layers: list[Layer]) -> int:
    if sizes.experts is None:
        return 0
    each = expert_layer_params(sizes.hidden, sizes.experts, gated=sizes.gated)
    return sum(layer.feed == "moe" for layer in layers) * (each["active"] - each["shared_experts"] - each["router"])


def _unknowns(config: Configuration, family: Family, sizes: Sizes, recurrent_layers: int) -> list[str]:
    notes = []
    if not family.known:
        called = family.model_type or "this architecture"
        notes.append(
            f"{called} is not in profiles/architectures: sizes are read from the usual keys; layers, caches or parameters that only "
            "its own code knows of are missing."
        )
    if recurrent_layers and sizes.recurrent is not None and sizes.recurrent.kind == "unknown":
        notes.append(f"The state of its {recurrent_layers} recurrent layers is not known; it is counted as nothing.")
    if config.defaulted:
        listed = ", ".join(
            f"{key} {value}" for key, value in sorted(config.defaulted.items()) if not isinstance(value, dict | list)
        )
        notes.append(f"Not in config.json, taken from the defaults of {family.model_type}: {listed}.")
    return notes
