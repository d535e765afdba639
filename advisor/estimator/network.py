"""Time of collectives between the GPUs of one replica.

    t = t0 + bytes / bandwidth + t1 bytes / (bytes + b1)        bandwidth: bytes of the whole message per second

Fitted per GPU and group size on kernel tables. Over PCIe the table of L40S is 3 to 9 times slower than what published
throughput shows (facts/estimator.md, section 2); there, and on PCIe GPUs without a table, an all-reduce is a ring of 2 (n - 1)
messages at a share of the bus that the published tables determine.

TensorRT-LLM up to 0.17 leaves messages above 0.5 MB among eight GPUs and 1 MB among four to NCCL (selectImplementation of
cpp/tensorrt_llm/plugins/ncclPlugin/allreducePlugin.cpp, where the two-shot kernel is switched off), whose known issue on AMD
hosts, those of A100 systems, its perf-overview of 0.17 names; hence a latency of its own for switches that only pass on.
"""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime

AMPERE = "a100-sxm-80gb"
PCIE_4_X16 = 31.5e9
"""bytes/s per direction: what a GPU whose link is not known is taken to have"""
LINK_SHARE = 0.6
"""of a link never fitted: what the fitted NVLink tables reach of theirs"""


@dataclass(frozen=True)
class Collective:
    """Seconds of one collective as a function of its bytes."""

    t0: float
    byte_time: float
    t1: float
    b1: float

    def seconds(self, size: float) -> float:
        """Time for a message of `size` bytes."""
        return self.t0 + size * self.byte_time + self.t1 * size / (size + self.b1)

    def repeated(self, times: float, share: float = 1.0) -> Collective:
        """So many of them, each for a message of `share` of the size."""
        return Collective(times * self.t0, times * share * self.byte_time, times * self.t1, self.b1 / share)


def all_reduce(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-reduce over n GPUs, two at least."""
    return _collective(constants, "all_reduce", n, 2.0, host)


def all_gather(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-gather or reduce-scatter over n GPUs, two at least, or what replaces them; bytes are those of the whole result."""
    found = _collective(constants, "all_gather", n, 1.0, host)
    share = host.exchange if constants.link != "pcie" else 1.0
    return Collective(found.t0 * share, found.byte_time * share, found.t1 * share, found.b1)


def link_rate(constants: Constants, host: Runtime) -> float:
    """Bytes/s of messages from one GPU to the next."""
    if constants.link == "pcie" or not constants.link_bytes:
        return (constants.link_bytes or PCIE_4_X16) * host.pcie_share
    return constants.link_bytes * LINK_SHARE


def _collective(constants: Constants, op: str, n: int, passes: float, host: Runtime) -> Collective:
    if (constants.link == "pcie" and not constants.fitted) or constants.gpu == "l40s":
        return _over_pcie(constants, n, passes, host)
    table = constants.ops.get(op, {})
    key = str(n) if str(n) in table else max(table, default=None, key=int)
    if key is None:
        return Collective(10e-6, passes * (n - 1) / n / ((constants.link_bytes or PCIE_4_X16) * LINK_SHARE), 0.0, 1.0)
    vector = table[key]
    latency, per_byte = host.wire_latency, host.wire_bandwidth
    if constants.gpu == AMPERE:
        latency, per_byte = latency * host.ring_latency, host.wire_ring
    return Collective(
        vector["t0_us"] * 1e-6 * latency,
        per_byte / (vector["gb_s"] * 1e9),
        vector["t1_us"] * 1e-6 * latency,
        vector["b1_mb"] * 1e6,
    )


def _over_pcie(constants: Constants, n: int, passes: float, host: Runtime) -> Collective:
    """A ring of 2 (n - 1) messages for an all-reduce, half of it for an all-gather."""
    bus = (constants.link_bytes or PCIE_4_X16) * (host.pcie_share if n <= 4 else host.pcie_far_share)
    latency = host.pcie_latency_us * 2 * (n - 1)
    if constants.gpu == AMPERE:
        bus *= host.pcie_staged_share
        latency += host.pcie_staged_us if n == 2 else 0.0
    return Collective(passes / 2 * latency * 1e-6, passes * (n - 1) / n / bus, 0.0, 1.0)
