"""Estimates corrected by what was measured before on the same GPU, model and engine."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.types import Correction, Estimate


def corrected(estimate: Estimate, corrections: Mapping[str, Correction]) -> Estimate:
    """The estimate with its figures and ranges times their factors, those with the basis "measured", and a note that says so.

    corrections: metric (ttft_ms, itl_ms, request_latency_ms, output_tokens_per_s) -> factor. Memory is left as it is.
    """
    if not corrections:
        return estimate
    changes: dict[str, object] = {}
    ranges, basis = dict(estimate.range), dict(estimate.basis)
    said = []
    for metric, correction in corrections.items():
        named = [name for name in Estimate.model_fields if name == metric or name == f"{metric}_per_gpu"]
        for name in named:
            value = getattr(estimate, name)
            if value is None:
                continue
            changes[name], basis[name] = value * correction.factor, "measured"
            if name in ranges:
                low, high = ranges[name]
                ranges[name] = (low * correction.factor, high * correction.factor)
        if metric in changes:
            said.append(f"{metric} x {correction.factor:.3g} (from {correction.count})")
    if not changes:
        return estimate
    note = f"corrected by what was measured on this GPU with this model: {', '.join(said)}"
    return estimate.model_copy(update={**changes, "range": ranges, "basis": basis, "notes": (*estimate.notes, note)})
