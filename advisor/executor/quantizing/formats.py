"""Our own reader of every tensor format that we publish: packed tensors and their scales in, dense weights out.

The bit layouts are those of ModelOpt 0.47's unified export, read from its files. Nothing here knows about models.
`Tensors` are what the file holds under one module's name: weight, weight_scale, weight_scale_2, input_scale, pre_quant_scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from advisor.errors import ModelProblem

Tensor = Any  # torch.Tensor: torch is optional, and heavy
Tensors = Mapping[str, Any]
FP8_MAX = 448.0
FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1 magnitudes by their three low bits; the fourth bit is the sign"""


def decode_weight(algorithm: str, tensors: Tensors, *, where: str) -> Tensor:
    """The dense weight [out, in] in float32 that a quant_algo's tensors stand for.

    Raises ModelProblem for an algorithm that is not read here, a scale that is missing, of a shape that does not fit or not
    finite.
    """
    reader = _WEIGHTS.get(algorithm.upper())
    if reader is None:
        raise ModelProblem(f"weights in {algorithm} are not read here", where=where, hint="choose another format")
    needed = ("weight", "weight_scale", *(("weight_scale_2",) if algorithm.upper() in ("W4A8_AWQ", "NVFP4") else ()))
    for name in needed:
        if name not in tensors:
            raise ModelProblem(f"the exported file has no {name} for {algorithm}", where=where, hint="export it again")
    try:
        dense = reader(tensors)
    except RuntimeError as error:
        raise ModelProblem(
            f"the tensors of {algorithm} do not fit together: {error}", where=where, hint="export it again"
        ) from None
    if not bool(dense.isfinite().all()):
        raise ModelProblem("the decoded weight is not finite", where=where, hint="export it again; the file may be damaged")
    return dense


def quantize_input(algorithm: str, tensors: Tensors) -> Callable[[Tensor], Tensor] | None:
    """What the engine does to a module's input before the product: smoothing, then rounding. None: nothing."""
    smooth = tensors.get("pre_quant_scale")
    rounding = _INPUTS.get(algorithm.upper())
    scale = tensors.get("input_scale")
    if rounding is None and smooth is None:
        return None

    def change(values: Tensor) -> Tensor:
        wide = values.float()
        if smooth is not None:
            wide = wide * smooth.float().to(values.device)
        if rounding is not None:
            wide = rounding(wide, None if scale is None else scale.float().to(values.device))
        return wide.to(values.dtype)

    return change


def round_fp8(values: Tensor, scale: Tensor | float) -> Tensor:
    """values in E4M3 at a scale, back in float32; out of range saturates, as the kernels do."""
    import torch

    return (values / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).float() * scale


def _fp8_tensor(tensors: Tensors) -> Tensor:
    scale = tensors["weight_scale"].float()
    return tensors["weight"].float() * (scale[:, None] if scale.dim() == 1 and scale.numel() > 1 else scale)


def _fp8_blocks(tensors: Tensors) -> Tensor:
    weight, scale = tensors["weight"].float(), tensors["weight_scale"].float()
    scale = scale.reshape(*(-(-size // 128) for size in weight.shape))
    wide = scale.repeat_interleave(128, 0)[: weight.shape[0]].repeat_interleave(128, 1)[:, : weight.shape[1]]
    return weight * wide


def _int8_rows(tensors: Tensors) -> Tensor:
    return tensors["weight"].float() * tensors["weight_scale"].float().reshape(-1, 1)


def _int4_blocks(tensors: Tensors) -> Tensor:
    """uint8 [out/2, in], the low nibble the even row, two's complement; weight_scale [out, in/group]."""
    import torch

    packed, scale = tensors["weight"], tensors["weight_scale"].float()
    nibbles = torch.stack((packed & 0x0F, packed >> 4), dim=1).reshape(-1, packed.shape[1]).to(torch.int16)
    signed = torch.where(nibbles > 7, nibbles - 16, nibbles).float()
    return signed * scale.repeat_interleave(signed.shape[1] // scale.shape[1], 1)


def _int4_in_fp8(tensors: Tensors) -> Tensor:
    """W4A8: the kernel widens INT4 to FP8 at weight_scale_2 before the product."""
    return round_fp8(_int4_blocks(tensors), tensors["weight_scale_2"].float())


def _nvfp4(tensors: Tensors) -> Tensor:
    """uint8 [out, in/2], the low nibble the even column; weight_scale E4M3 [out, in/16] times weight_scale_2."""
    import torch

    packed = tensors["weight"]
    codes = torch.stack((packed & 0x0F, packed >> 4), dim=-1).reshape(packed.shape[0], -1).long()
    table = torch.tensor([*FP4_VALUES, *(-value for value in FP4_VALUES)], device=packed.device)
    scale = tensors["weight_scale"].float() * tensors["weight_scale_2"].float()
    return table[codes] * scale.repeat_interleave(16, 1)


def _input_fp8(values: Tensor, scale: Tensor | None) -> Tensor:
    return values if scale is None else round_fp8(values, scale)


def _input_fp8_token(values: Tensor, _scale: Tensor | None) -> Tensor:
    return round_fp8(values, values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / FP8_MAX)


def _input_fp8_groups(values: Tensor, _scale: Tensor | None) -> Tensor:
    """1 x 128 groups, each at its own scale, as the engines' block-scaled products do."""
    import torch

    width = values.shape[-1]
    padded = torch.nn.functional.pad(values, (0, -width % 128)).unflatten(-1, (-1, 128))
    return _input_fp8_token(padded, None).flatten(-2)[..., :width]


def _input_int8(values: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (values / scale).round().clamp(-128, 127) * scale


def _input_nvfp4(values: Tensor, scale: Tensor | None) -> Tensor:
    """Dynamic blocks of 16 in E2M1, their scales in E4M3 at the tensor's input_scale."""
    import torch

    blocks = values.unflatten(-1, (-1, 16))
    whole = scale if scale is not None else values.abs().max().clamp(min=1e-12) / (6 * FP8_MAX)
    step = round_fp8(blocks.abs().amax(-1, keepdim=True) / 6 / whole, 1.0).clamp(min=2.0**-9) * whole
    table = torch.tensor(FP4_VALUES, device=values.device)
    middles = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize((blocks / step).abs(), middles)
    return (table[codes] * blocks.sign() * step).flatten(-2)


_WEIGHTS: dict[str, Callable[[Tensors], Any]] = {
    "FP8": _fp8_tensor,
    "FP8_PER_CHANNEL_PER_TOKEN": _fp8_tensor,
    "FP8_PB_WO": _fp8_blocks,
    "FP8_BLOCK_SCALES": _fp8_blocks,
    "W8A8_SQ_PER_CHANNEL": _int8_rows,
    "W8A16": _int8_rows,
    "W4A16_AWQ": _int4_blocks,
    "W4A8_AWQ": _int4_in_fp8,
    "NVFP4": _nvfp4,
}
_INPUTS: dict[str, Callable[[Any, Any], Any]] = {
    "FP8": _input_fp8,
    "FP8_PER_CHANNEL_PER_TOKEN": _input_fp8_token,
    "FP8_PB_WO": _input_fp8_groups,
    "FP8_BLOCK_SCALES": _input_fp8_groups,
    "W8A8_SQ_PER_CHANNEL": _input_int8,
    "W4A8_AWQ": _input_fp8,
    "NVFP4": _input_nvfp4,
}
