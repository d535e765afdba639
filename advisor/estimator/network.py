"""Time of collectives between the GPUs of one replica.

    t = t0 + bytes / bandwidth + t1 bytes / (bytes + b1)        bandwidth: bytes of the whole message per second

Fitted per GPU and group size. Over PCIe the fitted table of L40S is 3 to 9 times too slow (facts/estimator.md, 2); there
45 % of the bus, the value that the RTX PRO 6000's own table implies (0.38 to 0.58), is used.
"""

from __future__ import annotations

from typing import NamedTuple

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime

LINK_SHARE = 0.6
"""of a link never fitted: what the fitted NVLink tables reach of theirs"""


class Collective(NamedTuple):
    """Seconds of one collective as a function of its bytes."""

    t0: float
    byte_time: float
    t1: float
    b1: float

    def seconds(self, size: float) -> float:
        """Time for a message of `size` bytes."""
        if self.t0 == 0.0:
            return 0.0
        return self.t0 + size * self.byte_time + self.t1 * size / (size + self.b1)


NONE = Collective(0.0, 0.0, 0.0, 1.0)


def all_reduce(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-reduce over n GPUs."""
    return _collective(constants, "all_reduce", n, 2.0, host)


def all_gather(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-gather or reduce-scatter over n GPUs; bytes are those of the whole result."""
    return _collective(constants, "all_gather", n, 1.0, host)


def _collective(constants: Constants, op: str, n: int, passes: float, host: Runtime) -> Collective:
    if n <= 1:
        return NONE
    traffic = passes * (n - 1) / n
    if (constants.link == "pcie" and not constants.fitted) or constants.gpu == "l40s":
        bus = constants.link_bytes or 32e9
        return Collective(
            host.pcie_latency_us * 1e-6 * passes * (n - 1),
            traffic / (bus * (host.pcie_share if n <= 4 else host.pcie_far_share)),
            0.0,
            1.0,
        )
    table = constants.ops.get(op, {})
    key = str(n) if str(n) in table else max(table, default=None, key=int)
    if key is None:
        return Collective(10e-6, traffic / ((constants.link_bytes or 32e9) * LINK_SHARE), 0.0, 1.0)
    vector = table[key]
    return Collective(
        vector["t0_us"] * 1e-6 * host.wire_latency,
        host.wire_bandwidth / (vector["gb_s"] * 1e9),
        vector["t1_us"] * 1e-6 * host.wire_latency,
        vector["b1_mb"] * 1e6,
    )
