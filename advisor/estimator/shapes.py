"""The matrices of a model: one list that memory (bytes) and step time (multiplications) both read.

Sizes are those of the reference implementations of the architectures (transformers' modeling files): Q, K and V are
fused into one multiplication, gate and up into another, as serving engines do.
"""

from __future__ import annotations

from fnmatch import fnmatch
from functools import cache
from typing import Literal, NamedTuple

from advisor.estimator.remembering import by_identity
from advisor.types import Model, Recurrent, WeightFormat

Group = Literal["attention", "mlp", "shared", "experts", "router", "recurrent", "embedding", "lm_head", "other"]
Split = Literal["out", "in", "none"]

WEIGHT_BITS: dict[str, int] = {
    "bf16": 16, "fp8": 8, "fp8_rowwise": 8, "fp8_block": 8, "int8_sq": 8, "int8_wo": 8,
    "int4_awq": 4, "int4_gptq": 4, "w4a8_awq": 4, "nvfp4": 4, "mxfp4": 4,
}  # fmt: skip
QUANTIZED_GROUPS: dict[str, frozenset[Group]] = {
    # gpt-oss ships only its experts in MXFP4 (model card of openai/gpt-oss-120b)
    "mxfp4": frozenset({"experts"}),
}
CONVOLVED = 3
"""tokens that a recurrent layer's convolution remembers (kernel 4 in Mamba-2 and in gated delta nets)"""
EVERY_LINEAR: frozenset[Group] = frozenset({"attention", "mlp", "shared", "experts", "recurrent"})
PLAIN_LINEAR = EVERY_LINEAR - {"experts"}
"""those that every token goes through"""


class Matrix(NamedTuple):
    """`layers` copies of an [inputs, outputs] matrix, `experts` of them in each layer."""

    name: str
    group: Group
    inputs: int
    outputs: int
    layers: int
    split: Split
    """which side tensor parallelism divides"""
    experts: int = 1

    @property
    def elements(self) -> int:
        return self.inputs * self.outputs * self.layers * self.experts


@by_identity(64)
def matrices(model: Model) -> tuple[Matrix, ...]:
    """Every matrix of the model; what Model.params counts beyond them is one "other" entry (vision towers, norms, biases)."""
    found = [*_attention(model), *_mlp(model)]
    if model.recurrent is not None:
        found += _recurrent(model, model.recurrent)
    found += _beyond(model, found)
    found.append(Matrix("model.embed_tokens", "embedding", model.vocab, model.hidden, 1, "in"))
    if not model.tied_embeddings:
        found.append(Matrix("lm_head", "lm_head", model.hidden, model.vocab, 1, "out"))
    rest = (model.params or 0) - sum(matrix.elements for matrix in found)
    if rest > 0:
        found.append(Matrix("other", "other", 1, rest, 1, "none"))
    return tuple(found)


def _beyond(model: Model, found: list[Matrix]) -> list[Matrix]:
    """What the checkpoint's parts hold beyond the matrices found: output gates, indexers, latent projections."""
    extra = []
    pairs: tuple[tuple[str, Group], ...] = (
        ("attention", "attention"), ("recurrent", "recurrent"), ("mlp", "mlp"), ("shared_experts", "shared"),
    )  # fmt: skip
    for part, group in pairs:
        missing = model.params_by_part.get(part, 0) - sum(matrix.elements for matrix in found if matrix.group == group)
        layers = {"attention": model.attention_layers, "recurrent": model.recurrent.layers if model.recurrent else 0}.get(
            part, model.mlp_layers
        )
        if layers and missing > 0.02 * model.params_by_part.get(part, 0):
            width = round(missing / layers / model.hidden)
            extra.append(Matrix(f"model.layers.*.{part}.more", group, model.hidden, width, layers, "out"))
    return extra


def _attention(model: Model) -> list[Matrix]:
    prefix, layers, hidden = "model.layers.*.self_attn", model.attention_layers, model.hidden
    if layers == 0:
        return []
    if model.mla is None:
        width, cache = model.heads * model.head_dim, model.kv_heads * model.head_dim
        return [
            Matrix(f"{prefix}.qkv_proj", "attention", hidden, width + 2 * cache, layers, "out"),
            Matrix(f"{prefix}.o_proj", "attention", width, hidden, layers, "in"),
        ]
    mla = model.mla
    query = model.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim)
    down = mla.kv_lora_rank + mla.qk_rope_head_dim
    found = []
    if mla.q_lora_rank is None:
        found.append(Matrix(f"{prefix}.q_proj", "attention", hidden, query, layers, "out"))
    else:
        found.append(Matrix(f"{prefix}.q_b_proj", "attention", mla.q_lora_rank, query, layers, "out"))
        down += mla.q_lora_rank
    return [
        *found,
        Matrix(f"{prefix}.kv_a_proj_with_mqa", "attention", hidden, down, layers, "none"),
        Matrix(
            f"{prefix}.kv_b_proj", "attention", mla.kv_lora_rank,
            model.heads * (mla.qk_nope_head_dim + mla.v_head_dim), layers, "out",
        ),
        Matrix(f"{prefix}.o_proj", "attention", model.heads * mla.v_head_dim, hidden, layers, "in"),
    ]  # fmt: skip


