"""Speculative decoding: which method and draft length gain most at a load, and at what concurrency they stop paying."""

from __future__ import annotations

from typing import NamedTuple

from advisor.estimator.acceptance import Acceptance, acceptance_of, published
from advisor.estimator.acceptance import acceptance_rate as acceptance_rate
from advisor.estimator.acceptance import expected_tokens as expected_tokens
from advisor.estimator.acceptance import prior as prior
from advisor.estimator.constants import constants_of
from advisor.estimator.deployment import estimate
from advisor.estimator.drafting import LONGEST_DRAFT, Speculating, params_in_name, speculating
from advisor.estimator.drafting import draft_cost_ratio as draft_cost_ratio
from advisor.estimator.memory import parameter_count
from advisor.estimator.step_time import StepTime, step_time
from advisor.types import Deployment, Engine, Gpu, Load, Model, Speculation, SpeculationMethod

METHODS: tuple[SpeculationMethod, ...] = ("mtp", "eagle3", "draft", "ngram")


class Outlook(NamedTuple):
    """What the best draft length of one method would give at a load."""

    speculation: Speculation
    gain: float
    """decode speed-up at this batch with the typical acceptance; below 1 it is slower"""
    low: float
    high: float
    """the same with the lowest and the highest published acceptance"""
    break_even_concurrency: int
    """largest number of requests in flight (over all replicas) at which this draft still gains; 0: at none"""
    acceptance: Acceptance


def outlook(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, method: SpeculationMethod
) -> Outlook | None:
    """The method's best draft length at this load and what it would give; None when the model has no such draft, the GPU's
    speed is not known, or the deployment does not fit. `deployment`'s own speculation is not looked at."""
    plain = deployment.model_copy(update={"speculation": None})
    drafts = _candidates(model, method)
    constants = constants_of(gpu)
    if not drafts or constants is None:
        return None
    now = estimate(model, gpu, plain, load, engine)
    if not now.fits or now.concurrency is None:
        return None
    step = step_time(constants, model, plain, engine)
    batch, context = max(1.0, now.concurrency / plain.replicas), load.isl + load.osl / 2
    best: tuple[float, Speculation, Acceptance] | None = None
    for draft in drafts:
        accepted = acceptance_of(model, method, draft.draft_len)
        tried = draft.model_copy(update={"acceptance": round(accepted.typical, 3)})
        made = _gain(step, model, plain, tried, batch, context)
        if best is None or made > best[0] + 1e-12:
            best = made, tried, accepted
    assert best is not None
    gain, chosen, accepted = best
    ends = [
        _gain(step, model, plain, chosen.model_copy(update={"acceptance": rate}), batch, context)
        for rate in (accepted.low, accepted.high)
    ]
    most = (now.max_concurrency or round(batch)) // plain.replicas
    turn = break_even(step, model, plain, chosen, context, max(1, most)) * plain.replicas
    return Outlook(chosen.model_copy(update={"max_concurrency": turn or None}), gain, ends[0], ends[1], turn, accepted)


def break_even(
    step: StepTime, model: Model, deployment: Deployment, speculation: Speculation, context: float, most: int
) -> int:
    """Largest batch, at most `most`, at which the draft gains; 0: at none. Doubling, then bisection of the last crossing."""
    batches: list[int] = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    paying = [_gain(step, model, deployment, speculation, batch, context) > 1.0 for batch in batches]
    if not any(paying):
        return 0
    last = max(index for index, pays in enumerate(paying) if pays)
    if last == len(batches) - 1:
        return most
    low, high = batches[last], batches[last + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if _gain(step, model, deployment, speculation, middle, context) > 1.0:
            low = middle
        else:
            high = middle
    return low


def best_draft_len(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, method: SpeculationMethod
) -> int | None:
    """The draft length with the largest gain at this load, 1 to 8; None as `outlook`."""
    found = outlook(model, gpu, deployment, load, engine, method)
    return None if found is None else found.speculation.draft_len


def break_even_concurrency(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, method: SpeculationMethod
) -> int | None:
    """Requests in flight over all replicas up to which the method's best draft gains; None as `outlook`."""
    found = outlook(model, gpu, deployment, load, engine, method)
    return None if found is None else found.break_even_concurrency


def choose(
    model: Model,
    gpu: Gpu,
    deployment: Deployment,
    load: Load,
    engine: Engine,
    methods: tuple[SpeculationMethod, ...] = METHODS,
) -> Speculation | None:
    """The method and draft length of largest gain at this load; None when none of the methods is there or gains."""
    found = best(model, gpu, deployment, load, engine, methods)
    return found.speculation if found is not None and found.gain > 1.0 else None


def best(
    model: Model,
    gpu: Gpu,
    deployment: Deployment,
    load: Load,
    engine: Engine,
    methods: tuple[SpeculationMethod, ...] = METHODS,
) -> Outlook | None:
    """The outlook of largest gain among the methods, whether it gains or not; None when none of them is there."""
    made = [outlook(model, gpu, deployment, load, engine, method) for method in methods]
    return max((each for each in made if each is not None), key=lambda each: each.gain, default=None)


def _gain(
    step: StepTime, model: Model, deployment: Deployment, speculation: Speculation, batch: float, context: float
) -> float:
    with_draft = speculating(step, model, deployment.model_copy(update={"speculation": speculation}))
    assert isinstance(with_draft, Speculating)
    return with_draft.gain(batch, context)


def _candidates(model: Model, method: SpeculationMethod) -> list[Speculation]:
    """The drafts of a method that this model has, at every length; of smaller siblings those of less than half its size."""
    own = published(model, method)
    names: list[str | None] = [own.id if own is not None else None]
    if (method == "mtp" and not model.mtp_layers and own is None) or (method == "eagle3" and own is None):
        return []
    if method == "draft":
        params = parameter_count(model)
        offered = [own.id] if own is not None else list(model.siblings)
        names = [name for name in offered if name and (params_in_name(name) or params) * 2 < params]
    return [
        Speculation(method=method, draft_len=length, draft_model=name)
        for name in names
        for length in range(1, LONGEST_DRAFT + 1)
    ]
