"""The facts of a profile, by the names of vocabulary.py, each computed at most once and only when a rule asks.

A pure function of the profile. Anything that is not known or cannot be estimated is None.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from advisor.errors import InputError, UnknownName
from advisor.estimator.memory import kv_bytes_per_token, parameter_count
from advisor.estimator.shapes import WEIGHT_BITS, is_quantized, matrices
from advisor.reasoner.estimated import ESTIMATED, Estimates, estimates_of, ridge_flops_per_byte, supported
from advisor.reasoner.support import FORMATS, lookup
from advisor.reasoner.vocabulary import FACTS, misfit
from advisor.types import Model, Profile, Scalar, Traffic

__all__ = ["FACTS", "Facts", "check_measured", "gather_facts"]

GROUP_SIZES = (128, 64, 32)
CALIBRATION_SENSITIVE = ("int8_sq", "int4_gptq", "nvfp4")
"""SmoothQuant's and GPTQ's statistics, and NVFP4's, follow the calibration text; see references of rules/accuracy-missed"""
Getter = Callable[[Profile], Scalar]


def gather_facts(profile: Profile) -> Facts:
    """Every fact of the vocabulary -> its value here. Raises InputError for a measured fact that nobody knows or that is
    not of its type."""
    check_measured(profile.measured)
    return Facts(profile)


def check_measured(measured: Mapping[str, Scalar], *, where: str = "measured") -> None:
    """Raise UnknownName for a name that is no measured fact, InputError for a value that is not of the fact's type."""
    for name, value in measured.items():
        if f"measured.{name}" not in FACTS:
            known = [name.partition(".")[2] for name in FACTS if name.startswith("measured.")]
            raise UnknownName("measured fact", name, known, where=where, hint="`advise facts` lists them all")
        problem = misfit(FACTS[f"measured.{name}"], value)
        if not problem and isinstance(value, float) and not math.isfinite(value):
            problem = f"measured.{name} is {value}: nothing can have measured that"
        if problem:
            raise InputError(problem, where=where, hint=f"{name}: {FACTS[f'measured.{name}'].doc}")


