"""An advisor for LLM inference on NVIDIA GPUs: which optimizations, in which order, what each gives, and why.

advise(profile)   judge a Profile by the rules: a Report          profile(model, gpu=...)   look at machine, model and traffic
predict(points)   Estimates of deployments, one a Point           errors, types             what goes in and out
apply(report, out=...)   carry the plan out, measure, publish     check(report, profile)    does advice still hold today
Every error that a caller can act on is an errors.AdvisorError. docs/api.py shows them all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advisor.freshness import check
    from advisor.pipeline import advise, apply, profile
    from advisor.prediction import predict

__version__ = "0.1.0"
__all__ = ["advise", "apply", "check", "predict", "profile"]


def __getattr__(name: str) -> Any:
    if name in ("advise", "apply", "profile"):
        from advisor import pipeline

        return getattr(pipeline, name)
    if name == "predict":
        from advisor.prediction import predict

        return predict
    if name == "check":
        from advisor.freshness import check

        return check
    raise AttributeError(f"module 'advisor' has no attribute {name!r}")
