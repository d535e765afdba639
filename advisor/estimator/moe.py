"""Time of a mixture-of-experts layer on one GPU.

    t = t0 + t1 local experts + (C^p + B^p)^(1/p) + q 2 rows H / BW
    C = 2 * matrices * H * I * (rows + pad * touched) / (P ec);  B = touched * bytes of one expert / (BW eb)
    touched = E (1 - exp(-al M k / E)): the experts that M tokens with k choices each wake up
    rows = M min(k / ep^(1-be), local): the choices that land on the busiest of ep ranks

Shapes (hidden, width, experts) that the tables hold have two factors of their own: on t0 and B, measured at few tokens, and on
C and the last term, measured at many. Vectors named for an engine are those of the kernels that it runs.

Constants per GPU and format in profiles/constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.types import Model, Moe, WeightFormat

FORM = {
    "bf16": ("bf16", "bf16"), "fp8": ("fp8", "fp8"), "fp8_rowwise": ("fp8", "fp8"), "fp8_block": ("fp8_block", "fp8"),
    "int8_sq": ("fp8", "int8"), "int8_wo": ("bf16", "bf16"), "int4_awq": ("int4", "bf16"), "int4_gptq": ("int4", "bf16"),
    "w4a8_awq": ("int4", "fp8"), "nvfp4": ("nvfp4", "fp4"), "mxfp4": ("mxfp4", "bf16"),
}  # fmt: skip


@dataclass(frozen=True)
class Experts:
    """The routed experts of one layer on one rank: coefficients."""

    t0: float
    choices: float
    """rows per token that land on this rank's experts (imbalance included)"""
    local: float
    wake: float
    """touched = local (1 - exp(-wake M))"""
    pad: float
    row_time: float
    expert_time: float
    power: float
    inverse: float
    token_time: float
    form: str
    """the kernel, as in profiles/constants"""

    def seconds(self, m: float, idle: float = 0.0) -> float:
        """Time of M tokens (of all ranks that share the experts), beside `idle` equal ones, which wake no other experts."""
        if m <= 0:
            return 0.0
        touched, rows = self.local * (1.0 - math.exp(-self.wake * m)), (m + idle) * self.choices
        compute = (rows + self.pad * touched) * self.row_time
        memory = touched * self.expert_time
        busy: float = (compute**self.power + memory**self.power) ** self.inverse
        return self.t0 + busy + rows * self.token_time

    def is_compute_bound(self, m: float) -> bool:
        """Whether M tokens take longer to multiply than the experts that they wake take to move."""
        touched = self.local * (1.0 - math.exp(-self.wake * m))
        return m * self.choices * self.row_time > touched * self.expert_time


def experts(
    constants: Constants, host: Runtime, model: Model, moe: Moe, weights: WeightFormat, bits: float, ep: int, tp: int
) -> Experts:
    """The coefficients with the experts divided over `ep` ranks and each expert's width over `tp`."""
    op, unit = FORM[weights]
    if unit == "bf16" and op == "mxfp4" and (constants.peaks.get("fp4") or 0) > 0 and "mxfp4_fp8" in constants.ops["moe"]:
        op, unit = "mxfp4_fp8", "fp8"
    table = constants.ops["moe"]
    if f"{host.name}_{op}" in table:
        op = f"{host.name}_{op}"
    elif op in host.gen_moe and ep * tp > 1 and f"{op}_gen" in table:
        op = f"{op}_gen"
    if op not in table or not constants.peaks.get(unit):
        op, unit = "bf16", "bf16"
    vector, peak = table[op], constants.peaks[unit]
    assert peak is not None
    width = moe.intermediate / tp
    hidden = moe.hidden or model.hidden
    elements = (3 if model.gated_mlp else 2) * hidden * width
    local = moe.experts / ep
    choices = min(moe.active / ep ** (1 - vector["be"]), moe.active, local)
    few, many = vector.get("shapes", {}).get(f"{hidden}x{moe.intermediate}x{moe.experts}", (1.0, 1.0))
    factor = host.moe4 if op.endswith("_gen") else host.routed(weights)
    scatters = op == "fp8_block" and (constants.peaks.get("fp4") or 0) > 0
    beside, passes = (host.scatter_us * 1e-6, host.scatter_passes) if scatters else (0.0, 0.0)
    return Experts(
        t0=beside + few * host.launch * (vector["t0_us"] * 1e-6 + vector["t1_ns"] * 1e-9 * local),
        choices=choices,
        local=local,
        wake=vector["al"] * moe.active / moe.experts,
        pad=vector["pad"],
        row_time=many * factor * 2 * elements / (peak * vector["ec"]),
        expert_time=few * elements * bits / 8 / (constants.bandwidth * vector["eb"]),
        power=vector["p"],
        inverse=1 / vector["p"],
        token_time=(many * factor * vector["q"] + passes) * 2.0 * hidden / constants.bandwidth,
        form=op,
    )
