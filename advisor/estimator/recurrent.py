"""Time of a recurrent layer's scan (Mamba, gated delta net) on one GPU, beside its projections.

    decode  t = 8 us + sequences * 2 * state bytes / BW                the state is read and written once a token
    prefill t = t0 + t1 length + tokens * 12 * state elements / (share P)   the chunked scan; P the 16-bit peak

A prompt's chunks follow one another, so its length costs time however few heads a rank holds; the rest is divided.

The figures are what the gated-delta-net tables of aiconfigurator-core 0.12.0 show (systems/data/*/linear_attention/*/gdn_perf.
parquet: convolution and scan of trtllm 1.3.0rc20, vllm 0.24.0 and sglang 0.5.14): decode at 0.95 to 1.17 of the bandwidth for
a 32-bit state; prefill within 5 to 12 % on H100, H200, B200 and B300, a third off on L40S, whose cache holds the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.types import Model

DECODE_SECONDS = 8e-6
SCAN_FLOPS = 12.0
"""per state element and token: outer product, decay, readout, and the products within a chunk"""


class Prefill(NamedTuple):
    """An engine's scan of prompts."""

    seconds: float
    token_seconds: float
    """of a prompt's length"""
    share: float
    blackwell_share: float
    """of the 16-bit peak, before Blackwell and since"""


PREFILL = {
    "tensorrt-llm": Prefill(22e-6, 15e-9, 0.10, 0.056),
    "vllm": Prefill(17e-6, 37e-9, 0.28, 0.14),
    "sglang": Prefill(34e-6, 22e-9, 0.062, 0.045),
}


@dataclass(frozen=True)
class Scan:
    """Coefficients of one layer."""

    sequence_time: float
    prompt: float
    length_time: float
    token_time: float

    def seconds(self, sequences: float, tokens: float, length: float) -> float:
        """`sequences` that produce a token, and `tokens` prompt tokens of prompts of `length`."""
        decode = DECODE_SECONDS + sequences * self.sequence_time if sequences > 0 else 0.0
        if tokens <= 0:
            return decode
        return decode + self.prompt + min(length, tokens) * self.length_time + tokens * self.token_time


def scan(constants: Constants, host: Runtime, model: Model, parts: int) -> Scan | None:
    """The coefficients with the heads divided over `parts` ranks; None for a model without recurrent layers."""
    recurrent, peak = model.recurrent, constants.peaks["bf16"]
    if recurrent is None or recurrent.layers == 0:
        return None
    assert peak is not None
    wide = 4.0 if recurrent.state_dtype == "float32" else 2.0
    state = wide * recurrent.state_elements + 2.0 * recurrent.conv_elements
    chunked = PREFILL[host.name]
    share = chunked.blackwell_share if constants.peaks.get("fp4") else chunked.share
    return Scan(
        2.0 * state / parts / constants.bandwidth,
        chunked.seconds,
        chunked.token_seconds,
        SCAN_FLOPS * recurrent.state_elements / parts / (share * peak),
    )
