"""MLPs and mixtures of experts: widths and parameters of one layer."""

from __future__ import annotations

from typing import NamedTuple

from advisor.profiler.configuration import Configuration

GATED_ACTIVATIONS = ("silu", "swish", "swiglu", "swigluoai", "geglu", "situ", "gelu_pytorch_tanh")
"""activations that architectures use with a gate, unless profiles/architectures says otherwise"""
EXPERT_KEYS = (
    "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "ffn_config.moe_num_experts", "n_experts",
    "num_moe_experts", "moe_config.num_experts",
)  # fmt: skip
ACTIVE_KEYS = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k",
    "ffn_config.moe_top_k", "num_selected_experts", "experts_per_tok", "moe_config.top_k",
)  # fmt: skip
EXPERT_WIDTH_KEYS = (
    "moe_intermediate_size", "expert_ffn_hidden_size", "moe_ffn_hidden_size", "expert_intermediate_size", "expert_hidden_size",
    "expert_dim", "moe_expert_intermediate_size",
)  # fmt: skip
SHARED_WIDTH_KEYS = (
    "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size", "share_expert_dim", "shared_intermediate_size",
    "shared_expert_dim",
)  # fmt: skip
SHARED_COUNT_KEYS = ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert", "n_shared_expert")
WIDTH_KEYS = (
    "intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "d_ff", "ffn_config.ffn_hidden_size", "inner_hidden_size",
    "feed_forward_size", "mlp_hidden_size", "block_ff_dim", "dim_ff", "mlp_dim", "ff_dim",
)  # fmt: skip


class Experts(NamedTuple):
    """One layer with experts."""

    number: int
    active: int
    width: int
    shared_width: int
    latent: int | None


def one_number(config: Configuration, *names: str, low: int = 1, kind: str = "any") -> int | None:
    """A number, or the one of a list of equal ones (Hunyuan and ERNIE give lists); the largest when they differ."""
    name, value = config.find(*names)
    if isinstance(value, list) and value:
        return max(config.checked(name, entry, low=low, kind=kind) for entry in value)
    return config.number(*names, low=low, kind=kind)


def read_experts(config: Configuration, hidden: int) -> Experts | None:
    """The mixture of experts of a layer, None for a model without. Raises ModelProblem."""
    count = one_number(config, *EXPERT_KEYS, low=0, kind="experts")
    if not count or count == 1 or config.flag("enable_moe_block") is False or config.flag("is_moe") is False:
        return None
    active = one_number(config, *ACTIVE_KEYS, kind="experts")
    if active is None or active > count:
        raise config.problem(
            config.find(*ACTIVE_KEYS)[0] or ACTIVE_KEYS[0], active, f"1 to {count} experts per token are possible with {count}"
        )
    width = one_number(config, *EXPERT_WIDTH_KEYS, kind="intermediate") or one_number(config, *WIDTH_KEYS, kind="intermediate")
    if width is None:
        raise config.problem(EXPERT_WIDTH_KEYS[0], None, "the width of an expert is needed")
    shared_count = one_number(config, *SHARED_COUNT_KEYS, low=0)
    shared = one_number(config, *SHARED_WIDTH_KEYS, low=0, kind="intermediate")
    if shared is None:
        shared = (shared_count or 0) * width
    elif shared_count == 0 and not config.has("shared_expert_intermediate_size"):
        shared = 0
    if config.trait("dense_beside_experts"):
        shared += (config.trait("attentions_per_layer") or 1) * (read_width(config, hidden) or 0)
    latent = config.number("moe_latent_size", "routed_expert_hidden_size", "moe_hidden_size", kind="hidden")
    return Experts(count, active, width, shared, latent)


def read_width(config: Configuration, hidden: int) -> int | None:
    """Width of a dense MLP layer, None when the configuration names none. Raises ModelProblem."""
    width = one_number(config, "intermediate_size_mlp", "dense_intermediate_size", *WIDTH_KEYS, kind="intermediate")
    if config.find("num_local_experts")[1] == 0:
        width = one_number(config, "shared_intermediate_size", low=0, kind="intermediate") or width
    if width is not None:
        return adjusted(config, width)
    ratio = config.ratio("expansion_ratio", "mlp_ratio", "mlp_expansion_factor", "ffn_mult")
    return None if ratio is None else max(1, int(ratio * hidden))


def adjusted(config: Configuration, width: int) -> int:
    """The width really built: some architectures halve it (RecurrentGemma, Qwen 1) or take two thirds (LFM2)."""
    if config.trait("halved_mlp"):
        return max(1, width // 2)
    if config.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3 * (config.ratio("block_ffn_dim_multiplier") or 1.0))
        multiple = config.number("block_multiple_of") or 256
        return -(-width // multiple) * multiple
    return width


def is_gated(config: Configuration) -> bool | None:
    """Whether the MLP has a gate, as far as the activation tells; None when it does not."""
    name = config.text("hidden_act", "mlp_hidden_act", "hidden_activation", "activation_function", "ffn_config.ffn_act_fn.name",
                       "activation", "act_fn", "hidden_activation_function")  # fmt: skip
    return None if name is None else name.lower() in GATED_ACTIVATIONS


def mlp_params(inner: int, width: int, *, gated: bool) -> int:
    """Two matrices, three with a gate."""
    return (3 if gated else 2) * inner * width


def expert_layer_params(hidden: int, experts: Experts, *, gated: bool) -> dict[str, int]:
    """Parameters of one layer with experts, by part; `active` is what one token uses of them."""
    inner = experts.latent or hidden
    each = mlp_params(inner, experts.width, gated=gated)
    latent = 2 * hidden * experts.latent if experts.latent else 0
    router = hidden * experts.number
    shared = mlp_params(hidden, experts.shared_width, gated=gated)
    return {
        "experts": experts.number * each + latent, "shared_experts": shared, "router": router,
        "active": experts.active * each + latent + shared + router,
    }  # fmt: skip
