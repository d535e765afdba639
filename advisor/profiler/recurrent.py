"""Layers with a state of fixed size: Mamba 1 and 2, gated delta net, Kimi delta attention, lightning attention, RG-LRU, RWKV,
short convolutions. Sizes follow transformers' reference implementations of each.
"""

from __future__ import annotations

import math

from advisor.profiler.configuration import Configuration
from advisor.types import Recurrent

HEADS = ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "ssm_num_heads", "num_heads")
HEAD_DIM = ("mamba_head_dim", "mamba_d_head", "mamba_headdim", "ssm_head_dim", "head_dim")
STATE = ("ssm_state_size", "mamba_d_state", "state_size", "mamba_state_dim", "ssm_d_state")
GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups", "ssm_n_groups")
KERNEL = ("conv_kernel", "mamba_d_conv", "mamba_conv_dim", "conv1d_width", "ssm_d_conv")
STATE_DTYPE = ("mamba_ssm_cache_dtype", "mamba_ssm_dtype", "ssm_state_dtype", "ssm_dtype")


def read_recurrent(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent:
    """State, convolution and parameters of one recurrent layer; sizes 0 when the kind is not known. `layers` is left 0."""
    for read in (_delta_net, _kimi_delta, _short_convolution, _griffin, _lightning, _mamba):
        found = read(config, hidden, heads, head_dim)
        if found is not None:
            dtype = config.text(*STATE_DTYPE)
            return found.model_copy(update={"state_dtype": dtype}) if dtype in ("float32", "bfloat16", "float16") else found
    return Recurrent(kind="unknown", layers=0, state_elements=0)


def _delta_net(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """Gated delta net (Qwen3-Next): one key x value matrix per value head."""
    value_heads = config.number("linear_num_value_heads", kind="heads")
    if value_heads is None:
        return None
    key_heads = config.number("linear_num_key_heads", kind="heads") or value_heads
    key_dim = config.number("linear_key_head_dim", kind="head_dim") or 128
    value_dim = config.number("linear_value_head_dim", kind="head_dim") or 128
    kernel = config.number("linear_conv_kernel_dim") or 4
    keys, values = key_heads * key_dim, value_heads * value_dim
    channels = 2 * keys + values
    params = (
        hidden * (2 * keys + 2 * values + 2 * value_heads) + channels * kernel + values * hidden + 2 * value_heads + value_dim
    )
    return Recurrent(
        kind="gated delta net", layers=0, state_elements=value_heads * key_dim * value_dim,
        conv_elements=channels * (kernel - 1), params_per_layer=params,
    )  # fmt: skip


def _kimi_delta(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """Kimi delta attention: separate convolutions on Q, K and V, low-rank or full-rank gates."""
    count = config.number("linear_attn_config.num_heads", "linear_num_heads", kind="heads")
    if count is None:
        return None
    width = config.number("linear_attn_config.head_dim", "linear_head_dim", kind="head_dim") or head_dim
    kernel = config.number("linear_attn_config.short_conv_kernel_size", "short_conv_kernel_size", "linear_conv_kernel_dim") or 4
    inner = count * width
    full_rank = config.flag("linear_attn_config.use_full_rank_gate", "kda_safe_gate")
    gate = hidden * inner if full_rank else (hidden + inner) * width
    params = 4 * hidden * inner + 3 * inner * kernel + 2 * gate + hidden * count + count + inner + width
    return Recurrent(
        kind="Kimi delta attention", layers=0, state_elements=count * width * width,
        conv_elements=3 * inner * (kernel - 1), params_per_layer=params,
    )  # fmt: skip


def _short_convolution(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """LFM2: a gated convolution over the last few tokens, no other state."""
    kernel = config.number("conv_L_cache")
    if kernel is None:
        return None
    return Recurrent(
        kind="short convolution", layers=0, state_elements=0, conv_elements=hidden * (kernel - 1),
        params_per_layer=hidden * (4 * hidden + kernel),
    )  # fmt: skip


def _griffin(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """RG-LRU of RecurrentGemma: a diagonal recurrence with block-diagonal gates."""
    width = config.number("lru_width", kind="intermediate") or (hidden if config.has("conv1d_width") else None)
    if width is None:
        return None
    kernel = config.number("conv1d_width") or 4
    params = 3 * hidden * width + width * kernel + 2 * width * width // heads + 3 * width
    return Recurrent(kind="RG-LRU", layers=0, state_elements=width, conv_elements=width * (kernel - 1), params_per_layer=params)


def _lightning(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """Lightning attention of MiniMax-Text-01: a head_dim x head_dim state per head, an output gate."""
    if config.text("model_type") not in ("minimax", "minimax_text_01") and not config.has("attn_type_list", "linear_silu"):
        return None
    inner = heads * head_dim
    return Recurrent(
        kind="lightning attention",
        layers=0,
        state_elements=heads * head_dim * head_dim,
        params_per_layer=5 * hidden * inner + inner,
    )


def _mamba(config: Configuration, hidden: int, heads: int, head_dim: int) -> Recurrent | None:
    """Mamba 2 when it has heads of its own, else Mamba 1."""
    state = config.number(*STATE)
    if state is None:
        return None
    kernel = config.number(*KERNEL) or 4
    expand = config.ratio("mamba_expand", "expand", "ssm_expand") or 2.0
    inner = config.number(
        "mamba_d_ssm", "ssm_d_inner", "intermediate_size" if config.text("model_type") == "mamba" else "mamba_d_ssm"
    )
    own_heads = HEADS if config.text("model_type") == "mamba2" else HEADS[:-1]
    count = config.number(*own_heads, kind="heads")
    if count is None or not config.has(*GROUPS, *HEAD_DIM[:-1]):
        return _mamba_1(config, hidden, inner or int(expand * hidden), state, kernel)
    own_dims = HEAD_DIM if config.text("model_type") == "mamba2" else HEAD_DIM[:-1]
    given = config.find(*own_dims)[1]
    width = None if isinstance(given, str) else config.number(*own_dims, kind="head_dim")
    inner = inner or (count * width if width else int(expand * hidden))
    width = width or max(1, inner // count)
    groups = config.number(*GROUPS) or 1
    channels = inner + 2 * groups * state
    params = hidden * (inner + channels + count) + channels * (kernel + 1) + 3 * count + inner + inner * hidden
    return Recurrent(
        kind="Mamba 2",
        layers=0,
        state_elements=count * width * state,
        conv_elements=channels * (kernel - 1),
        params_per_layer=params,
    )


def _mamba_1(config: Configuration, hidden: int, inner: int, state: int, kernel: int) -> Recurrent:
    given = config.find("mamba_dt_rank", "time_step_rank")[1]
    rank = config.number("mamba_dt_rank", "time_step_rank") if isinstance(given, int) else math.ceil(hidden / 16)
    rank = rank or math.ceil(hidden / 16)
    params = (
        2 * hidden * inner
        + inner * (kernel + 1)
        + inner * (rank + 2 * state)
        + rank * inner
        + inner * (state + 2)
        + inner * hidden
    )
    return Recurrent(
        kind="Mamba", layers=0, state_elements=inner * state, conv_elements=inner * (kernel - 1), params_per_layer=params
    )
