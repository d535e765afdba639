"""Speculative decoding: which method and draft length gain most at a load, and at what concurrency they stop paying."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from advisor.estimator.acceptance import Acceptance, acceptance_of, published
from advisor.estimator.acceptance import acceptance_rate as acceptance_rate
from advisor.estimator.acceptance import expected_tokens as expected_tokens
from advisor.estimator.acceptance import prior as prior
from advisor.estimator.deployment import estimate, plain_step
from advisor.estimator.drafting import LONGEST_DRAFT, Speculating, params_in_name, with_draft
from advisor.estimator.drafting import draft_cost_ratio as draft_cost_ratio
from advisor.estimator.memory import parameter_count
from advisor.estimator.remembering import by_identity
from advisor.estimator.step_time import StepTime
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Model, Speculation, SpeculationMethod, WeightFormat

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


class Setting(NamedTuple):
    """Where speculation is judged: a deployment without it, and what it decodes at a load."""

    step: StepTime
    deployment: Deployment
    batch: float
    """requests in flight per replica"""
    context: float
    most: int
    """requests per replica that memory holds"""


class Gain(NamedTuple):
    """What one draft length would give."""

    draft_len: int
    gain: float
    """decode speed-up at the setting's batch; below 1 it is slower"""
    low: float
    high: float
    break_even_concurrency: int
    """largest number of requests in flight (over all replicas) at which it still gains; 0: at none"""


class _Offer(NamedTuple):
    """A draft of one length with its typical acceptance, before the steps of a deployment."""

    speculation: Speculation
    acceptance: Acceptance
    step: Speculating


def outlook(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, method: SpeculationMethod
) -> Outlook | None:
    """The method's best draft length at this load and what it would give; None when the model has no such draft, the GPU's
    speed is not known, or the deployment does not fit. `deployment`'s own speculation is not looked at."""
    return best(model, gpu, deployment, load, engine, (method,))


def best(
    model: Model,
    gpu: Gpu,
    deployment: Deployment,
    load: Load,
    engine: Engine,
    methods: tuple[SpeculationMethod, ...] = METHODS,
    now: Estimate | None = None,
) -> Outlook | None:
    """The outlook of largest gain among the methods, whether it gains or not; None when none of them is there.

    now: the estimate of the deployment without speculation at this load, where it has been made.
    """
    offered = [method for method in methods if _candidates(model, method)]
    setting = setting_of(model, gpu, deployment, load, engine, now) if offered else None
    if setting is None:
        return None
    gain, found = max((_best_offer(setting, model, method) for method in offered), key=lambda each: each[0])
    low, high = (
        gain * expected_tokens(rate, found.speculation.draft_len) / found.step.tokens
        for rate in (found.acceptance.low, found.acceptance.high)
    )
    turn = break_even(found.step, setting.context, setting.most) * setting.deployment.replicas
    chosen = found.speculation.model_copy(update={"max_concurrency": turn or None})
    return Outlook(chosen, gain, low, high, turn, found.acceptance)


def _best_offer(setting: Setting, model: Model, method: SpeculationMethod) -> tuple[float, _Offer]:
    """The first of the method's drafts that gain most, and its gain."""
    best: tuple[float, _Offer] | None = None
    for offer in _offers(setting.step, model, setting.deployment.weights, method):
        gain = offer.step.gain(setting.batch, setting.context)
        if best is None or gain > best[0] + 1e-12:
            best = gain, offer
    assert best is not None
    return best


@by_identity(256)
def _offers(step: StepTime, model: Model, weights: WeightFormat, method: SpeculationMethod) -> tuple[_Offer, ...]:
    made = []
    for draft in _candidates(model, method):
        accepted = acceptance_of(model, method, draft.draft_len)
        tried = draft.model_copy(update={"acceptance": round(accepted.typical, 3)})
        made.append(_Offer(tried, accepted, with_draft(step, model, weights, tried)))
    return tuple(made)


def gains(
    setting: Setting, model: Model, draft: Speculation, tokens: Mapping[int, tuple[float, float, float]]
) -> tuple[Gain, ...]:
    """Every draft length's gain from its measured tokens per step: draft length -> value, low, high."""
    found = []
    for length, figures in sorted(tokens.items()):
        rates = [acceptance_rate(figure, length) for figure in figures]
        tried = [draft.model_copy(update={"draft_len": length, "acceptance": rate}) for rate in rates]
        made = [_drafted(setting, model, one).gain(setting.batch, setting.context) for one in tried]
        found.append(Gain(length, made[0], made[1], made[2], _turn(setting, model, tried[0])))
    return tuple(found)


def setting_of(
    model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, now: Estimate | None = None
) -> Setting | None:
    """The deployment without speculation at a load; None when the GPU's speed is not known or it does not fit.

    now: as `best`.
    """
    plain = deployment.model_copy(update={"speculation": None})
    step = plain_step(model, gpu, plain, engine)
    if now is None and step is not None:
        now = estimate(model, gpu, plain, load, engine)
    if step is None or now is None or not now.fits or now.concurrency is None:
        return None
    batch = max(1.0, now.concurrency / plain.replicas)
    most = max(1, (now.max_concurrency or round(batch)) // plain.replicas)
    return Setting(step, plain, batch, load.isl + load.osl / 2, most)


def _turn(setting: Setting, model: Model, draft: Speculation) -> int:
    return break_even(_drafted(setting, model, draft), setting.context, setting.most) * setting.deployment.replicas


def break_even(step: Speculating, context: float, most: int) -> int:
    """Largest batch, at most `most`, at which the draft gains; 0: at none. Halving, then bisection of the last crossing."""
    batches: list[int] = [1 << power for power in range(most.bit_length()) if 1 << power < most] + [most]
    last = next((index for index in reversed(range(len(batches))) if step.gain(batches[index], context) > 1.0), None)
    if last is None:
        return 0
    if last == len(batches) - 1:
        return most
    low, high = batches[last], batches[last + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if step.gain(middle, context) > 1.0:
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
    now: Estimate | None = None,
) -> Speculation | None:
    """The method and draft length of largest gain at this load; None when none of the methods is there or gains.

    now: as `best`.
    """
    found = best(model, gpu, deployment, load, engine, methods, now)
    return found.speculation if found is not None and found.gain > 1.0 else None


def _drafted(setting: Setting, model: Model, speculation: Speculation) -> Speculating:
    return with_draft(setting.step, model, setting.deployment.weights, speculation)


@by_identity(256)
def _candidates(model: Model, method: SpeculationMethod) -> list[Speculation]:
    """The drafts of a method that this model has, at every length: one whose size is known as it is, and of those with their
    size in the name the ones of less than half the model's."""
    own = published(model, method)
    names: list[str | None] = [own.id if own is not None else None]
    if (method == "mtp" and not model.mtp_layers and own is None) or (method == "eagle3" and own is None):
        return []
    if method == "draft" and (own is None or own.params is None):
        params = parameter_count(model)
        offered = [own.id] if own is not None else list(model.siblings)
        names = [name for name in offered if name and (params_in_name(name) or params) * 2 < params]
    size = own.params if own is not None else None
    return [
        Speculation(method=method, draft_len=length, draft_model=name, draft_params=size)
        for name in names
        for length in range(1, LONGEST_DRAFT + 1)
    ]
