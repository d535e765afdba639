"""What a measured acceptance is worth where the model will be served: facts for the rules, and every draft length weighed with
the estimator's cost of verifying it at the planned batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from advisor.executor.speculating.making import BATCH, Kind, Made, Making
from advisor.executor.speculating.speculation import PREFIX, Measured, Way
from advisor.types import Change, Deployment, DraftLength, Plan, Profile, Scalar, Speculation, SpeculationMethod

if TYPE_CHECKING:
    from advisor.estimator.speculation import Gain, Setting

RULES: dict[SpeculationMethod, str] = {
    "draft": "single-stream-slow/measured-draft",
    "ngram": "single-stream-slow/ngram",
    "eagle3": "single-stream-slow/eagle3",
}
"""the rule that asks for what a method's measurement tells"""
METHODS: dict[Kind, SpeculationMethod] = {"layers": "draft", "eagle3": "eagle3"}
"""what a made draft is measured as"""
SETTINGS = {
    "tensorrt-llm": "speculative_config.max_concurrency: {limit}",
    "vllm": "num_speculative_tokens_per_batch_size, from 0.24: [[1, {limit}, {length}], [{after}, {after}, 0]]",
}


def facts_of(measured: Measured) -> dict[str, Scalar]:
    """The measured facts, with the draft's folder and size. Raises ModelProblem."""
    from advisor.estimator.drafting import active_bytes
    from advisor.profiler.model import read_model

    found: dict[str, Scalar] = {}
    for way in measured.ways:
        found |= way.facts()
    if measured.order.draft is not None:
        draft, _ = read_model(str(measured.order.draft))
        found |= {"draft_model": str(measured.order.draft.absolute()), "draft_params_b": active_bytes(draft, "bf16") / 2 / 1e9}
    return found


def with_measured(profile: Profile, facts: Mapping[str, Scalar]) -> Profile:
    """The profile that knows the facts too."""
    sources = {f"measured.{name}": "measured" for name in facts}
    return profile.model_copy(update={"measured": profile.measured | dict(facts), "sources": profile.sources | sources})


def adopt_speculation(plan: Plan, again: Plan) -> Plan:
    """The plan with the speculation that the rules want now that it was measured: the one made again where the two differ in
    nothing else, else the same without what is no longer wanted."""
    before, after = (one.deployment.model_copy(update={"speculation": None}) for one in (plan, again))
    if before == after:
        return again
    if plan.deployment.speculation is None or again.deployment.speculation is not None:
        return plan
    steps = tuple(step for step in plan.steps if "speculation" not in step.changes)
    warning = "Speculation was taken out of the plan: as measured, no rule calls for it. The figures are those with it."
    return plan.model_copy(update={"deployment": before, "steps": steps, "warnings": (*plan.warnings, warning)})


def judge(profile: Profile, deployment: Deployment, measured: Measured) -> tuple[Change, ...]:
    """A Change for each way to draft: what each length gave here, what it is worth in this deployment, and the proofs."""
    first, *others = (_change(profile, deployment, measured, way) for way in measured.ways)
    return (first.model_copy(update={"seconds": round(measured.seconds, 1)}), *others)


def _change(profile: Profile, deployment: Deployment, measured: Measured, way: Way) -> Change:
    from advisor.estimator.speculation import setting_of
    from advisor.reasoner.baseline import load_of

    setting = setting_of(profile.model, profile.gpu, deployment, load_of(profile.traffic), profile.engine)
    lengths = tuple(_lengths(way, {} if setting is None else _gains(profile, setting, way)))
    batch = "" if setting is None else f"at {setting.batch:,.0f} requests in flight a replica on {profile.gpu.name}"
    made = measured.made if measured.made is not None and way.method == METHODS.get(measured.made.kind) else None
    detail = [_what(measured, way), _worth(profile, lengths, batch), _proof(way), _here(way), *(_making(made) if made else ())]
    folder = made.folder if made else measured.order.draft if way.method == "draft" else None
    facts = {name: value for name, value in way.facts().items() if name.endswith("acceptance")}
    return Change(
        rule=RULES[way.method],
        action="draft",
        artifact=None if folder is None else str(folder),
        after=facts,
        gate=way.gate,
        detail="\n".join(detail),
        drafts=lengths,
    )


def _gains(profile: Profile, setting: Setting, way: Way) -> dict[int, Gain]:
    """Draft length -> its gain where it will be served."""
    from advisor.estimator.speculation import gains

    size = profile.measured.get("draft_params_b") if way.method == "draft" else None
    draft = Speculation(method=way.method, draft_params=None if size is None else round(float(size) * 1e9))
    return {one.draft_len: one for one in gains(setting, profile.model, draft, way.tokens())}


def _lengths(way: Way, gains: Mapping[int, Gain]) -> list[DraftLength]:
    from advisor.estimator.acceptance import expected_tokens

    accepted, found = way.accepted(), []
    first = way.tokens().get(1)
    for length, (value, low, high) in way.tokens().items():
        gain, at = gains.get(length), accepted[length]
        found.append(
            DraftLength(
                draft_len=length,
                tokens_per_step=value,
                low=low,
                high=high,
                formula=expected_tokens(first[0] - 1 if first else 0.0, length),
                accepted=at[0] if at else None,
                gain=gain.gain if gain else None,
                gain_range=(gain.low, gain.high) if gain else None,
                break_even_concurrency=gain.break_even_concurrency if gain else None,
            )
        )
    return found


