"""Time of a recurrent layer's scan (Mamba, gated delta net) on one GPU, beside its projections.

    decode  t = 8 us + sequences * 2 * state bytes / BW                the state is read and written once a token
    prefill t = 30 us + tokens * 12 * state elements / (0.1 P)         the chunked scan; P the 16-bit peak

The figures are what the gated-delta-net tables of aiconfigurator-core 0.12.0 show on H100, H200, B200, L40S and RTX PRO 6000
(systems/data/*/linear_attention/trtllm/1.3.0rc20/gdn_perf.parquet): decode at 0.95 to 1.17 of the bandwidth for a 32-bit state,
prefill at 0.05 to 0.14 of the peak.
"""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.types import Model

DECODE_SECONDS, PREFILL_SECONDS = 8e-6, 30e-6
SCAN_FLOPS = 12.0
"""per state element and token: outer product, decay, readout, and the products within a chunk"""
SCAN_SHARE = 0.1


@dataclass(frozen=True)
class Scan:
    """Coefficients of one layer."""

    sequence_time: float
    token_time: float

    def seconds(self, sequences: float, tokens: float) -> float:
        """`sequences` that produce a token and `tokens` prompt tokens."""
        decode = DECODE_SECONDS + sequences * self.sequence_time if sequences > 0 else 0.0
        return decode + (PREFILL_SECONDS + tokens * self.token_time if tokens > 0 else 0.0)


def scan(constants: Constants, model: Model, parts: int) -> Scan | None:
    """The coefficients with the heads divided over `parts` ranks; None for a model without recurrent layers."""
    recurrent, peak = model.recurrent, constants.peaks["bf16"]
    if recurrent is None or recurrent.layers == 0:
        return None
    assert peak is not None
    wide = 4.0 if recurrent.state_dtype == "float32" else 2.0
    state = wide * recurrent.state_elements + 2.0 * recurrent.conv_elements
    return Scan(2.0 * state / parts / constants.bandwidth, SCAN_FLOPS * recurrent.state_elements / parts / (SCAN_SHARE * peak))
