"""The facts that the estimator gives: the baseline, the same with another weight or cache format, what each would gain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, cached_property
from typing import Any

from advisor.errors import NotPossible
from advisor.estimator.batching import static_idle_share
from advisor.estimator.correction import corrected
from advisor.estimator.deployment import Held, estimate, held
from advisor.estimator.drafting import LONGEST_DRAFT
from advisor.estimator.memory import kv_bytes, parts, sequence_bytes, weight_bytes
from advisor.estimator.remembering import by_identity
from advisor.estimator.speculation import METHODS, Outlook, best
from advisor.reasoner.baseline import baseline_deployment, checkpoint_format, load_of
from advisor.reasoner.support import lookup
from advisor.reasoner.vocabulary import FIT_FORMATS, GAIN_FORMATS
from advisor.types import Deployment, Draft, Estimate, Gpu, Load, Model, Profile, Scalar, WeightFormat

COMPUTE_FORMATS: tuple[tuple[WeightFormat, ...], ...] = (("nvfp4",), ("fp8", "fp8_rowwise", "fp8_block", "int8_sq"))
"""formats in which the tensor cores multiply at that width, narrowest first; weight-only formats are not among them"""
Getter = Callable[["Estimates"], Scalar]


class Estimates:
    """What the estimator says of one profile: the baseline and its variations, each made once."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._made: dict[tuple[Deployment, float | None, float | None], Estimate | None] = {}

    @cached_property
    def baseline(self) -> Deployment:
        """The deployment that everything is compared with."""
        return baseline_deployment(self.profile)

    @cached_property
    def concurrency(self) -> float | None:
        """Requests in the system: declared, else what the rate leads to on the baseline, else what its memory holds.

        A rate on a baseline that does not fit: with the narrowest native weights in its place, then with 4-bit ones.
        """
        traffic, load = self.profile.traffic, load_of(self.profile.traffic)
        if traffic.concurrency is not None:
            return traffic.concurrency
        first = self.baseline.weights if self._knows_checkpoint else None
        others = (_narrowest(self.profile), "int4_awq") if traffic.rate is not None else ()
        for weights in (first, *others):
            made = self.estimate(self.baseline.model_copy(update={"weights": weights}), load) if weights is not None else None
            if made is not None and made.fits:
                return made.concurrency if traffic.rate is not None else made.max_concurrency
        return None

    @cached_property
    def demand(self) -> float | None:
        """Requests that would run at once if memory allowed: those in the system; of an open load, as many as fill the GPUs.

        A decode step of n requests does 2 n operations for every 2-byte weight it reads, so it stops waiting for memory at
        the ridge of the roofline: an open load (as many as memory holds) wants at least that many per replica.
        """
        traffic = self.profile.traffic
        if traffic.concurrency is not None or traffic.rate is not None:
            return self.concurrency
        wanted = ridge_flops_per_byte(self.profile.gpu)
        return None if wanted is None else max(wanted * self.baseline.replicas, self.concurrency or 0.0)

    @cached_property
    def load(self) -> Load:
        """The load at that concurrency, the same for every variation, so that their throughputs compare."""
        load = load_of(self.profile.traffic)
        return load if self.concurrency is None else load.model_copy(update={"concurrency": self.concurrency, "rate": None})

    @property
    def _knows_checkpoint(self) -> bool:
        return checkpoint_format(self.profile.model) is not None

    def of(self, **changes: Any) -> Estimate | None:
        """The baseline with these fields changed; None: not possible, or the checkpoint's own format is not known."""
        if not self._knows_checkpoint and "weights" not in changes:
            return None
        return self.estimate(self.baseline.model_copy(update=changes), self.load)

    def held(self, **changes: Any) -> Held | None:
        """The same of memory alone, which is known sooner."""
        profile, deployment = self.profile, self.baseline.model_copy(update=changes)
        if not self._knows_checkpoint and "weights" not in changes:
            return None
        try:
            return held(profile.model, profile.gpu, deployment, self.load, profile.engine)
        except NotPossible:
            return None

    def estimate(self, deployment: Deployment, load: Load) -> Estimate | None:
        """Corrected by what was measured; None where the engine or the model does not allow the deployment."""
        key = deployment, load.concurrency, load.rate
        if key in self._made:
            return self._made[key]
        made, profile = None, self.profile
        with suppress(NotPossible):
            made = corrected(estimate(profile.model, profile.gpu, deployment, load, profile.engine), profile.corrections)
        self._made[key] = made
        return made

    def sequence_share(self, **changes: Any) -> float | None:
        """Cache of one request of the mean length over the memory's capacity, per GPU."""
        profile, deployment = self.profile, self.baseline.model_copy(update=changes)
        memory = parts(profile.model, profile.gpu, deployment, profile.engine, 1, 1)
        if not memory.capacity or not self._knows_checkpoint:
            return None
        return sequence_bytes(memory, self.load.isl + self.load.osl) / memory.capacity

    @cached_property
    def drafted(self) -> tuple[Deployment, Estimate] | None:
        """What speculation is judged on: the baseline; where that does not fit, the same with the narrowest native weights,
        then with 4-bit ones."""
        first = self.baseline.weights if self._knows_checkpoint else None
        for weights in (first, self.narrowest[0], "int4_awq"):
            deployment = self.baseline.model_copy(update={"weights": weights})
            made = self.estimate(deployment, self.load) if weights is not None else None
            if made is not None and made.fits and made.concurrency is not None:
                return deployment, made
        return None

    @cached_property
    def drafting(self) -> Outlook | None:
        """The best speculation that model and engine have.

        N-grams only with a measured acceptance: the published ones are those of texts that repeat themselves.
        """
        profile = self.profile
        model = with_measured_acceptance(profile.model, profile.measured)
        methods = tuple(
            method
            for method in METHODS
            if supported(profile, "speculation", method) != "impossible"
            and (method != "ngram" or profile.measured.get("ngram_acceptance") is not None)
        )
        if self.drafted is None:
            return None
        deployment, now = self.drafted
        return best(model, profile.gpu, deployment, self.load, profile.engine, methods, now)

    @cached_property
    def narrowest(self) -> tuple[WeightFormat | None, Held | None]:
        """The narrowest weights that compute natively, and what memory says of them over all GPUs."""
        profile = self.profile
        found = _narrowest(profile)
        if found is None:
            return None, None
        tensor, stages = 1, profile.gpu.count
        while stages % 2 == 0 and tensor * 2 <= profile.gpu.gpus_per_node and profile.model.heads % (tensor * 2) == 0:
            tensor, stages = tensor * 2, stages // 2
        spread = {"tensor_parallel": tensor, "pipeline_parallel": stages, "replicas": 1}
        return found, self.held(weights=found, kv_cache="bf16", **spread)


