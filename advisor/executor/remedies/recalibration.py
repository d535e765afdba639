"""The remedy for scales set by the wrong text: calibrate again on production's own prompts."""

from __future__ import annotations

from advisor.executor.quantizing.calibration import match_lengths
from advisor.executor.request import Remedy, whole_number
from advisor.executor.run import Run


def recalibrate(run: Run, remedy: Remedy) -> str | None:
    """A round on fresh prompts of production. None: there are none left."""
    assert run.split is not None and run.scheme is not None
    wanted = whole_number(remedy.parameters, "calibration_prompts", 512)
    wanted = min(wanted, run.request.prompts) if run.request.prompts else wanted
    fresh = match_lengths(run.split.reserve, run.lengths)
    if not fresh:
        run.skip(remedy, "not run: every production prompt that is not held out was calibrated on already")
        return None
    run.calibration = fresh[:wanted] if run.split.apart else (*run.calibration, *fresh)[:wanted]
    run.note_calibration()
    return run.attempt(remedy.rule, "recalibrate", run.tuned(run.scheme))
