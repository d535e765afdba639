"""Numbers for people: three significant figures, thousands separators, a dash for what is not known."""

from __future__ import annotations

import math
from decimal import ROUND_HALF_UP, Context

from advisor.types import KvFormat, Scalar, WeightFormat

UNKNOWN = "–"

WEIGHTS: dict[WeightFormat, str] = {
    "bf16": "BF16",
    "fp8": "FP8",
    "fp8_rowwise": "FP8 row-wise",
    "fp8_block": "FP8 block-scaled",
    "int8_sq": "INT8 SmoothQuant",
    "int8_wo": "INT8 weight-only",
    "int4_awq": "INT4 AWQ",
    "int4_gptq": "INT4 GPTQ",
    "w4a8_awq": "W4A8 AWQ",
    "nvfp4": "NVFP4",
    "mxfp4": "MXFP4",
}
ACTIVATIONS: dict[WeightFormat, str] = {
    "bf16": "",
    "fp8": "FP8 activations",
    "fp8_rowwise": "FP8 activations",
    "fp8_block": "FP8 activations",
    "int8_sq": "INT8 activations",
    "int8_wo": "16-bit activations",
    "int4_awq": "16-bit activations",
    "int4_gptq": "16-bit activations",
    "w4a8_awq": "FP8 activations",
    "nvfp4": "NVFP4 activations",
    "mxfp4": "",
}
KV_CACHE: dict[KvFormat, str] = {"bf16": "BF16", "fp8": "FP8", "int8": "INT8", "nvfp4": "NVFP4"}


def figure(value: float | None, digits: int = 3) -> str:
    """An estimate or a measurement: `digits` significant figures. None and what is no number: a dash."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    # a tie goes up, as in the page's script; Python's own formatting would take it to the even digit
    rounded = float(Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(value))
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}" if decimals <= 9 else f"{rounded:.{digits - 1}e}"


def given(value: Scalar) -> str:
    """A fact as it was given: whole numbers whole, others to six significant figures, yes and no, a dash for None."""
    if value is None:
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return UNKNOWN
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.6g}" if abs(value) >= 1e-4 else f"{value:.3g}"


def pair(left: Scalar, right: Scalar) -> tuple[str, str]:
    """Both sides of a comparison, with as many figures as it takes to tell them apart."""
    if isinstance(left, str | bool) or isinstance(right, str | bool) or left is None or right is None:
        return _side(left), _side(right)
    for digits in (3, 4, 5, 6, 9):
        texts = _side(left, digits), _side(right, digits)
        if left == right or texts[0] != texts[1]:
            break
    return texts


def _side(value: Scalar, digits: int = 3) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float) and not value.is_integer():
        return figure(value, digits)
    return given(value)


def span(low: float | None, high: float | None, joint: str = "–") -> str:
    """A range to two figures: "0.1–0.6"."""
    if low is None or high is None:
        return UNKNOWN
    left, right = (given(float(f"{value:.2g}")) for value in (low, high))
    return left if left == right else f"{left}{joint}{right}"


def change(before: float | None, after: float | None) -> str | None:
    """The relative change in percent, signed: "+45 %"; None when either is not known."""
    if not before or after is None:
        return None
    factor = after / before
    if factor >= 3:
        return f"×{figure(factor)}"
    percent = 100 * (factor - 1)
    if abs(percent) < 0.05:
        return "±0 %"
    sign = "+" if percent > 0 else "−"
    return f"{sign}{figure(abs(percent), 2)} %"


def params(count: int | None) -> str:
    """Parameters: "8.03 B"."""
    if count is None:
        return UNKNOWN
    return f"{figure(count / 1e9)} B" if count >= 1e9 else f"{figure(count / 1e6)} M"
