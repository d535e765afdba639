"""Time of a dense matrix multiplication, and of what quantization adds before it.

    t = t0 + (C^p + B^p + (kk K)^p)^(1/p) + 2M (q K + o N)/BW
    C = 2K (RN + a0 128 min(R, 128)) / (P ec)        compute on R = max(M, least) rows, tiles of 128 rows included
    B = w NK / (BW eb)                                weights

with P and BW the GPU's peaks and t0, kk, ec, eb, a0, q, o, p fitted per GPU and format on per-operation measurements
(profiles/constants). M tokens, K inputs, N outputs, w bytes a weight. kk K is the time of one tile, which a matrix too small to
fill the GPU takes however few its rows; 2M(qK + oN) what goes in and out, which does not overlap with the multiplication.

Formats that a GPU has no measured kernel for take the 16-bit one's vector. Weight-only formats dequantize on the way: their
multiplications run at a share of the peak, and beyond FEW rows TensorRT-LLM's Hopper kernels multiply a whole tile of rows
however few there are, which is why INT4 wins at a batch of one and loses at eight (ModelOpt benchmark.md, H200, 0.15). vLLM's
kernel on Hopper, Machete, was measured by us and does not (docs/evidence.md; vectors named for an engine are its own kernels').
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.estimator.remembering import by_identity
from advisor.estimator.shapes import WEIGHT_BITS
from advisor.types import WeightFormat

FEW = 4.0
"""rows up to which weight-only formats run vector kernels (TensorRT-LLM's weightOnlyBatchedGemv)"""
FORM = {  # weight format -> (fitted op, peak)
    "bf16": ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "fp8_rowwise": ("fp8", "fp8"), "fp8_block": ("fp8_block", "fp8"),
    "int8_sq": ("int8_sq", "int8"), "int8_wo": ("int8_wo", "bf16"), "int4_awq": ("int4", "bf16"),
    "int4_gptq": ("int4", "bf16"), "w4a8_awq": ("w4a8", "fp8"), "nvfp4": ("nvfp4", "fp4"), "mxfp4": ("mxfp4", "fp4"),
}  # fmt: skip


class Shares(NamedTuple):
    """What a format without a measured kernel reaches of the 16-bit kernel's efficiencies."""

    compute: float
    memory: float
    least: float
    """rows that are multiplied at least"""


class Gemm(NamedTuple):
    """Coefficients of one matrix in one format on one GPU: seconds as a function of M."""

    fixed: float
    per_row: float
    per_tile_row: float
    least_time: float
    """seconds to read the weights, or of one tile, to the power of `power`"""
    power: float
    inverse: float
    linear: float
    least: float
    times: float = 1.0
    """how often one stage's step multiplies by such a matrix"""

    def seconds(self, m: float) -> float:
        """Time of M rows."""
        return total_seconds(in_runs((self,)), m)

    def is_compute_bound(self, m: float) -> bool:
        """Whether M rows take longer to multiply than to move."""
        least: float = self.least_time**self.inverse
        return self.per_row * (self.least if FEW < m < self.least else m) > least


class Run(NamedTuple):
    """Matrices of one kernel, as little as a step has to do for each: it is asked often and is little else than these.

    How often each is multiplied by is in its coefficients: (C^p + B^p + ...)^(1/p) grows as C and B do.
    """

    least: float
    power: float
    inverse: float
    fixed: float
    """seconds of all of them whatever M is"""
    linear: float
    """seconds of all of them for each of M"""
    matrices: tuple[tuple[float, float, float], ...]
    """per_row, per_tile_row, least_time of each"""


def in_runs(gemms: Iterable[Gemm]) -> tuple[Run, ...]:
    """The matrices by kernel."""
    kernels: dict[tuple[float, float, float], list[Gemm]] = {}
    for one in gemms:
        kernels.setdefault((one.least, one.power, one.inverse), []).append(one)
    return tuple(
        Run(
            *kernel,
            sum(one.fixed * one.times for one in run),
            sum(one.linear * one.times for one in run),
            tuple(
                (one.per_row * one.times, one.per_tile_row * one.times, one.least_time * one.times**one.power) for one in run
            ),
        )
        for kernel, run in kernels.items()
    )


def total_seconds(runs: tuple[Run, ...], m: float) -> float:
    """Time of M rows through every matrix as many times as it says."""
    seconds = 0.0
    for least, power, inverse, fixed, linear, matrices in runs:
        rows = least if FEW < m < least else m
        tile = rows if rows < 128 else 128.0
        seconds += fixed + linear * m
        for per_row, per_tile_row, least_time in matrices:
            seconds += ((per_row * rows + per_tile_row * tile) ** power + least_time) ** inverse
    return seconds


def gemm(
    constants: Constants, host: Runtime, weights: WeightFormat, k: float, n: float, bits: float, times: float = 1.0
) -> Gemm:
    """The coefficients of a [K, N] matrix with `bits` per weight, in the kernels of this engine release."""
    vector, peak, shares = _vector(constants, host, weights)
    bandwidth, rate = constants.bandwidth * vector["eb"] * shares.memory, peak * vector["ec"] * shares.compute
    # the factors turn the tables' kernels and their launches into the engine's; its own, timed in a CUDA graph, need neither
    launch, factor = (1.0, 1.0) if vector.get("own") else (host.launch, host.dense(weights, constants.gpu))
    power = vector["p"]
    return Gemm(
        fixed=launch * vector["t0_us"] * 1e-6,
        per_row=factor * 2 * k * n / rate,
        per_tile_row=factor * 2 * k * vector["a0"] * 128 / rate,
        least_time=(n * k * bits / 8 / bandwidth) ** power + (factor * vector["kk_ns"] * 1e-9 * k) ** power,
        power=power,
        inverse=1 / power,
        linear=2 * (vector["q"] * k + vector["o"] * n) / constants.bandwidth,
        least=shares.least,
        times=times,
    )


@by_identity(256, values=1)
def _vector(constants: Constants, host: Runtime, weights: WeightFormat) -> tuple[Mapping[str, Any], float, Shares]:
    """The vector, the peak that it is relative to, and what the format reaches of it where it is not its own."""
    op, unit = FORM[weights]
    table, peak = constants.ops["gemm"], constants.peaks.get(unit)
    own = table.get(f"{host.name}_{op}")
    if own is not None and peak:
        return own, peak, Shares(1.0, 1.0, 0.0)
    if op in table and peak:
        return _as_served(constants, host, weights, table[op]), peak, Shares(1.0, 1.0, 0.0)
    plain = table["bf16"]
    if weights == "int8_sq" and peak:
        return plain, peak, Shares(1.0, 1.0, 0.0)
    if weights == "w4a8_awq" and peak:
        return plain, peak, Shares(host.w4a8_compute, host.w4a8_memory, host.w4a8_rows)
    bf16 = constants.peaks["bf16"]
    assert bf16 is not None
    four = WEIGHT_BITS[weights] == 4  # unpacking 8-bit weights costs about half as much per byte
    return plain, bf16, Shares(host.wo_compute, host.wo_memory if four else (1 + host.wo_memory) / 2, host.wo_rows)


def _as_served(constants: Constants, host: Runtime, weights: WeightFormat, vector: Mapping[str, Any]) -> Mapping[str, Any]:
    """The measured vector less the quantization of activations that engines do not pay.

    The FP8 table quantizes dynamically per tensor, static scales need not; the NVFP4 table quantizes in a kernel of its own,
    which engines fuse into what comes before in part.
    """
    if weights == "fp8":
        quantize = constants.ops.get("quantize", {}).values()
        return {
            **vector,
            "t0_us": max(1.0, vector["t0_us"] - sum(v["t0_us"] for v in quantize)),
            "q": max(0.0, vector["q"] - sum(v["passes"] for v in quantize)),
        }
    if weights == "nvfp4":
        plain = constants.ops["gemm"]["bf16"]
        saved = {key: host.fused_fp4 * max(0.0, vector[key] - plain[key]) for key in ("t0_us", "q")}
        return {**vector, **{key: vector[key] - value for key, value in saved.items()}}
    return vector
