"""Time of a sparse-attention indexer (DeepSeek-V3.2, GLM-5), which picks the tokens that attention then reads.

    decode  t = t0 + 2 * sequences * context * key bytes / BW          every key is scored, then the best are selected
    prefill t = t0 + 80 ns tokens + pairs * 2 * 32 * 128 / (0.4 P8)    32 heads of 128, FP8

The attention itself reads at most TOP tokens. t0 is what the modules of aiconfigurator-core 0.12.0 take beyond plain latent
attention at a batch of one (systems/data/*/sparse_attention/trtllm/1.3.0rc20/dsa_generation_module_perf.parquet against
mla_generation_module_perf.parquet): 0.03 to 0.06 ms on B200; 0.19 ms on H200, of which half is taken. SGLang's stands there
itself, as the modules of GLM-5 with an indexer less those of GLM-5.2's layers without (sparse_attention/sglang/0.5.14,
dsa_generation_module_perf and dsa_context_module_perf.parquet); so does the time of a prompt's token, which is that of the
indexer's own projections, their rotation and the selection. The slope at 256 sequences of 131,072 tokens is twice the bytes of
the keys.
"""

from __future__ import annotations

from dataclasses import dataclass

from advisor.estimator.constants import Constants
from advisor.estimator.engines import Runtime
from advisor.types import Model

TOP = 2048.0
"""index_topk of both models"""
HOPPER_SECONDS, BLACKWELL_SECONDS = 100e-6, 45e-6
SGLANG_SECONDS = 35e-6
"""24 to 42 us by context, on H200 as on B200"""
TOKEN_SECONDS = 80e-9
PAIR_FLOPS = 2.0 * 32 * 128
SCORE_SHARE = 0.4
"""of the FP8 peak: what prefill attention reaches"""


@dataclass(frozen=True)
class Indexer:
    """Coefficients of one layer; the indexer is copied on every tensor-parallel rank."""

    t0: float
    key_time: float
    token_time: float
    pair_time: float

    def seconds(self, sequences: float, context: float, tokens: float, length: float) -> float:
        """`sequences` that produce a token over `context` tokens, and `tokens` prompt tokens of prompts of `length`."""
        prompt = tokens * (self.token_time + length / 2 * self.pair_time)
        return self.t0 + sequences * context * self.key_time + prompt


def indexer(constants: Constants, host: Runtime, model: Model) -> Indexer | None:
    """The coefficients; None for a model without an indexer."""
    if not model.indexer_bytes:
        return None
    peak = constants.peaks["fp8"] or constants.peaks["bf16"]
    assert peak is not None
    blackwell = (constants.peaks["fp4"] or 0.0) > 0
    return Indexer(
        SGLANG_SECONDS if host.name == "sglang" else BLACKWELL_SECONDS if blackwell else HOPPER_SECONDS,
        2.0 * model.indexer_bytes / constants.bandwidth,
        TOKEN_SECONDS,
        PAIR_FLOPS / (SCORE_SHARE * peak),
    )