@by_identity(1)
def estimates_of(profile: Profile) -> Estimates:
    """The same for the facts and then the search of a profile, which both ask for the baseline and its neighbours."""
    return Estimates(profile)


def ridge_flops_per_byte(gpu: Gpu) -> float | None:
    """16-bit dense peak over memory bandwidth, FLOP/byte."""
    rate, bandwidth = gpu.tflops.bf16 or gpu.tflops.fp16, gpu.bandwidth_gb_s
    return rate * 1e3 / bandwidth if rate and bandwidth else None


def with_measured_acceptance(model: Model, measured: Mapping[str, Scalar]) -> Model:
    """The model with drafts that are accepted as often as was measured: measured.draft_model where there is one, else its own
    (acceptance), and n-grams (ngram_acceptance)."""
    own, ngram, draft = (measured.get(name) for name in ("acceptance", "ngram_acceptance", "draft_model"))
    if own is None and ngram is None:
        return model  # itself: the estimator knows models again by identity
    drafts = list(model.drafts)
    if own is not None and draft is not None:
        size = measured.get("draft_params_b")
        made = Draft(method="draft", id=str(draft), params=None if size is None else round(float(size) * 1e9))
        drafts = [made.model_copy(update=_accepted(float(own), measured)), *drafts]
    elif own is not None:
        if model.mtp_layers and all(draft.method != "mtp" for draft in drafts):
            drafts.append(Draft(method="mtp"))
        drafts = [draft.model_copy(update=_accepted(float(own))) if draft.method != "ngram" else draft for draft in drafts]
    if ngram is not None:
        drafts = [draft for draft in drafts if draft.method != "ngram"]
        drafts.append(Draft(method="ngram").model_copy(update=_accepted(float(ngram), measured, "ngram_")))
    return model.model_copy(update={"drafts": tuple(drafts)})


