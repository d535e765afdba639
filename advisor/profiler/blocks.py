"""Models whose layers differ from one another.

per_layer_config (transformers 5) overrides any key for single layers; block_configs is the older form of neural
architecture search (Nemotron Super and Ultra); Zamba shares one attention block among several layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from advisor.profiler.configuration import Configuration


class Overrides(NamedTuple):
    """What one layer has instead of the model's own values."""

    values: dict[str, Any]
    """keys of config.json"""
    no_attention: bool = False
    no_mlp: bool = False
    attention_stand_in: bool = False
    """a matrix in place of the attention"""
    mlp_stand_in: bool = False


def read_overrides(config: Configuration, layers: int, hidden: int, heads: int) -> dict[int, Overrides]:
    """The layers that differ, by index from 0. Raises ModelProblem."""
    blocks = config.items("block_configs", length=layers)
    if blocks is not None:
        return {index: _block(config, entry, hidden, heads) for index, entry in enumerate(blocks)}
    per_layer = config.find("per_layer_config")[1]
    if not isinstance(per_layer, Mapping):
        return {}
    found = {}
    for key, entry in per_layer.items():
        if not isinstance(entry, Mapping) or not str(key).isdigit() or not int(str(key)[:6]) < layers:
            raise config.problem("per_layer_config", key, f"an object for layers 0 to {layers - 1} is expected")
        skipped = [str(part) for part in entry.get("skip", ())] if isinstance(entry.get("skip"), list) else []
        found[int(key)] = Overrides(
            {name: value for name, value in entry.items() if name != "skip"},
            no_attention=any("attn" in part or "attention" in part for part in skipped),
            no_mlp=any("mlp" in part or "feed" in part for part in skipped),
        )
    return found


def _block(config: Configuration, entry: object, hidden: int, heads: int) -> Overrides:
    if not isinstance(entry, Mapping):
        raise config.problem("block_configs", entry, "an object for each layer is expected")
    own = Configuration(entry, where=config.where)
    attention, mlp = _part(entry, "attention"), _part(entry, "ffn", "mlp")
    values: dict[str, Any] = {}
    group = own.number("attention.n_heads_in_group", kind="heads")
    kv_heads = own.number("attention.num_key_value_heads", kind="heads")
    if kv_heads is not None or group is not None:
        values["num_key_value_heads"] = kv_heads or max(1, heads // (group or 1))
    window = own.number("attention.window_length", "attention.sliding_window", kind="context")
    if window is not None:
        values["sliding_window"] = window
    width = own.number("ffn.intermediate_size", "mlp.intermediate_size", kind="intermediate")
    ratio = own.ratio("ffn.ffn_mult", "mlp.ffn_mult")
    if width is not None or ratio is not None:
        values["intermediate_size"] = width or round_up(max(1, int(2 * (ratio or 1) * hidden / 3)), 256)
    return Overrides(
        values, attention.get("no_op") is True, mlp.get("no_op") is True,
        attention.get("replace_with_linear") is True, mlp.get("replace_with_linear") is True,
    )  # fmt: skip


def _part(entry: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((entry[name] for name in names if isinstance(entry.get(name), Mapping)), {})


def round_up(value: int, multiple: int) -> int:
    """The next multiple (find_multiple of the DeciLM reference code)."""
    return -(-value // multiple) * multiple


class SharedBlock(NamedTuple):
    """Zamba's attention block: it reads the layer's input beside the embedding, and several layers share its weights."""

    attention: int
    """parameters of the block's attention"""
    mlp: int
    copies: int
    each: int
    """parameters that every layer using it has for itself: its own projection, and Zamba2's adapters"""


def read_shared_block(config: Configuration, hidden: int, heads: int, key_dim: int, width: int) -> SharedBlock | None:
    """The shared attention block, None for a model without one (Zamba's modeling code)."""
    wide = config.number("attention_hidden_size", kind="hidden")
    if wide is None or not config.has("hybrid_layer_ids", "attn_layer_period"):
        return None
    inner = heads * key_dim
    rank = config.number("adapter_rank") or 0
    adapters = rank * (hidden + 2 * width) if config.has("num_mem_blocks") else 0
    copies = config.number("num_mem_blocks") or 1
    return SharedBlock(3 * wide * inner + inner * hidden, 3 * hidden * width, copies, hidden * hidden + adapters)
