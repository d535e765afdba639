"""The remedy for layers that suffer unevenly: find who suffers most, and keep these wider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from advisor.executor.judging import evaluation
from advisor.executor.judging.evaluation import Block
from advisor.executor.quantizing.quantization import BITS
from advisor.executor.request import Remedy
from advisor.executor.run import Run

WIDER = {8: (8.5, 9.0, 10.0, 12.0), 4: (4.5, 5.0, 6.0, 8.0)}
"""effective bits that a mixed-precision search tries, narrowest first, by the bits of the uniform scheme"""
SEARCHED = ("int8_sq", "int4_awq", "w4a8_awq", "fp8", "int8_wo", "fp8_rowwise")
"""schemes that AutoQuantize takes: not GPTQ, and no NVFP4 without CUDA"""


def mix(run: Run, remedy: Remedy) -> str | None:
    """A round with the narrowest mix that promises to keep the budget. None: the search takes no such scheme, or no room."""
    assert run.scheme is not None
    if run.scheme.weights not in SEARCHED:
        run.skip(remedy, f"not run: ModelOpt's search takes no {run.scheme.weights}")
        return None
    narrow = BITS[run.scheme.weights]
    allowed = [bits for bits in WIDER[narrow] if bits / narrow <= run.growth]
    if not allowed:
        run.skip(remedy, f"not run: the memory left allows {run.growth:.2f} times the weights, and that is too little")
        return None
    made, label = run.scheme, f"round-{run.round + 1}"
    for bits in allowed:
        run.found = run.bench.sensitivities(label, run.scheme, run.calibration, bits=bits, with_fp8=narrow == 4)
        made = replace(run.scheme, wide=(*run.scheme.wide, *run.found.wide), wide_fp8=run.found.wide_fp8)
        if bits != allowed[-1] and (made == run.scheme or not _promises(run, run.found.left)):
            continue
        if bits == allowed[-1] or run.bench.suffices(f"{label}/bits-{bits:g}", made, run.calibration, partial(_within, run)):
            break
    run.scheme = made
    return run.attempt(remedy.rule, "mixed_precision", made)


def measure_sensitivity(run: Run) -> bool:
    """Measure how unevenly the layers suffer. False: the search takes no such scheme."""
    assert run.scheme is not None
    if run.scheme.weights not in SEARCHED or not run.calibration:
        return False
    narrow = BITS[run.scheme.weights]
    run.found = run.bench.sensitivities(
        f"round-{run.round}", run.scheme, run.calibration, bits=WIDER[narrow][0], with_fp8=narrow == 4
    )
    run.facts["sensitive_layer_share"] = round(run.found.share, 4)
    return True


def _promises(run: Run, left: float) -> bool:
    """Whether the upper end of the loss measured last, scaled by the share of the scores that would remain, keeps the
    budget: the scores are of second order and add up."""
    budget = run.goal.accuracy_budget_pct
    return budget is None or run.worst * left <= budget


def _within(run: Run, blocks: Sequence[Block]) -> bool:
    """The preselection of a bit width, in memory on calibration prompts: its loss, times what the export and the noise
    added in the last round, keeps the budget."""
    budget = run.goal.accuracy_budget_pct
    return budget is None or evaluation.loss_pct(blocks, run.metric, run.request.seed)[0] * run.beyond <= budget