def _what(measured: Measured, way: Way) -> str:
    order = measured.order
    drawn = f"sampled at temperature {order.temperature:g}" if order.temperature else "greedy"
    names = {"draft": f"draft {order.draft}", "ngram": f"n-grams as {order.engine} looks them up"}
    what = names.get(way.method, "the head that was trained")
    first = tuple(figure - 1 for figure in way.tokens().get(1, ()))
    tokens = sum(one.tokens for one in way.replays)
    rate = f"; a single drafted token is accepted with {first[0]:.3f} ({first[1]:.3f} to {first[2]:.3f})" if first else ""
    rate += "; the rules and the plan go by the low ends" if first and way.method in PREFIX else ""
    return (
        f"{what}: {len(way.replays)} answers of the target itself, {tokens:,} tokens after their first, {drawn}{rate};"
        f" peak memory {measured.peak_gib:.2f} GiB"
    )


def _worth(profile: Profile, lengths: tuple[DraftLength, ...], batch: str) -> str:
    """The best length where it will be served, and above which load it must be off."""
    known = [one for one in lengths if one.gain is not None and one.gain_range is not None]
    if not known:
        return "what it is worth is not known: there is no estimate for this GPU"
    best = max(known, key=lambda one: one.gain or 0.0)
    assert best.gain_range is not None
    low, high = best.gain_range
    figure = f"drafts of {best.draft_len} make decode {best.gain:.2f} times as fast ({low:.2f} to {high:.2f}), estimated"
    if high <= 1.0:
        return f"not worth it {batch}: the best, {figure}"
    if round(low, 2) <= 1.0:
        return f"not shown to be worth it {batch}: the best, {figure}"
    limit = best.break_even_concurrency or 0
    setting = SETTINGS.get(profile.engine.name, "").format(limit=limit, length=best.draft_len, after=limit + 1)
    return f"worth it {batch}: {figure}; off above {limit:,} requests ({setting})"


def _proof(way: Way) -> str:
    one, test = way.identity, way.sampling
    text = f"output: {one.identical} of {one.answers} greedy answers identical token by token in {one.bits}-bit arithmetic"
    if one.gap is not None:
        text += f" (the closest of the others differs where the two best logits are {one.gap:.2g} apart)"
    if test is None:
        return text
    chances = f"p = {test.rule.p_value:.3g}, chi-square {test.rule.statistic:,.0f} on {test.rule.freedom:,}"
    caught = f"the same test of a rule that accepts everything gives p = {test.control.p_value:.1g}"
    said = {
        True: "the target's own distribution",
        False: "not the target's distribution",
        None: "not told, for even a rule without refusals passes",
    }
    return (
        f"{text}; sampled at temperature {test.temperature:g}, {test.draws:,} draws at each of {test.positions} positions:"
        f" {said[test.holds]} ({chances}; {caught})"
    )


def _here(way: Way) -> str:
    one = way.identity
    text = f"on this machine, one answer at a time, drafts of {one.draft_len}: {one.tokens / one.steps:.2f} tokens a step"
    if one.predicted_gain is None:
        return f"{text}; the speed here says nothing, the head reads each text anew for every draft"
    return f"{text}, {one.gain:.2f} times as fast as without ({one.predicted_gain:.2f} by the times of single steps)"


def _making(made: Made) -> list[str]:
    training = made.training
    told = [
        f"made here: {made.how}",
        f"{training.step} of {training.planned} steps, {training.tokens:,} tokens, {training.spent:.0f} s,"
        f" peak memory {training.peak_gib:.2f} GiB",
    ]
    if made.kind == "eagle3":
        told.append(f"files: {'; '.join(made.problems) or 'every tensor and size that TensorRT-LLM loads is there'}")
    return told


def foresee(profile: Profile, making: Making, prompt_tokens: int) -> str:
    """What making a draft would cost, and what published ones took. Raises NotPossible."""
    from advisor.estimator.students import shallower
    from advisor.estimator.training import training_cost

    model, gpu, kind, layers = profile.model, profile.gpu, making.kind, making.layers
    tokens = making.steps * BATCH * prompt_tokens
    method: Literal["draft_head", "distillation"] = "draft_head" if kind == "eagle3" else "distillation"
    student = model if kind == "eagle3" or layers is None or layers >= model.layers else shallower(model, layers)
    asked, published = (training_cost(method, student, gpu, teacher=model, tokens=each) for each in (tokens, None))
    if asked is None or published is None:
        return f"Training on at most {tokens:,} tokens; what it costs is not known for {gpu.name}."
    billions = " to ".join(f"{each / 1e9:,.3g}" for each in published.tokens)
    hours = " to ".join(f"{each:,.2g}" for each in published.gpu_hours)
    here, most = asked.flops_per_token * tokens, asked.gpu_hours[1]
    spent = f"{most:,.2g} hours" if most >= 1 else f"{most * 3600:,.2g} s"
    return (
        f"Training on at most {tokens:,} tokens: {here:.2g} operations, at most {spent} of {gpu.name};"
        f" this machine says its own time after four steps. Published ones took {billions} billion tokens, {hours} GPU-hours."
    )
