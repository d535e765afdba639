"""What each layer of a model is: how it mixes tokens (attention, local attention, a recurrent state) and what MLP it has.

Configurations say it in a dozen ways; each reader below takes one and answers None when the configuration does not use it.
Layers are counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from advisor.profiler.configuration import LAYER_KEYS, Configuration

Mixer = Literal["full", "local", "recurrent", "parallel", "none"]
Feed = Literal["dense", "moe", "none"]

MIXERS: dict[str, Mixer] = {
    "full_attention": "full", "attention": "full", "full": "full", "global": "full", "global_attention": "full", "*": "full",
    "indexed_attention": "full", "sparse_attention": "full", "minimax_m3_sparse": "full", "cross_attention": "none",
    "reference_sliding_attention": "full", "deepseek_sparse_attention": "full", "qwen_sparse_attention": "full",
    "compressed_sparse_attention": "full", "heavily_compressed_attention": "full", "mla": "full", "a": "full",
    "sliding_attention": "local", "sliding_window_attention": "local", "sliding": "local", "local": "local", "swa": "local",
    "local_attention": "local", "chunked_attention": "local", "local_sliding": "local", "window": "local",
    "window_attention": "local", "hybrid_sliding": "local", "sparse_sliding_attention": "local",
    "linear_attention": "recurrent", "mamba": "recurrent", "mamba2": "recurrent", "recurrent": "recurrent", "m": "recurrent",
    "conv": "recurrent", "short_conv": "recurrent", "kda": "recurrent", "gdn": "recurrent", "lightning": "recurrent",
    "gated_deltanet": "recurrent", "gated_delta_net": "recurrent", "lightning_attention": "recurrent",
    "ssm": "recurrent", "rwkv": "recurrent",
    "hybrid": "parallel", "hybrid_attention": "parallel", "attention_mamba": "parallel",
    "moe": "none", "mlp": "none", "-": "none", "e": "none", "no_op": "none",
}  # fmt: skip
"""the words of layer_types, layers_block_type and hybrid_override_pattern, lower case"""
MLP_ONLY = {"-": "dense", "mlp": "dense", "e": "moe", "moe": "moe"}
"""entries of a pattern in which a layer is either a mixer or an MLP (Nemotron-H)"""


class Kinds(NamedTuple):
    """One entry per layer, and what could not be read."""

    mixers: list[Mixer]
    feeds: list[Feed]
    notes: list[str]


def layer_count(config: Configuration) -> int:
    """The number of layers, from its own key or from a list that has an entry for each. Raises ModelProblem."""
    if not config.has(*LAYER_KEYS):
        pattern = config.text("hybrid_override_pattern")
        listed = config.items("layers_block_type", "layer_types", "block_configs")
        length = len(pattern) if pattern else len(listed) if listed else 0
        if length:
            return config.checked("layers_block_type", length, kind="layers")
    return config.needed("number of layers", *LAYER_KEYS, kind="layers")


def layer_kinds(config: Configuration, layers: int, *, has_experts: bool) -> Kinds:
    """The kind of every layer. Raises ModelProblem for lists that are too short or of the wrong kind."""
    notes: list[str] = []
    pattern = _pattern(config, layers)
    if pattern is not None and any(entry in MLP_ONLY for entry in pattern):
        mixers = [MIXERS.get(entry, "full") for entry in pattern]
        alone: list[Feed] = [MLP_ONLY.get(entry, "none") for entry in pattern]  # type: ignore[misc]
        return Kinds(mixers, alone, notes)
    if pattern is not None:
        strange = sorted({entry for entry in pattern if entry not in MIXERS})
        if strange:
            notes.append(f"Layers of the kind {', '.join(strange)} are not known here; they are counted as full attention.")
        mixers = [MIXERS.get(entry, "full") for entry in pattern]
        if config.has("attention_window_size"):
            mixers = ["local" if mixer == "full" else mixer for mixer in mixers]
    else:
        mixers = next((found for read in _MIXER_READERS if (found := read(config, layers)) is not None), ["full"] * layers)
    return Kinds(mixers, _feeds(config, layers, has_experts), notes)


def _pattern(config: Configuration, layers: int) -> list[str] | None:
    text = config.text("hybrid_override_pattern", "hybrid_layer_pattern", "layers_block_type")
    if text is not None:
        entries = [letter.lower() for letter in text if letter not in " |"]
        if len(entries) < layers:
            raise config.problem("hybrid_override_pattern", f"{len(entries)} entries", f"{layers} are expected, one a layer")
        return entries[:layers]
    names = ("layers_block_type", "layer_types", "block_types", "_block_types")
    found = config.items(*names)
    if not found or not all(isinstance(entry, str) for entry in found):
        return None
    entries = [entry.lower() for entry in found]
    if "block_types" in config.find(*names)[0]:
        return [entries[index % len(entries)] for index in range(layers)]
    if len(entries) < layers:
        raise config.problem(config.find(*names)[0], f"{len(entries)} entries", f"{layers} are expected, one for each layer")
    return entries[:layers]


def _numbers(config: Configuration, name: str, length: int | None = None) -> list[int] | None:
    found = config.items(name, length=length)
    return None if found is None else [config.checked(name, value, low=-1) for value in found]


def _pick(layers: int, chosen: Callable[[int], bool], yes: Mixer, no: Mixer) -> list[Mixer]:
    return [yes if chosen(index) else no for index in range(layers)]


def _linear_attention_lists(config: Configuration, layers: int) -> list[Mixer] | None:
    """Kimi Linear: 1-based lists of the layers with full attention."""
    full = _numbers(config, "linear_attn_config.full_attn_layers")
    return None if full is None else _pick(layers, lambda index: index + 1 in full, "full", "recurrent")


def _attention_type_list(config: Configuration, layers: int) -> list[Mixer] | None:
    """MiniMax-Text-01: 1 softmax attention, 0 lightning attention."""
    kinds = _numbers(config, "attn_type_list", layers)
    return None if kinds is None else _pick(layers, lambda index: kinds[index] == 1, "full", "recurrent")


def _every_nth_full(config: Configuration, layers: int) -> list[Mixer] | None:
    """Qwen3-Next and 3.5: the last of every full_attention_interval layers attends, the others are recurrent."""
    step = config.number("full_attention_interval", "layer_group_size", kind="layers")
    return None if step is None else _pick(layers, lambda index: (index + 1) % step == 0, "full", "recurrent")


def _attention_among_mamba(config: Configuration, layers: int) -> list[Mixer] | None:
    """Jamba (period and offset), Bamba (attn_layer_indices), Zamba (hybrid_layer_ids), Falcon-H1 (both in every layer)."""
    period = config.number("attn_layer_period", kind="layers")
    if period is not None:
        offset = config.number("attn_layer_offset", low=0) or 0
        return _pick(layers, lambda index: index % period == offset, "full", "recurrent")
    for name, kind in (("attn_layer_indices", "full"), ("hybrid_layer_ids", "parallel"), ("full_attn_idxs", "full")):
        chosen = _numbers(config, name)
        if chosen is not None and config.has("mamba_d_state", "ssm_state_size", "conv_L_cache", "mamba_d_conv"):
            return _pick(layers, lambda index, chosen=chosen: index in chosen, kind, "recurrent")  # type: ignore[misc,arg-type]
    model_type = config.text("model_type") or ""
    if model_type == "falcon_h1":
        return ["parallel"] * layers
    if model_type in ("bamba", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"):
        return ["recurrent"] * layers
    return None


def _named_layers(config: Configuration, layers: int) -> list[Mixer] | None:
    """MiMo-V2 (hybrid_layer_pattern: 1 is local), Llama 4 (no_rope_layers: 1 is chunked), GPT-Neo (attention_types)."""
    if not window_size(config):
        return None
    local = _numbers(config, "hybrid_layer_pattern", layers)
    if local is None and config.has("attention_chunk_size"):
        local = _numbers(config, "no_rope_layers", layers) if config.items("no_rope_layers") else None
        if local is None:
            step = config.number("no_rope_layer_interval", kind="layers") or 4
            return _pick(layers, lambda index: (index + 1) % step == 0, "full", "local")
    if local is not None:
        return _pick(layers, lambda index: local[index] == 1, "local", "full")
    return None


def _patterned_window(config: Configuration, layers: int) -> list[Mixer] | None:
    """Gemma, Cohere, EXAONE: every nth layer is global; Qwen2: layers from max_window_layers on are local; Mistral: all are."""
    if not window_size(config):
        return None
    letters = config.text("sliding_window_pattern", "layer_pattern")
    if letters:
        return _pick(layers, lambda index: letters[index % len(letters)].upper() == "L", "local", "full")
    step = config.number("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers", kind="layers")
    if step is not None:
        return _pick(layers, lambda index: (index + 1) % step == 0, "full", "local")
    first = config.number("max_window_layers", low=0)
    if first is not None and config.has("use_sliding_window"):
        return _pick(layers, lambda index: index >= first, "local", "full")
    return ["local"] * layers


def window_size(config: Configuration) -> int | None:
    """Tokens that a local layer keeps, None when no layer is local (use_sliding_window false, no window, or a window as
    long as the context). Raises ModelProblem."""
    if config.flag("use_sliding_window") is False:
        return None
    name, value = config.find(
        "sliding_window", "attention_chunk_size", "sliding_window_size", "window_size", "local_window_size"
    )
    if not name or value in (0, -1, False):
        return None
    if isinstance(value, list):
        sizes = [config.checked(name, size, kind="context") for size in value if size]
        return max(sizes) if sizes else None
    size = config.checked(name, value, kind="context")
    context = config.number(*CONTEXT_KEYS, kind="context")
    return None if context is not None and size >= context else size


def is_chunked(config: Configuration) -> bool:
    """Whether what window_size says is the length of chunks (Llama 4)."""
    return config.find("sliding_window", "attention_chunk_size")[0] == "attention_chunk_size"


WINDOW_KEYS = (
    "sliding_window", "attention_chunk_size", "sliding_window_size", "attention_window_size", "window_size",
    "local_window_size",
)  # fmt: skip
CONTEXT_KEYS = (
    "max_position_embeddings", "max_sequence_length", "max_seq_len", "max_seq_length", "seq_length", "n_positions", "n_ctx",
    "model_max_length", "seq_len", "max_length_for_position", "context_length",
)  # fmt: skip

_MIXER_READERS: Sequence[Callable[[Configuration, int], list[Mixer] | None]] = (
    _linear_attention_lists, _attention_type_list, _every_nth_full, _attention_among_mamba, _named_layers, _patterned_window,
)  # fmt: skip


def _feeds(config: Configuration, layers: int, has_experts: bool) -> list[Feed]:
    """Which layers have experts. Raises ModelProblem."""
    if not has_experts:
        return ["dense"] * layers
    named = config.items("mlp_layer_types", length=layers)
    if named is not None:
        return ["dense" if entry in ("dense", "mlp") else "moe" for entry in named]
    frequency = _numbers(config, "moe_layer_freq", layers)
    if frequency is not None:
        return ["moe" if value else "dense" for value in frequency]
    chosen = _moe_layers(config, layers)
    return ["moe" if chosen(index) else "dense" for index in range(layers)]


def _moe_layers(config: Configuration, layers: int) -> Callable[[int], bool]:
    enumerated = config.text("moe_layers_enum")
    if enumerated is not None:
        listed = {int(part) for part in enumerated.split(",") if part.strip().isdigit()}
        return lambda index: index in listed
    given = _numbers(config, "moe_layers")
    if given is not None:
        return lambda index: index in given
    period = config.number("expert_layer_period", kind="layers")
    if period is not None:
        offset = config.number("expert_layer_offset", low=0) or 0
        return lambda index: index % period == offset
    interleave = config.number("interleave_moe_layer_step", kind="layers")
    if interleave is not None:
        return lambda index: (index + 1) % interleave == 0
    dense = _numbers(config, "mlp_only_layers") or []
    step = config.number("decoder_sparse_step", "moe_layer_freq", "moe_layer_interval", "moe_layer_frequency", low=0) or 1
    first = config.number(
        "first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", "n_dense_layers", "moe_layer_num_skipped",
        "moe_start_layer_index", "dense_layers", low=0,
    ) or 0  # fmt: skip
    last = config.number("moe_layer_end_index", low=-1)
    end = layers - 1 if last is None or last < 0 else last
    from_one = config.has("decoder_sparse_step", "moe_layer_frequency", "moe_layer_interval")
    return lambda index: index not in dense and first <= index <= end and (index + from_one) % step == 0