def _mlp(model: Model) -> list[Matrix]:
    moe_layers = model.moe.layers if model.moe else 0
    found = _pair(model, "model.layers.*.mlp", "mlp", model.intermediate, model.mlp_layers - moe_layers, 1)
    if model.moe is None:
        return found
    moe = model.moe
    found.append(Matrix("model.layers.*.mlp.gate", "router", model.hidden, moe.experts, moe.layers, "none"))
    found += _pair(model, "model.layers.*.mlp.experts.*", "experts", moe.intermediate, moe.layers, moe.experts)
    return found + _pair(model, "model.layers.*.mlp.shared_experts", "shared", moe.shared_intermediate, moe.layers, 1)


def _pair(model: Model, prefix: str, group: Group, width: int, layers: int, experts: int) -> list[Matrix]:
    if layers <= 0 or width <= 0:
        return []
    up = 2 * width if model.gated_mlp else width
    name = "gate_up_proj" if model.gated_mlp else "up_proj"
    return [
        Matrix(f"{prefix}.{name}", group, model.hidden, up, layers, "out", experts),
        Matrix(f"{prefix}.down_proj", group, width, model.hidden, layers, "in", experts),
    ]


def _recurrent(model: Model, recurrent: Recurrent) -> list[Matrix]:
    """The projection into a recurrent layer and the one out of it.

    The first makes what the convolution takes, gates as wide as the second's input, and little else: with a convolution over
    CONVOLVED tokens before the newest, all outputs and inputs together are conv_elements / CONVOLVED + 2 widths.
    """
    both, prefix = max(2, recurrent.params_per_layer // model.hidden), "model.layers.*.mixer"
    width = min(both - 1, max(1, (both - recurrent.conv_elements // CONVOLVED) // 2))
    return [
        Matrix(f"{prefix}.in_proj", "recurrent", model.hidden, both - width, recurrent.layers, "out"),
        Matrix(f"{prefix}.out_proj", "recurrent", width, model.hidden, recurrent.layers, "in"),
    ]


def is_quantized(matrix: Matrix, model: Model, weights: WeightFormat, keep: tuple[str, ...] = ()) -> bool:
    """Whether this format's usual recipe quantizes the matrix (embeddings, output head and router stay at 16 bits).

    NVFP4 checkpoints of MLA models leave the attention at 16 bits (NVIDIA's DeepSeek-R1-0528-FP4, exclude_modules).
    """
    if weights == "bf16" or matrix.group not in QUANTIZED_GROUPS.get(weights, EVERY_LINEAR):
        return False
    if weights == "nvfp4" and model.mla is not None and matrix.group == "attention":
        return False
    return not any(_kept(matrix.name, pattern) for pattern in keep)


def _kept(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern) or fnmatch(name, f"*{pattern}*")


@cache
def bits_per_element(weights: WeightFormat, group_size: int | None = None) -> float:
    """Bits that one weight takes in memory, its share of the scales and zero points included.

    FP8 per tensor: one FP32 a matrix (nothing). Rowwise and INT8: one FP32 an output row (counted at 4096 inputs).
    Block FP8: FP32 per 128x128. INT4: FP16 scale per group, GPTQ also a 4-bit zero. NVFP4: FP8 per 16. MXFP4: E8M0 per 32.
    """
    group = group_size or 128
    return {
        "bf16": 16.0, "fp8": 8.0, "fp8_rowwise": 8.0 + 32 / 4096, "fp8_block": 8.0 + 32 / 128**2,
        "int8_sq": 8.0 + 32 / 4096, "int8_wo": 8.0 + 32 / 4096, "int4_awq": 4.0 + 16 / group,
        "int4_gptq": 4.0 + 20 / group, "w4a8_awq": 4.0 + 16 / group, "nvfp4": 4.0 + 8 / 16, "mxfp4": 4.0 + 8 / 32,
    }[weights]  # fmt: skip