def _accepted(acceptance: float, measured: Mapping[str, Scalar] | None = None, kind: str = "") -> dict[str, object]:
    """A step that drafts one token gives 1 + acceptance tokens; longer drafts what was measured with them."""
    given = {length: (measured or {}).get(f"{kind}tokens_per_step_{length}") for length in range(1, LONGEST_DRAFT + 1)}
    lengths = {length: float(tokens) for length, tokens in given.items() if tokens is not None}
    return {"draft_len": 1, "acceptance_length": 1 + acceptance, "lengths": lengths, "source": "measured"}


def supported(profile: Profile, kind: Any, name: str) -> Scalar:
    """What the support table says of a format here; None where it says "unknown" or nothing."""
    return _known_support(profile.engine.name, profile.engine.version, profile.gpu.sm, kind, name)


@cache
def _known_support(engine: str, version: str, sm: int | None, kind: Any, name: str) -> Scalar:
    support, _ = lookup(engine, version, sm, kind, name)
    return None if support == "unknown" else support


def _narrowest(profile: Profile) -> WeightFormat | None:
    for formats in COMPUTE_FORMATS:
        answers = {name: supported(profile, "weights", name) for name in formats}
        native = [name for name in formats if answers[name] == "native"]
        if native:
            return native[0]
        if None in answers.values():
            return None
    return "bf16"


def _ratio(left: float | None, right: float | None) -> float | None:
    return None if left is None or not right or not math.isfinite(left / right) else left / right


def _fits(found: Held | None) -> bool | None:
    return None if found is None or found.most is None else found.most > 0


def _weight_share(found: Held | None) -> float | None:
    return None if found is None else found.weight_share


def _room(found: Held | None) -> float | None:
    return None if found is None else found.most


def _concurrency_share(every: Estimates, found: Held | None) -> float | None:
    """Above 1 requests wait; where not even one fits it has no value, and `fits` says so."""
    return _ratio(every.concurrency, _room(found))


def _throughput(made: Estimate | None) -> float | None:
    return made.output_tokens_per_s if made is not None and made.fits else None


def _gain(**changes: Any) -> Getter:
    return lambda every: _ratio(_throughput(every.of(**changes)), _throughput(every.of()))


def _of_baseline(field: str) -> Getter:
    def get(every: Estimates) -> Scalar:
        made = every.of()
        return None if made is None else getattr(made, field)

    return get


def _bound(phase: str) -> Getter:
    def get(every: Estimates) -> Scalar:
        made = every.of()
        return None if made is None or made.bound_by is None else getattr(made.bound_by, phase)

    return get


def _kv_share(every: Estimates) -> float | None:
    """The share of one request times the requests of a replica, before memory limits them."""
    share, concurrency = every.sequence_share(), every.concurrency
    return None if share is None or concurrency is None else share * max(1.0, concurrency / every.baseline.replicas)


def _one_gpu_weight_share(every: Estimates) -> float | None:
    profile = every.profile
    alone = every.baseline.model_copy(update={"tensor_parallel": 1, "pipeline_parallel": 1, "replicas": 1})
    if checkpoint_format(profile.model) is None or profile.gpu.memory_gib is None:
        return None
    return weight_bytes(profile.model, alone) / (profile.gpu.memory_gib * 2**30)