class Facts(Mapping[str, Scalar]):
    """The facts of one profile."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._values: dict[str, Scalar] = {}

    @cached_property
    def estimates(self) -> Estimates:
        """What the estimator says, for whoever needs more than the facts."""
        return estimates_of(self.profile)

    def __getitem__(self, name: str) -> Scalar:
        if name not in self._values:
            value = OF_PROFILE[name](self.profile) if name in OF_PROFILE else ESTIMATED[name](self.estimates)
            self._values[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FACTS)

    def __len__(self) -> int:
        return len(FACTS)

    def find_out(self, name: str) -> str:
        """How to learn a fact that is None: for support, who says that it is not known; for an estimate, what it lacked."""
        fact = FACTS[name]
        kind, _, word = name.removeprefix("support.").partition(".")
        if fact.group == "support" and kind in FORMATS:
            engine = self.profile.engine
            _, source = lookup(engine.name, engine.version, self.profile.gpu.sm, kind, word)  # type: ignore[arg-type]
            sm = self.profile.gpu.sm
            on = "a GPU of unknown compute capability" if sm is None else f"SM{sm}"
            return f"{engine.name} {engine.version} on {on}: {source}; {fact.find_out}"
        if fact.group in ("baseline", "fit", "gain"):
            made = self.estimates.of()
            if made is not None and made.notes:
                return f"{fact.find_out}; the baseline: {'; '.join(made.notes)}"
        return fact.find_out


def _model(get: Callable[[Model], Scalar]) -> Getter:
    return lambda profile: get(profile.model)


def _traffic(get: Callable[[Traffic], Scalar]) -> Getter:
    return lambda profile: get(profile.traffic)


def _active(model: Model) -> float | None:
    if model.active_params is not None:
        return model.active_params / 1e9
    return parameter_count(model) / 1e9 if model.moe is None else None


def _weight_bits(model: Model) -> int | None:
    """By the format's name; for a format not known here the nearest width to the checkpoint's bytes per parameter."""
    if model.quantized is None:
        return 32 if model.dtype == "float32" else 16
    if model.quantized.weights is not None:
        return WEIGHT_BITS[model.quantized.weights]
    if model.weight_bytes is None:
        return None
    mean = model.weight_bytes * 8 / parameter_count(model)
    return min((4, 8, 16), key=lambda bits: abs(math.log2(mean / bits)))


def _group_size(model: Model) -> int:
    sizes = [matrix.inputs for matrix in matrices(model) if is_quantized(matrix, model, "int4_awq")]
    return next((group for group in GROUP_SIZES if sizes and all(size % group == 0 for size in sizes)), 0)


def _drafts(*methods: str) -> Callable[[Model], bool]:
    return lambda model: any(draft.method in methods for draft in model.drafts)


def _native_formats(profile: Profile) -> int | None:
    answers = [supported(profile, "weights", name) for name in FORMATS["weights"] if name != "bf16"]
    count = answers.count("native")
    return None if not count and None in answers else count


def _checkpoint_support(profile: Profile) -> Scalar:
    quantized = profile.model.quantized
    name = "bf16" if quantized is None else quantized.weights
    return None if name is None else supported(profile, "weights", name)


def _calibration_sensitive(profile: Profile) -> bool | None:
    given = profile.measured.get("calibration_sensitive")
    scheme = profile.measured.get("scheme")
    return bool(given) if given is not None else None if scheme is None else scheme in CALIBRATION_SENSITIVE


def _recalibration_left(profile: Profile) -> bool | None:
    given = profile.measured.get("recalibration_left")
    if given is not None:
        return bool(given)
    sensitive, done = _calibration_sensitive(profile), profile.measured.get("recalibrated")
    if sensitive is False or done is True:
        return False
    return None if sensitive is None or done is None else True


def _limit_ratio(profile: Profile) -> float | None:
    """The worst of those limits that are both set and measured."""
    pairs = ((profile.measured.get(name), getattr(profile.goal, name)) for name in ("ttft_ms", "itl_ms"))
    ratios = [float(value) / limit for value, limit in pairs if value is not None and limit]
    return max(ratios, default=None)


def _supported(kind: str, word: str) -> Getter:
    return lambda profile: supported(profile, kind, word)


def _field(group: str, name: str) -> Getter:
    return lambda profile: getattr(getattr(profile, group), name)


def _measured(name: str) -> Getter:
    return lambda profile: profile.measured.get(name)


DERIVED: dict[str, Getter] = {
    "gpu.known": lambda profile: profile.gpu.id is not None,
    "gpu.ridge_flops_per_byte": lambda profile: ridge_flops_per_byte(profile.gpu),
    "model.known": _model(lambda model: model.known),
    "model.params_b": _model(lambda model: parameter_count(model) / 1e9),
    "model.active_params_b": _model(_active),
    "model.is_moe": _model(lambda model: model.moe is not None),
    "model.experts": _model(lambda model: model.moe.experts if model.moe else 0),
    "model.is_mla": _model(lambda model: model.mla is not None),
    "model.is_hybrid": _model(lambda model: model.recurrent is not None),
    "model.has_window": _model(lambda model: model.window is not None),
    "model.weight_bits": _model(_weight_bits),
    "model.is_quantized": _model(lambda model: model.quantized is not None),
    "model.quantized_weights": _model(lambda model: model.quantized.weights if model.quantized else "bf16"),
    "model.quantized_kv_cache": _model(lambda model: (model.quantized and model.quantized.kv_cache) or "bf16"),
    "model.bf16_gib": _model(lambda model: parameter_count(model) * 2 / 2**30),
    "model.kv_bytes_per_token": _model(lambda model: kv_bytes_per_token(model, "bf16")),
    "model.has_mtp": _model(lambda model: model.mtp_layers > 0),
    "model.has_eagle3": _model(_drafts("eagle3")),
    "model.has_draft_model": _model(lambda model: bool(model.siblings) or _drafts("draft")(model)),
    "model.group_size": _model(_group_size),
    "traffic.isl_mean": _traffic(lambda traffic: traffic.isl.mean),
    "traffic.isl_p99": _traffic(lambda traffic: traffic.isl.p99),
    "traffic.isl_max": _traffic(lambda traffic: traffic.isl.max),
    "traffic.osl_mean": _traffic(lambda traffic: traffic.osl.mean),
    "traffic.osl_p99": _traffic(lambda traffic: traffic.osl.p99),
    "traffic.context_mean": _traffic(lambda traffic: traffic.isl.mean + traffic.osl.mean / 2),
    "traffic.prefill_token_share": _traffic(lambda traffic: traffic.isl.mean / (traffic.isl.mean + traffic.osl.mean)),
    "support.checkpoint": _checkpoint_support,
    "support.quantized_formats": _native_formats,
    "measured.calibration_sensitive": _calibration_sensitive,
    "measured.recalibration_left": _recalibration_left,
    "measured.limit_ratio": _limit_ratio,
}


def _plain() -> Iterator[tuple[str, Getter]]:
    """The facts that are a field of the profile, a cell of the support table or a measurement under the same name."""
    for name, fact in FACTS.items():
        rest = name.partition(".")[2]
        if name in DERIVED or name in ESTIMATED:
            continue
        if fact.group == "support":
            yield name, _supported(*rest.split("."))
        elif fact.group == "measured":
            yield name, _measured(rest)
        elif fact.group in ("gpu", "model", "traffic", "goal", "engine"):
            yield name, _field(fact.group, rest)


OF_PROFILE: dict[str, Getter] = DERIVED | dict(_plain())
