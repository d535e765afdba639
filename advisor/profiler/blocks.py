"""Models whose layers differ from one another: block_configs of neural architecture search (Nemotron Super and Ultra)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from advisor.profiler.attention import Heads, heads_of
from advisor.profiler.configuration import Configuration
from advisor.profiler.layers import Feed, Mixer


class Block(NamedTuple):
    """One layer: its attention (None: none, or a linear stand-in without a cache) and the width of its MLP."""

    mixer: Mixer
    feed: Feed
    attention: Heads | None
    mixer_params: int
    width: int
    feed_params: int | None
    """of a stand-in for the MLP; None: an ordinary MLP of `width`"""


def read_blocks(config: Configuration, layers: int, hidden: int, heads: int, key_dim: int) -> list[Block] | None:
    """One block per layer, None for a model without block_configs. Raises ModelProblem."""
    entries = config.items("block_configs", length=layers)
    if entries is None:
        return None
    return [_block(config, entry, hidden, heads, key_dim) for entry in entries]


def _block(config: Configuration, entry: object, hidden: int, heads: int, key_dim: int) -> Block:
    if not isinstance(entry, Mapping):
        raise config.problem("block_configs", entry, "an object for each layer is expected")
    own = Configuration(entry, where=config.where)
    mixer, attention, mixer_params = _attention(own, _part(entry, "attention"), hidden, heads, key_dim)
    feed, width, feed_params = _feed(own, _part(entry, "ffn", "mlp"), hidden)
    return Block(mixer, feed, attention, mixer_params, width, feed_params)


def _part(entry: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    return next((entry[name] for name in names if isinstance(entry.get(name), Mapping)), {})


def _attention(
    config: Configuration, part: Mapping[str, Any], hidden: int, heads: int, key_dim: int
) -> tuple[Mixer, Heads | None, int]:
    if part.get("no_op") is True:
        return "none", None, 0
    if part.get("replace_with_linear") is True:
        return "none", None, hidden * hidden
    group = config.number("attention.n_heads_in_group", kind="heads")
    kv_heads = config.number("attention.num_key_value_heads", kind="heads")
    if kv_heads is None:
        kv_heads = max(1, heads // group) if group else heads
    window = config.number("attention.window_length", "attention.sliding_window", kind="context")
    found = heads_of(config, hidden, heads, min(kv_heads, heads), key_dim, key_dim)
    return "local" if window else "full", found, found.params


def _feed(config: Configuration, part: Mapping[str, Any], hidden: int) -> tuple[Feed, int, int | None]:
    if part.get("no_op") is True:
        return "none", 0, None
    if part.get("replace_with_linear") is True:
        return "dense", 0, hidden * hidden
    width = config.number("ffn.intermediate_size", "mlp.intermediate_size", kind="intermediate")
    if width is None:
        width = round_up(int(2 * (config.ratio("ffn.ffn_mult", "mlp.ffn_mult") or 4.0) * hidden / 3), 256)
    return "dense", width, None


def round_up(value: int, multiple: int) -> int:
    """The next multiple (find_multiple of the DeciLM reference code)."""
    return -(-value // multiple) * multiple
