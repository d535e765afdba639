"""Time of collectives between the GPUs of one replica.

    t = t0 + bytes / bandwidth + t1 bytes / (bytes + b1)        bandwidth: bytes of the whole message per second

Fitted per GPU and group size on tables of TensorRT-LLM's own kernels. Releases before 1.1 leave larger messages to NCCL: the
C++ runtime those above 0.5 MB among eight GPUs and 1 MB among four (selectImplementation of
cpp/tensorrt_llm/plugins/ncclPlugin/allreducePlugin.cpp), the PyTorch backend those of more than 128 tokens (its pull request
5432). NCCL's ring passes 2 (n - 1) messages one after the other, each as late as the slowest rank:

    t = t0 + bytes / bandwidth + 2 (n - 1) ring bytes^2 / (bytes^2 + b^2)        b: where NCCL takes over

Published throughputs of 70B and Mixtral models on two, four and eight GPUs agree on the time of one message, twice as long on
A100, for whose AMD hosts release 0.16 names a known issue.

Over PCIe the table of L40S is 3 to 9 times slower than what published throughput shows (facts/estimator.md, section 2); there,
and on PCIe GPUs without a table, an all-reduce is a ring at a share of the bus that the published tables determine.
"""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime

AMPERE = "a100-sxm-80gb"
PCIE_4_X16 = 31.5e9
"""bytes/s per direction: what a GPU whose link is not known is taken to have"""
LARGE_BYTES = 32e6
"""2,000 tokens of a 70B model"""
LINK_SHARE = 0.6
"""of a link never fitted: what the fitted NVLink tables reach of theirs"""


@dataclass(frozen=True)
class Collective:
    """Seconds of one collective as a function of its bytes."""

    t0: float
    byte_time: float
    t1: float
    b1: float
    ring: bool = False
    """whether t1 comes with another kernel rather than grows with the size"""

    def seconds(self, size: float) -> float:
        """Time for a message of `size` bytes."""
        large, most = (size * size, self.b1 * self.b1) if self.ring else (size, self.b1)
        return self.t0 + size * self.byte_time + self.t1 * large / (large + most)

    def repeated(self, times: float, share: float = 1.0) -> Collective:
        """So many of them, each for a message of `share` of the size."""
        return Collective(times * self.t0, times * share * self.byte_time, times * self.t1, self.b1 / share, self.ring)


def all_reduce(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-reduce over n GPUs, two at least."""
    return _collective(constants, "all_reduce", n, 2.0, host)


def all_gather(constants: Constants, n: int, host: Runtime) -> Collective:
    """All-gather or reduce-scatter over n GPUs, two at least, or what replaces them; bytes are those of the whole result."""
    found = _collective(constants, "all_gather", n, 1.0, host)
    share = host.exchange if constants.link != "pcie" else 1.0
    return Collective(found.t0 * share, found.byte_time * share, found.t1 * share, found.b1)


def pair_over_pcie(constants: Constants, n: int) -> bool:
    """Whether these are two A100 that reach each other over PCIe."""
    return n == 2 and constants.gpu == AMPERE and constants.link == "pcie"


def waiting(constants: Constants, n: int, host: Runtime, stages: int) -> list[Collective]:
    """What each step of two A100 takes longer over PCIe, as much for the 160 all-reduces of a 70B as for Mixtral's 64.

    Published throughputs of TensorRT-LLM 0.15 show it at every batch; what it is that the two wait for is not known, and nobody
    published two such GPUs under a later release or another engine, which are taken not to wait.
    """
    if not pair_over_pcie(constants, n) or not host.pcie_pair_ms:
        return []
    return [Collective(host.pcie_pair_ms * 1e-3 / stages, 0.0, 0.0, 1.0)]


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
    t0, t1, b1 = vector["t0_us"] * 1e-6 * host.wire_latency, vector["t1_us"] * 1e-6 * host.wire_latency, vector["b1_mb"] * 1e6
    byte_time = 1 / (vector["gb_s"] * 1e9)
    if op == "all_reduce" and host.ring_us and constants.link != "pcie":
        return _ring(Collective(t0, byte_time, t1, b1), constants, n, host)
    return Collective(t0, byte_time * host.wire_bandwidth, t1, b1)


def _ring(own: Collective, constants: Constants, n: int, host: Runtime) -> Collective:
    """The engine's own kernels at few bytes, NCCL's ring at many, a byte more costing as much as it does in their largest."""
    slow = constants.gpu == AMPERE
    byte_time = own.byte_time + own.t1 * own.b1 / (LARGE_BYTES + own.b1) ** 2
    ring = 2 * (n - 1) * (host.ring_ampere_us if slow else host.ring_us) + (host.pair_us if n == 2 else 0.0)
    factor = host.wire_ring if slow else host.wire_bandwidth
    return Collective(own.t0, byte_time * factor, ring * 1e-6, host.ring_mb * 1e6, ring=True)


def _over_pcie(constants: Constants, n: int, passes: float, host: Runtime) -> Collective:
    """A ring of 2 (n - 1) messages for an all-reduce, half of it for an all-gather."""
    bus = (constants.link_bytes or PCIE_4_X16) * (host.pcie_share if n <= 4 else host.pcie_far_share)
    latency = host.pcie_latency_us * 2 * (n - 1)
    if constants.gpu == AMPERE:
        bus *= 1.0 if n <= 4 else host.pcie_staged_share
        latency = host.pcie_staged_us * 2 * (n - 1)
    return Collective(passes / 2 * latency * 1e-6, passes * (n - 1) / n / bus, 0.0, 1.0)