def _cache_to_weights(every: Estimates) -> float | None:
    profile, baseline = every.profile, every.baseline
    if every.demand is None or checkpoint_format(profile.model) is None:
        return None
    alone = baseline.model_copy(update={"tensor_parallel": 1, "pipeline_parallel": 1})
    cache = kv_bytes(profile.model, baseline.kv_cache, every.load.isl + every.load.osl / 2) * every.demand
    return _ratio(cache, weight_bytes(profile.model, alone) * baseline.replicas)


def _idle_share(every: Estimates) -> float | None:
    """Of static batches of the requests of one replica, from the sampled lengths."""
    if len(every.profile.traffic.lengths) < 2 or every.concurrency is None:
        return None
    return static_idle_share(every.load, max(1.0, every.concurrency / every.baseline.replicas))


def _batch(every: Estimates) -> float | None:
    made = every.of()
    return None if made is None or made.concurrency is None else made.concurrency / every.baseline.replicas


def _drafting(get: Callable[[Outlook], Scalar]) -> Getter:
    return lambda every: None if every.drafting is None else get(every.drafting)


def _drafted_batch(every: Estimates) -> float | None:
    """Requests in flight per replica."""
    if every.drafted is None:
        return None
    deployment, made = every.drafted
    return None if made.concurrency is None else made.concurrency / deployment.replicas


def _break_even(every: Estimates) -> float | None:
    """Per replica, as the batch is."""
    return None if every.drafting is None else every.drafting.break_even_concurrency / every.baseline.replicas


def _fit(name: str, **changes: Any) -> dict[str, Getter]:
    return {
        f"fit.{name}.max_concurrency": lambda every: _room(every.held(**changes)),
        f"fit.{name}.concurrency_share": lambda every: _concurrency_share(every, every.held(**changes)),
    }


def _fit_weights(name: str) -> dict[str, Getter]:
    changes = {"weights": name, "kv_cache": "bf16"}
    return {f"fit.{name}.fits": lambda every: _fits(every.held(**changes))} | _fit(name, **changes)


ESTIMATED: dict[str, Getter] = {
    "traffic.concurrency": lambda every: every.concurrency,
    "traffic.static_idle_share": _idle_share,
    "baseline.fits": lambda every: _fits(every.held()),
    "baseline.weight_share": lambda every: _weight_share(every.held()),
    "baseline.kv_share": _kv_share,
    "baseline.max_concurrency": lambda every: _room(every.held()),
    "baseline.concurrency_share": lambda every: _concurrency_share(every, every.held()),
    "baseline.ttft_ms": _of_baseline("ttft_ms"),
    "baseline.itl_ms": _of_baseline("itl_ms"),
    "baseline.output_tokens_per_s": _of_baseline("output_tokens_per_s"),
    "baseline.decode_bound": _bound("decode"),
    "baseline.prefill_bound": _bound("prefill"),
    "baseline.batch": _batch,
    "baseline.tensor_parallel": lambda every: every.baseline.tensor_parallel,
    "baseline.one_gpu_weight_share": _one_gpu_weight_share,
    "baseline.cache_to_weights": _cache_to_weights,
    "fit.native.weights": lambda every: every.narrowest[0],
    "fit.native.weight_share": lambda every: _weight_share(every.narrowest[1]),
    "fit.native.coverage": lambda every: _ratio(_room(every.narrowest[1]), every.demand),
    "speculation.best_method": _drafting(lambda outlook: outlook.speculation.method),
    "speculation.best_draft_len": _drafting(lambda outlook: outlook.speculation.draft_len),
    "speculation.gain": _drafting(lambda outlook: outlook.gain),
    "speculation.batch": _drafted_batch,
    "speculation.break_even_concurrency": _break_even,
    "gain.fp8_kv": _gain(kv_cache="fp8"),
    "gain.int4_over_fp8": lambda every: _ratio(_throughput(every.of(weights="int4_awq")), _throughput(every.of(weights="fp8"))),
    **{f"gain.{name}": _gain(weights=name) for name in GAIN_FORMATS},
    **{name: get for word in FIT_FORMATS for name, get in _fit_weights(word).items()},
    **_fit("kv_fp8", kv_cache="fp8"),
}
