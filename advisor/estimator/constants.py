"""Op constants of a GPU (profiles/constants), loaded when first asked for, one GPU at a time.

A GPU that was never fitted takes the constants of the nearest fitted one of its generation with its own datasheet peaks
(the trial's ablation: 10 to 16 % instead of 9 %), and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from advisor import library
from advisor.types import Gpu, TensorRates

DONORS = ((120, "rtx-pro-6000-blackwell-server"), (103, "b300"), (100, "b200"), (90, "h100-sxm-80gb"), (89, "l40s"))
OLDEST_DONOR = "a100-sxm-80gb"


class Constants(NamedTuple):
    """Peaks in bytes/s and FLOP/s (None: no such unit, or not known), and the fitted vectors by op and format."""

    gpu: str
    own: str | None
    """the id of the GPU asked for"""
    fitted: bool
    """False: constants of another GPU with this one's own peaks"""
    bandwidth: float
    peaks: Mapping[str, float | None]
    """bf16, fp8, int8, fp4 -> FLOP/s"""
    ops: Mapping[str, Mapping[str, Mapping[str, Any]]]
    link: str | None
    link_bytes: float
    """per GPU and direction, bytes/s; 0 when not known"""


def donor(gpu: Gpu) -> str:
    """The fitted GPU whose constants describe this one best."""
    if gpu.id in library.profile_names("constants"):
        assert gpu.id is not None
        return gpu.id
    return next((name for sm, name in DONORS if (gpu.sm or 0) >= sm), OLDEST_DONOR)


def constants_of(gpu: Gpu) -> Constants | None:
    """The GPU's constants; None when its bandwidth or its 16-bit peak is not known (no time can be estimated then)."""
    return _constants(donor(gpu), gpu.id, gpu.bandwidth_gb_s or 0.0, gpu.tflops, gpu.link, gpu.link_gb_s or 0.0)


@cache
def _constants(
    name: str, gpu: str | None, own_gb_s: float, own: TensorRates, link: str | None, link_gb_s: float
) -> Constants | None:
    """The same value for every GPU of this kind, however many there are."""
    data = library.profile("constants", name)
    if data is None:
        return None
    fitted = name == gpu
    if fitted:
        peaks = data["peaks"]
        rates = {key: _scaled(peaks[f"{key}_tflops"]) for key in ("bf16", "fp8", "int8", "fp4")}
        bandwidth = peaks["bandwidth_gb_s"] * 1e9
    else:
        rates = {
            "bf16": _scaled(own.bf16 or own.fp16),
            "fp8": _scaled(own.fp8),
            "int8": _scaled(own.int8),
            "fp4": _scaled(own.fp4),
        }
        bandwidth = own_gb_s * 1e9
    if not bandwidth or not rates["bf16"]:
        return None
    return Constants(name, gpu, fitted, bandwidth, rates, data, link, link_gb_s * 1e9)


def _scaled(tflops: float | None) -> float | None:
    return None if tflops is None else tflops * 1e12
