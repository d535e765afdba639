"""Time of a dense matrix multiplication, and of what quantization adds before it.

    t = t0 + kk K + (C^p + B^p)^(1/p) + q 2MK/BW
    C = 2K (MN + a0 128 min(M, 128)) / (P ec)        compute, tiles of 128 rows included
    B = (w NK + 2MN) / (BW eb)                        weights and output

with P and BW the GPU's peaks and t0, kk, ec, eb, a0, q, p fitted per GPU and format on per-operation measurements
(profiles/constants; facts/estimator.md section 3 describes the form). M tokens, K inputs, N outputs, w bytes a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.types import WeightFormat

FORM = {  # weight format -> (fitted op, peak, bytes of an activation element read)
    "bf16": ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "fp8_rowwise": ("fp8", "fp8"), "fp8_block": ("fp8_block", "fp8"),
    "int8_sq": ("int8_sq", "int8"), "int8_wo": ("int8_wo", "bf16"), "int4_awq": ("int4", "bf16"),
    "int4_gptq": ("int4", "bf16"), "w4a8_awq": ("int4", "fp8"), "nvfp4": ("nvfp4", "fp4"), "mxfp4": ("bf16", "bf16"),
}  # fmt: skip


class Gemm(NamedTuple):
    """Coefficients of one matrix in one format on one GPU: seconds as a function of M."""

    fixed: float
    per_row: float
    per_tile_row: float
    bytes_fixed: float
    bytes_row: float
    power: float
    inverse: float
    linear: float

    def seconds(self, m: float) -> float:
        """Time of M rows."""
        compute = self.per_row * m + self.per_tile_row * (m if m < 128 else 128.0)
        memory = self.bytes_fixed + self.bytes_row * m
        return float(self.fixed + self.linear * m + (compute**self.power + memory**self.power) ** self.inverse)

    def is_compute_bound(self, m: float) -> bool:
        """Whether M rows take longer to multiply than to move."""
        return self.per_row * m > self.bytes_fixed + self.bytes_row * m


def gemm(constants: Constants, host: Runtime, weights: WeightFormat, k: float, n: float, bits: float) -> Gemm:
    """The coefficients of a [K, N] matrix with `bits` per weight, in the kernels of this engine release."""
    vector, peak, slower = _vector(constants, weights, host.fused_fp4)
    bandwidth, rate = constants.bandwidth, peak * vector["ec"] * slower
    factor = host.dense(weights)
    return Gemm(
        fixed=host.launch * (vector["t0_us"] * 1e-6 + vector["kk_ns"] * 1e-9 * k),
        per_row=factor * 2 * k * n / rate,
        per_tile_row=factor * 2 * k * vector["a0"] * 128 / rate,
        bytes_fixed=n * k * bits / 8 / (bandwidth * vector["eb"]),
        bytes_row=2 * n / (bandwidth * vector["eb"]),
        power=vector["p"],
        inverse=1 / vector["p"],
        linear=vector["q"] * 2 * k / bandwidth,
    )


def _vector(constants: Constants, weights: WeightFormat, fused_fp4: float) -> tuple[Mapping[str, Any], float, float]:
    """The fitted vector, the peak it is relative to, and a factor on compute where the format is emulated."""
    op, unit = FORM[weights]
    table = constants.ops["gemm"]
    peak = constants.peaks.get(unit)
    if op in table and peak:
        vector = table[op]
        if weights == "fp8":  # the fitted table includes a dynamic per-tensor quantization; static scales do without
            quantize = constants.ops.get("quantize", {})
            vector = {
                **vector,
                "t0_us": max(1.0, vector["t0_us"] - sum(v["t0_us"] for v in quantize.values())),
                "q": max(0.0, vector["q"] - sum(v["passes"] for v in quantize.values())),
            }
        if weights == "nvfp4":
            plain = table["bf16"]
            vector = {**vector, **{key: vector[key] + fused_fp4 * min(0.0, plain[key] - vector[key]) for key in ("t0_us", "q")}}
        return vector, peak, 1.0
    bf16 = constants.peaks["bf16"]
    assert bf16 is not None
    if weights == "w4a8_awq" and peak:
        return {**table["bf16"], "t0_us": table["bf16"]["t0_us"] + 2.0}, peak, 0.6
    slower = 0.85 if weights in ("int4_awq", "int4_gptq", "w4a8_awq", "nvfp4", "mxfp4") else 0.9
    return {**table["bf16"], "t0_us": table["bf16"]["t0_us"] + 2.0}, bf16, slower
