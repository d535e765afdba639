"""What measured operations say of a deployment, beside or instead of our own estimate."""

from __future__ import annotations

from advisor.estimator.deployment import busy_replicas
from advisor.estimator.silicon import BACKENDS, Measured, NotMeasured, Question, ask
from advisor.types import Deployment, Engine, Estimate, Gpu, Load, Model, SecondFigure, SecondOpinion

FIGURES = ("ttft_ms", "itl_ms", "output_tokens_per_s", "output_tokens_per_s_per_gpu", "request_latency_ms")


def second_opinion(
    label: str, model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, ours: Estimate
) -> SecondOpinion:
    """Both estimates of one deployment; without figures and with the reason where the tables have no answer.

    Both are of as many requests in flight as ours has. Raises MissingExtra where aiconfigurator-core is not installed.
    """
    try:
        found = _measured(model, gpu, deployment, load, engine, ours)
    except NotMeasured as reason:
        return SecondOpinion(label=label, reason=str(reason))
    figures = [
        SecondFigure(metric=name, ours=mine, silicon=value, difference_pct=100 * (value / mine - 1))
        for name, value in _figures(found, deployment, load, ours).items()
        for mine in [getattr(ours, name)]
        if mine is not None and name in ("ttft_ms", "itl_ms", "output_tokens_per_s")
    ]
    return SecondOpinion(label=label, figures=tuple(figures), source=found.source)


def instead(ours: Estimate, model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine) -> Estimate:
    """Our estimate with the times of the tables in it, basis "silicon" and no interval; unchanged but for a note that says why
    where they have no answer. Memory stays ours: it is arithmetic. Raises MissingExtra."""
    try:
        found = _measured(model, gpu, deployment, load, engine, ours)
    except NotMeasured as reason:
        return ours.model_copy(update={"notes": (*ours.notes, f"silicon has no answer: {reason}")})
    figures = _figures(found, deployment, load, ours)
    shares = ", ".join(
        f"{name} {figures[name] / mine - 1:+.1%}" for name in FIGURES[:3] for mine in [getattr(ours, name)] if mine is not None
    )
    return ours.model_copy(
        update={
            **figures,
            "basis": {**ours.basis, **dict.fromkeys(figures, "silicon")},
            "range": {name: span for name, span in ours.range.items() if name not in figures},
            "notes": (
                *(note for note in ours.notes if not note.startswith("TTFT:")),
                f"times by {found.source}; against our own: {shares}",
            ),
        }
    )


def _measured(model: Model, gpu: Gpu, deployment: Deployment, load: Load, engine: Engine, ours: Estimate) -> Measured:
    """Offline it sweeps the batch itself; at a concurrency or a rate it is asked at the requests that ours has in flight."""
    if not ours.fits or ours.concurrency is None:
        raise NotMeasured("our own estimate has no figures to stand beside")
    offline = load.concurrency is None and load.rate is None
    sequences = None if offline else ours.concurrency / busy_replicas(deployment, load)
    return ask(Question(model, gpu, deployment, BACKENDS[engine.name]), load, sequences)


def _figures(found: Measured, deployment: Deployment, load: Load, ours: Estimate) -> dict[str, float]:
    tokens = found.tokens_per_s * busy_replicas(deployment, load)
    if load.rate is not None and ours.output_tokens_per_s is not None:
        tokens = ours.output_tokens_per_s  # what arrives is served, by either
    gpus = deployment.tensor_parallel * deployment.pipeline_parallel * deployment.replicas
    latency = found.ttft_ms + max(load.osl - 1, 0) * found.itl_ms
    return dict(zip(FIGURES, (found.ttft_ms, found.itl_ms, tokens, tokens / gpus, latency), strict=True))
