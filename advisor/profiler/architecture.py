"""From a config.json's values to a Model: sizes, layers, cache and parameters by arithmetic.

Nothing here depends on one model; what architectures do differently is in profiles/architectures and in the readers of
sizes, layers, attention, blocks, compressed, feed_forward and recurrent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from advisor.errors import ModelProblem
from advisor.profiler.attention import HEAD_KEYS, Heads, indexer_bytes
from advisor.profiler.configuration import HIDDEN_KEYS, LAYER_KEYS, Configuration, language_model
from advisor.profiler.family import Family, find_family
from advisor.profiler.layers import CONTEXT_KEYS
from advisor.profiler.sizes import Layer, Sizes, active_params, parameter_parts, read_layers, read_sizes
from advisor.types import Model, Moe, Window

MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers", "mtp_num_layers", "num_mtp_modules", "num_mtp_layers")
DTYPE_KEYS = ("dtype", "torch_dtype", "params_dtype")
ESSENTIAL = frozenset({*LAYER_KEYS, *HIDDEN_KEYS, *HEAD_KEYS, *CONTEXT_KEYS})
"""never taken from an architecture's defaults, except inside a wrapper, where files leave out what equals them"""


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
    defaults = family.defaults
    if values is config:
        defaults = {key: value for key, value in defaults.items() if key not in ESSENTIAL}
    read = Configuration(values, where=where, implied=family.implied, defaults=defaults)
    notes: list[str] = []
    sizes = read_sizes(read, gated=family.gated, notes=notes)
    layers = read_layers(read, sizes, notes)
    if wrapped:
        notes.append("Only the language model is counted; the other modalities' encoders are not.")
    if "auto_map" in config or "auto_map" in values:
        notes.append("config.json names code of its own (auto_map); it is never run here.")
    model = _model(read, sizes, layers, name=name, architecture=_architecture(config, values))
    return model.model_copy(update={"known": family.known, "notes": (*_unknowns(read, family, model), *notes)})


def _architecture(*configs: Mapping[str, Any]) -> str:
    for config in configs:
        listed = config.get("architectures")
        if isinstance(listed, list) and listed and isinstance(listed[0], str):
            return listed[0][:120]
        if isinstance(config.get("architecture"), str):
            return str(config["architecture"])[:120]
    return "unknown"


def _model(config: Configuration, sizes: Sizes, layers: list[Layer], *, name: str, architecture: str) -> Model:
    cached = [layer for layer in layers if layer.attention is not None and layer.cached]
    whole = [layer.attention for layer in cached if layer.mixer != "local" and layer.attention]
    local = [layer.attention for layer in cached if layer.mixer == "local" and layer.attention]
    shapes = {(heads.kv_heads, heads.key_dim) for heads in whole + local}
    own = sizes.heads
    typical = own if not shapes or (own.kv_heads, own.key_dim) in shapes else (whole or local)[0]
    plain = 2.0 * typical.kv_heads * typical.key_dim
    latent = float(sizes.mla.kv_lora_rank + sizes.mla.qk_rope_head_dim) if sizes.mla else plain
    times = config.trait("attentions_per_layer") or 1
    states = sum(layer.mixer in ("recurrent", "parallel") for layer in layers)
    parts = parameter_parts(config, sizes, layers)
    widths = [layer.width for layer in layers if layer.width] or [sizes.width]
    return Model(
        name=name,
        architecture=architecture,
        layers=sizes.layers,
        hidden=sizes.hidden,
        intermediate=round(sum(widths) / len(widths)),
        gated_mlp=sizes.gated,
        vocab=sizes.vocab,
        tied_embeddings=sizes.tied,
        max_context=config.number(*CONTEXT_KEYS, kind="context"),
        heads=max(1, typical.heads),
        kv_heads=max(1, typical.kv_heads),
        head_dim=max(1, typical.key_dim),
        attention="mla" if sizes.mla else _attention_kind(typical),
        attention_layers=len(cached) * times,
        mlp_layers=sum(layer.feed == "moe" or layer.width > 0 for layer in layers),
        mla=sizes.mla,
        moe=_moe(sizes, layers),
        window=_window(sizes, local, plain, always=_differing(whole, latent) is not None),
        recurrent=sizes.recurrent.model_copy(update={"layers": states}) if sizes.recurrent and states else None,
        kv_elements=_differing(whole, latent),
        indexer_bytes=indexer_bytes(config) if cached else 0.0,
        mtp_layers=config.number(*MTP_KEYS, low=0) or 0,
        params=sum(parts.values()),
        active_params=active_params(parts, sizes, layers),
        params_by_part={part: count for part, count in parts.items() if count},
        dtype=_dtype(config.text(*DTYPE_KEYS)),
    )


def _dtype(name: str | None) -> str:
    """The type of unquantized tensors; bfloat16 when config.json leaves it out or says something else ("auto")."""
    short = (name or "").removeprefix("torch.")
    return short if short in ("float16", "bfloat16", "float32", "float64") else "bfloat16"


def _attention_kind(heads: Heads) -> Literal["mha", "gqa", "mqa"]:
    return "mha" if heads.kv_heads == heads.heads else "mqa" if heads.kv_heads == 1 else "gqa"


def _window(sizes: Sizes, local: list[Heads], plain: float, *, always: bool) -> Window | None:
    """The local layers; `always`: their cache elements are stated even where they are the usual number, because the global
    layers' are not."""
    if not local or sizes.window is None:
        return None
    elements = _differing(local, plain)
    kept = plain if always and elements is None else elements
    return Window(size=sizes.window, layers=len(local), kv_elements=kept, chunked=sizes.chunked)


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
        experts=experts.number,
        active=experts.active,
        intermediate=experts.width,
        layers=count,
        shared_intermediate=experts.shared_width,
        hidden=experts.latent,
    )


def _unknowns(config: Configuration, family: Family, model: Model) -> list[str]:
    notes = []
    if family.note:
        notes.append(family.note)
    if family.missing:
        notes.append(family.missing)
    elif not family.known:
        called = family.model_type or "this architecture"
        notes.append(
            f"{called} is not in profiles/architectures: its sizes are read from the usual keys; layers, caches or parameters "
            "that only its own code knows of are missing."
        )
    if model.recurrent is not None and model.recurrent.kind == "unknown":
        notes.append(f"The state of its {model.recurrent.layers} recurrent layers is not known; it is counted as nothing.")
    if not model.attention_layers:
        notes.append("No layer has a KV cache; heads, kv_heads and head_dim say nothing about this model.")
    listed = ", ".join(
        f"{key} {value}" for key, value in sorted(config.defaulted.items()) if not isinstance(value, dict | list)
    )
    if listed:
        notes.append(f"Not in config.json, taken from the defaults of {family.model_type}: {listed}.")
    return notes
